"""One question about one or several images, answered from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from vrga.closer import Closer, look_closer
from vrga.config import VRGAConfig
from vrga.demo.fine.settings import CLOSER, FINDING
from vrga.hf.checkpoints import load
from vrga.images import read_image
from vrga.patching import patch
from vrga.region import Region
from vrga.trace import Trace
from vrga.zoom import Zoom


def answer(
    model: str | None,
    paths: list[Path],
    question: str,
    config: VRGAConfig | None,
    *,
    max_new_tokens: int = 256,
    trace: Path | None = None,
) -> tuple[str, Region | None, list[Image.Image], dict[str, str]]:
    """Load a checkpoint and let it answer greedily.

    Args:
        model: checkpoint folder or hub id; None is the embedded model.
        paths: image files.
        config: how to steer; None does not.
        trace: a folder for traces with maps, `base` without and `steered` with steering; the
            model answers twice then.

    Returns:
        (answer, region or None, images, why a trace could not be written by its name).

    Raises:
        OSError: an image that cannot be read; FileNotFoundError: no such checkpoint.
        ValueError: as of `load` and `patch`.
    """
    images = [read_image(path) for path in paths]
    loaded, processor = load(model)
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
    chat = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(text=[chat], images=images, return_tensors="pt").to(loaded.device)
    if trace is not None:
        base = _recorded(loaded, processor, inputs, images, _off(config), max_new_tokens)
        if config is None:
            return *base[:2], images, _unsaved(trace, base=base[2])
        text, region, found = _recorded(loaded, processor, inputs, images, config, max_new_tokens)
        return text, region, images, _unsaved(trace, base=base[2], steered=found)
    if config is None:
        return _generate(loaded, processor, inputs, max_new_tokens), None, images, {}
    with patch(loaded, config) as steered:
        text = _generate(loaded, processor, inputs, max_new_tokens)
        return text, steered.region[0], images, {}


def answer_closer(
    model: str | None,
    paths: list[Path],
    question: str,
    config: VRGAConfig | None,
    zoom: Zoom | None,
    *,
    max_new_tokens: int = 256,
    trace: Path | None = None,
) -> tuple[Closer, list[Image.Image], dict[str, str]]:
    """Load a checkpoint and let it answer with a closer look where that is worth it.

    Args:
        model, paths, question: as of `answer`.
        config, zoom: None is what is best for the model: for "fine" what was chosen for it, else
            `VRGAConfig.paper()` and `Zoom()`.
        trace: a folder for the answer's trace, `closer`, and the decision, `closer.json`.

    Returns:
        (answer, the original images, why the trace could not be written by its name).

    Raises:
        OSError, ValueError: as of `answer` and `look_closer`.
    """
    images = [read_image(path) for path in paths]
    if model == "fine":
        config = FINDING if config is None else config
        zoom = CLOSER if zoom is None else zoom
    loaded, processor = load(model)
    found = look_closer(
        loaded, processor, images, question, config, zoom,
        max_new_tokens=max_new_tokens, record=trace is not None,
    )  # fmt: skip
    if trace is None:
        return found, images, {}
    failed = _unsaved(trace, closer=found.trace)
    trace.mkdir(parents=True, exist_ok=True)
    (trace / "closer.json").write_text(json.dumps(found.numbers(), indent=1) + "\n", "utf-8")
    return found, images, failed


def _unsaved(folder: Path, **traces: Trace) -> dict[str, str]:
    """Save traces by their names; why some could not be: the answer is not to be lost for it."""
    failed = {}
    for name, trace in traces.items():
        try:
            trace.save(folder / name)
        except (ValueError, OSError) as error:
            failed[name] = str(error)
    return failed


def _off(config: VRGAConfig | None) -> VRGAConfig:
    """What the base run is patched with: `config` with gain 1, which steers nothing.

    A hard mask and an ablation have no gain: then it is the default method with gain 1, whose
    heads and region are others than those of `config`.
    """
    if config is None or config.method not in ("vrga", "released"):
        return VRGAConfig(gain=1)
    return replace(config, gain=1)


def _recorded(
    model: nn.Module,
    processor,
    inputs,
    images: list[Image.Image],
    config: VRGAConfig,
    max_new_tokens: int,
) -> tuple[str, Region, Trace]:
    """The answer, its region, and its trace with texts, images and the visual heads' maps."""
    with patch(model, config, tokenizer=processor.tokenizer) as steered:
        with steered.record(maps="visual", layer_maps=True) as trace:
            text = _generate(model, processor, inputs, max_new_tokens)
        region = steered.region[0]
    # Models that cut an image into tiles have more grids than there are images to show.
    shown = [images] if len(images) == len(region.grids) else None
    return text, region, trace.attach(images=shown)


def _generate(model: nn.Module, processor, inputs, max_new_tokens: int) -> str:
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new = tokens[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(new, skip_special_tokens=True)[0].strip()
