"""Loading checkpoints, without running code of theirs."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from vrga.annotations import Config, Model, Processor
from vrga.hf.chosen_config import own_file
from vrga.hf.files import check_model, check_weights, embedded, first_line, read_config
from vrga.hf.processors import load_processor


def load(
    name: str | Path | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: str | dict | None = None,
    attn_implementation: str | None = None,
) -> tuple[Model, Processor]:
    """Load a checkpoint: the model in eval mode, and its processor.

    Args:
        name: a hub id, a local folder, a Look-Back checkpoint by its short name
            ("semantic-back-7b", "solution-back-7b"), or one of the small models inside this
            package: None, "fine", which looks closer, or "chain", which can look back as well.
        dtype: of the weights; "auto" is the checkpoint's own.
        device_map: as in transformers; None loads to the CPU, or to the GPU of this process.
        attn_implementation: the attention backend of prefills, e.g. "flash_attention_2".

    Returns:
        (model, processor). Without torchvision the Qwen families' processors take images but no
        videos.

    Raises:
        FileNotFoundError: a local path that does not exist or holds no checkpoint.
        ValueError: pickled, damaged or infinite weights, missing or extra tensors, an index that
            names other files than safetensors beside it, an unsupported architecture, or a
            checkpoint that needs code of its own: none is ever run.
        OSError: a hub id that cannot be reached.
    """
    where = embedded() if name is None else check_model(name)
    found = read_config(where)  # before transformers reads anything: its files may name code
    check_weights(where, found)

    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText

    config = _config(where)
    device_map = _own_gpu() if device_map is None else device_map
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            where,
            config=config,
            dtype=dtype,
            device_map=device_map,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ValueError(
            f"a weight file of {where} is damaged or cut short ({error}): download it again"
        ) from error
    except (AssertionError, RuntimeError) as error:  # torch's, of a device that is not there
        if device_map is None:
            raise
        there = torch.cuda.device_count()
        raise ValueError(
            f"device_map={device_map!r}: {where} cannot be put there ({first_line(error)}); this "
            f"machine has {there} CUDA devices: name one of them, 'auto' or 'cpu'"
        ) from error
    _check_tensors(where, report)
    check_finite(where, model)
    own_file(where, fetch=True)  # into the cache, where `vrga.patch` looks for it
    return model.eval(), load_processor(where)


def _own_gpu() -> dict[str, int] | None:
    """Where this process puts a model: its own GPU, of several processes; None is the CPU.

    None, too, under ZeRO-3, which places parts of the weights itself.
    """
    if not torch.cuda.is_available():
        return None
    from transformers.integrations import is_deepspeed_zero3_enabled

    return None if is_deepspeed_zero3_enabled() else {"": int(os.environ.get("LOCAL_RANK", 0))}


def _config(where: str | Path) -> Config:
    """The config of a checkpoint whose model_type is known.

    Raises:
        ValueError: one that transformers cannot make sense of.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(where, trust_remote_code=False)
    except OSError:
        raise
    except Exception as error:  # whatever a wrong type in it leads to
        raise ValueError(f"config.json of {where} makes no model: {first_line(error)}") from error


def check_finite(where: object, model: Model) -> None:
    """Refuse weights with NaN or infinity, which answer with noise.

    One pass over the weights, without a copy of any; those that are not in memory yet are left
    out.

    Raises:
        ValueError: naming the first such tensors.
    """
    checked: dict[torch.device, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() and tensor.device.type != "meta":
            try:
                low, high = torch.aminmax(tensor.detach())
            except RuntimeError:  # float8 has no such reduction
                low, high = torch.aminmax(tensor.detach().float())
            sound = (low.isfinite() & high.isfinite()).reshape(())
            checked.setdefault(tensor.device, []).append((name, sound))
    bad = []
    for found in checked.values():  # one wait for each device
        finite = torch.stack([flag for _, flag in found]).tolist()
        bad += [name for (name, _), ok in zip(found, finite, strict=True) if not ok]
    if bad:
        raise ValueError(
            f"the checkpoint {where} has NaN or infinity in {len(bad)} tensors, among them "
            f"{', '.join(bad[:3])}: it is damaged, or of a training that diverged, or its numbers "
            "do not fit into the dtype that was asked for"
        )


def _check_tensors(where: str | Path, report: dict) -> None:
    """Refuse weights that transformers would fill with random numbers, or leave out, in silence."""
    for kind, told in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "has unknown"),
        ("mismatched_keys", "has misshapen"),
    ):
        found = sorted(str(key) for key in report.get(kind) or ())
        if found:
            raise ValueError(
                f"the checkpoint {where} {told} {len(found)} tensors, among them "
                f"{', '.join(found[:3])}: it is not complete, or of another architecture than its "
                "config.json says"
            )
