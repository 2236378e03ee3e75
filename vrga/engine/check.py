"""The check of a server that has just started: one drawn image, steered and not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from vrga.config import VRGAConfig
from vrga.demo.data import TEST_SEEDS, Sample, make_samples
from vrga.engine.client import Reply, ask

TOKENS = 8
# A push that no model's first tokens can be indifferent to: all of the image, in all heads.
PUSH = {"preset": "published", "gain": 8.0, "gate_focus": 0.0, "gate_entropy": 0.0,
        "given": [[[0.0, 0.0, 1.0, 1.0]]]}  # fmt: skip
NEAR = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}  # of logarithms of probabilities
SHARE = 0.4  # of the memory that is free, for transformers' copy of the weights


def check(url: str, model: str, where: str, dtype: str) -> Iterator[str]:
    """What holds of a server, line by line.

    Args:
        url: of the server; model: its name there; where: folder or hub id of its checkpoint.
        dtype: of its weights, "float32", "bfloat16" or "float16".

    Raises:
        ValueError: what does not hold.
    """
    sample = make_samples(1, seed=TEST_SEEDS.start)[0]
    question = sample.question

    def asked(vrga: dict | bool) -> Reply:
        return ask(url, model, [sample.image], question, vrga=vrga, max_tokens=TOKENS)

    base, steered, again, after = asked(False), asked(PUSH), asked(PUSH), asked(False)
    near = NEAR[dtype]
    if base.looked is not None or after.looked is not None:
        raise ValueError("the server steers a request that asks not to be steered")
    if steered.looked is None or not steered.looked["steered"]:
        raise ValueError(
            "the server did not steer a request that asks for it: the plug-in is not loaded; is "
            "vrga installed where vllm is, and does VLLM_PLUGINS leave it out?"
        )
    if apart(base, after) > near or apart(steered, again) > near:
        raise ValueError("the same request was answered otherwise the second time")
    moved = apart(base, steered) if base.tokens == steered.tokens else float("inf")
    if moved < 2 * near:
        raise ValueError(
            f"steering with a gain of 8 moved the first tokens by {moved:.2g}: nothing is steered"
        )
    far = "other tokens" if moved == float("inf") else f"{moved:.2g} in their logarithms"
    yield f"steered and not, each alike twice; what steering changes: {far}"
    why = _too_large(where)
    if why is not None:
        yield f"not compared with transformers: {why}"
        return
    apart_by = [
        apart(reply, own)
        for reply, own in zip((base, steered), _replies(where, sample, dtype), strict=True)
    ]
    if max(apart_by) > near:
        raise ValueError(
            f"answers differ from those of transformers by {apart_by[0]:.2g} unsteered, and by "
            f"{apart_by[1]:.2g} steered; at most {near:.2g} is taken for rounding in {dtype}"
        )
    yield f"as transformers answers: within {max(apart_by):.1g} (allowed in {dtype}: {near:g})"


def apart(one: Reply, other: Reply) -> float:
    """How far two answers are from each other, in logarithms of their tokens' probabilities.

    Up to the first token that differs, behind which they are of different texts; infinite where
    that is the very first.
    """
    far = []
    for i, token in enumerate(one.tokens):
        if other.tokens[i : i + 1] != [token]:
            break
        far.append(abs(one.logprobs[i] - other.logprobs[i]))
    return max(far, default=float("inf"))


def _too_large(where: str) -> str | None:
    """Why no second copy of the weights is loaded; None where it fits."""
    import psutil

    needed = _weight_bytes(where)
    if needed is None:
        return f"how large {where} is cannot be told"
    free = psutil.virtual_memory().available
    if needed <= SHARE * free:
        return None
    return f"its weights take {needed / 2**30:.1f} GB, and {free / 2**30:.1f} GB are free"


def _weight_bytes(where: str) -> int | None:
    """Size of a checkpoint's weights; None for a hub id that is not in the cache."""
    folder = Path(where)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(where, "config.json")
        if not isinstance(found, str):
            return None
        folder = Path(found).parent
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _replies(where: str, sample: Sample, dtype: str) -> list[Reply]:
    """What transformers answers, unsteered and with `PUSH`."""
    import vrga
    from vrga.demo.data import PROMPTS, prepare
    from vrga.hf.checkpoints import load

    model, processor = load(where, dtype=getattr(torch, dtype))
    inputs = prepare(processor, [sample], next(iter(PROMPTS)))
    replies = []
    fields = {name: value for name, value in PUSH.items() if name not in ("preset", "given")}
    for config in (VRGAConfig(gain=1), VRGAConfig.published(**fields)):
        with vrga.patch(model, config, tokenizer=processor) as patch:
            if config.steers:
                patch.given = lambda grids: [
                    [torch.ones(grid.h, grid.w, dtype=torch.bool) for grid in row] for row in grids
                ]
            out = model.generate(
                **inputs, max_new_tokens=TOKENS, do_sample=False, return_dict_in_generate=True,
                output_logits=True,
            )  # fmt: skip
        ids = out.sequences[0, inputs["input_ids"].shape[1] :]
        rows = torch.stack(out.logits, 1)[0].float().log_softmax(-1)
        logprobs = rows.gather(1, ids[:, None])[:, 0].tolist()
        tokens = [processor.tokenizer.decode([i]) for i in ids.tolist()]
        replies.append(Reply("".join(tokens), tokens, logprobs, None))
    return replies
