"""One question about one or several images, answered from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from vrga.answers.ask import foreign
from vrga.answers.spoken import generated, inputs_of, recorded
from vrga.closer.closer import Closer
from vrga.closer.look import look_closer
from vrga.closer.zoom import Zoom
from vrga.config import VRGAConfig, unsteered_config
from vrga.hf.checkpoints import load
from vrga.images import read_image
from vrga.method.region import Region
from vrga.recording.token_texts import Streamed
from vrga.recording.trace import Trace
from vrga.steering.patching import patch


def answer(
    model: str | None,
    paths: list[Path],
    question: str,
    config: VRGAConfig | None,
    *,
    max_new_tokens: int = 256,
    trace: Path | None = None,
    system: str | None = None,
    max_pixels: int | None = None,
    dtype: str = "auto",
    device_map: str | None = None,
    stream: Callable[[str], object] | None = None,
    warn: Callable[[str], object] = lambda told: None,
) -> tuple[str, Region | None, list[Image.Image], dict[str, str]]:
    """Load a checkpoint and let it answer greedily.

    Args:
        model: checkpoint folder or hub id; None is the embedded model.
        paths: image files.
        config: how to steer; None does not.
        trace: a folder for traces with maps, `base` without and `steered` with steering; the
            model answers twice then.
        system, max_pixels: as of `inputs_of`; dtype, device_map: as of `load`.
        stream: is given the answer piece by piece, as it is spoken.
        warn: is told what the user should know of the answer.

    Returns:
        (answer, region or None, images, why a trace could not be written by its name).

    Raises:
        OSError: an image that cannot be read; FileNotFoundError: no such checkpoint.
        ValueError: as of `load` and `patch`.
    """
    images = [read_image(path) for path in paths]
    loaded, processor = load(model, dtype=dtype, device_map=device_map)
    told = foreign(loaded, images)
    if told is not None:
        warn(told)
    inputs = inputs_of(loaded, processor, images, question, system=system, max_pixels=max_pixels)
    streamer = None if stream is None else Streamed(processor.tokenizer.decode, stream)
    ask = processor, inputs, images, max_new_tokens
    if trace is not None:
        spoken = streamer if config is None else None
        with patch(loaded, unsteered_config(config), tokenizer=processor.tokenizer) as patched:
            base = recorded(patched, *ask, spoken)
        if config is None:
            return *base[:2], images, _unsaved(trace, base=base[2])
        with patch(loaded, config, tokenizer=processor.tokenizer) as patched:
            text, region, found = recorded(patched, *ask, streamer)
        return text, region, images, _unsaved(trace, base=base[2], steered=found)
    if config is None:
        text = generated(loaded, processor, inputs, max_new_tokens, streamer)
        return text, None, images, {}
    with patch(loaded, config, tokenizer=processor.tokenizer) as steered:
        text = generated(loaded, processor, inputs, max_new_tokens, streamer)
        return text, steered.region[0], images, {}


def answer_closer(
    model: str | None,
    paths: list[Path],
    question: str,
    config: VRGAConfig | None,
    zoom: Zoom,
    *,
    max_new_tokens: int = 256,
    trace: Path | None = None,
) -> tuple[Closer, list[Image.Image], dict[str, str]]:
    """Load a checkpoint and let it answer with a closer look where that is worth it.

    Args:
        model, paths, question: as of `answer`.
        config, zoom: as of `look_closer`.
        trace: a folder for the answer's trace, `closer`, and the decision, `closer.json`.

    Returns:
        (answer, the original images, why the trace could not be written by its name).

    Raises:
        OSError, ValueError: as of `answer` and `look_closer`.
    """
    images = [read_image(path) for path in paths]
    loaded, processor = load(model)
    found = look_closer(
        loaded, processor, images, question, config, zoom,
        max_new_tokens=max_new_tokens, record=trace is not None,
    )  # fmt: skip
    if trace is None:
        return found, images, {}
    assert found.trace is not None  # it was recorded
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
