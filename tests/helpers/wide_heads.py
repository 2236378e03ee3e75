"""The embedded model with heads of 32 instead of 16, as vLLM's attention on a CPU takes them.

It computes the same function: what is added is zero. The hidden size doubles with the heads, so
that norms, scores and rotary positions have to be put right again.
"""

import json
import math
import shutil

import torch
from safetensors.torch import load_file, save_file

from vrga.hf.files import embedded

FILES = ("*.json", "*.jinja")


def write_wide(folder):
    """Write the embedded model into a folder with heads twice as wide; returns the folder."""
    of = embedded()
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in FILES:
        for path in of.glob(pattern):
            shutil.copy(path, folder)
    config = json.loads((of / "config.json").read_text())
    text = config["text_config"]
    width, heads = text["hidden_size"], text["num_attention_heads"]
    size = width // heads
    weights = {name: _wider(name, x, width, size)
               for name, x in load_file(of / "model.safetensors").items()}  # fmt: skip
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    text["hidden_size"] = config["vision_config"]["out_hidden_size"] = 2 * width
    text["rms_norm_eps"] /= 2
    for rope in (text["rope_parameters"], text["rope_scaling"]):
        rope["mrope_section"][2] += size // 2  # of what is zero
    # Pair i of n turned by theta^(-i/n); among 2n pairs the square of theta gives the same.
    text["rope_parameters"]["rope_theta"] = text["rope_theta"] = text["rope_theta"] ** 2
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def _wider(name, x, width, size):
    """One tensor of the model, filled up with zeros.

    Args:
        width: hidden size; size: of a head.
    """
    if "visual" in name:
        if ".merger.mlp.2" not in name:
            return x
        return _filled(x, 0, width)
    if name.endswith(("layernorm.weight", "norm.weight")):
        # The mean of the squares halves; where nothing stands the weight does not matter.
        return _filled(x / math.sqrt(2), 0, width)
    if "q_proj" in name or "k_proj" in name or "v_proj" in name:
        heads = x.unflatten(0, (-1, 2, size // 2))
        if "v_proj" in name:
            x = _filled(heads.flatten(1, 2), 1, size).flatten(0, 1)
        else:  # rotation pairs each number with one half a head further on
            x = _filled(heads, 2, size // 2).flatten(0, 2)
        if "q_proj" in name:
            x = x * math.sqrt(2)  # scores are divided by the root of the head size
        return x if x.ndim == 1 else _filled(x, 1, width)
    if "o_proj" in name:
        heads = x.unflatten(1, (-1, size))
        return _filled(_filled(heads, 2, size).flatten(1), 0, width)
    if "down_proj" in name:
        return _filled(x, 0, width)
    return _filled(x, 1, width)  # embeddings, gate and up projections


def _filled(x, dim, more):
    """A tensor with `more` zeros behind it in one dimension."""
    shape = list(x.shape)
    shape[dim] = more
    return torch.cat([x, x.new_zeros(shape)], dim).contiguous()
