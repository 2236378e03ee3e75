"""ask: one question about one or several images, answered without and with VRGA, in one call."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from vrga.annotations import Model, Processor, Tokenizer
from vrga.answers.answer import Answer
from vrga.answers.spoken import inputs_of, recorded
from vrga.config import VRGAConfig, unsteered_config
from vrga.hf.chosen_config import checkpoint_of, choose
from vrga.hf.families import unwrapped
from vrga.hf.files import embedded
from vrga.hf.pipelines import parts_of
from vrga.images import read_image
from vrga.recording.choices import Heads
from vrga.recording.trace import Trace
from vrga.steering.patching import Patch, patch, patch_of

if TYPE_CHECKING:
    from vrga.hf.pipelines import Pipeline

Picture = str | Path | bytes | Mapping | Image.Image


def ask(
    model: Model | Pipeline,
    processor: Processor | None,
    images: Picture | Sequence[Picture],
    question: str,
    config: VRGAConfig | str | None = None,
    *,
    base: bool = True,
    max_new_tokens: int = 256,
    maps: Heads = "visual",
    streamers: Mapping[str, object] | None = None,
) -> Answer:
    """Ask a question about images, greedily, with VRGA and for comparison without it.

    The model is afterwards as it was. One that is patched is asked through its own patch: its
    query, `given`, `ablated` and implementation hold, and its config unless one is given here.

    Args:
        model: a loaded model of a supported family, or a pipeline of transformers.
        processor: its processor; None takes that of a pipeline.
        images: one or several, each a path or an image of Pillow's.
        question: what to ask.
        config: how to steer, as of `vrga.patch`: a `VRGAConfig`, a preset's name, or None.
        base: answer without VRGA, too, which takes about as long again.
        max_new_tokens: longest answer, in tokens.
        maps: heads whose maps the traces keep, as of `Patch.record`.
        streamers: what `generate` takes as its streamer, of the answers "base" and "steered".

    Returns:
        The answer, with its region, steps and trace.

    Raises:
        OSError: an image that cannot be read.
        ValueError: no image, an empty question, streamers of other answers, a processor without a
            chat template, a patch that is switched off, or as of `vrga.patch`.
        RuntimeError: the model's patch records already.
    """
    model, own, _ = parts_of(model)
    processor = own if processor is None else processor
    check_question(question)
    _check(max_new_tokens, streamers)
    shown = _read(images)
    told = foreign(model, shown)
    if told is not None:
        warnings.warn(told, stacklevel=2)
    inputs = inputs_of(model, processor, shown, question)
    assert processor is not None  # `inputs_of` refuses it
    told_of = {"base": None, "steered": None, **(streamers or {})}
    base_text: str | None = None
    base_trace: Trace | None = None
    with _patched(model, config, processor.tokenizer) as steered:
        chosen = steered.config
        asked = steered, processor, inputs, shown, max_new_tokens
        if base:
            with _unsteered(steered):
                base_text, _, base_trace = recorded(*asked, told_of["base"], maps)
        text, region, trace = recorded(*asked, told_of["steered"], maps)
        steps = steered.steps[0]
    return Answer(text, base_text, region, steps, trace, question, shown, chosen, base_trace)


def _read(images: Picture | Sequence[Picture]) -> list[Image.Image]:
    """The images as Pillow's.

    Raises:
        OSError: one that cannot be read. ValueError: none.
    """
    listed: list = list(images) if isinstance(images, (list, tuple)) else [images]
    if not listed:
        raise ValueError("no image is given: VRGA steers to a region of an image")
    return [read_image(image) for image in listed]


def _check(max_new_tokens: object, streamers: Mapping[str, object] | None) -> None:
    """Refuse a length that is none, and streamers of other answers."""
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int):
        raise ValueError(f"max_new_tokens={max_new_tokens!r} is not a whole number")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be ≥ 1")
    unknown = [name for name in streamers or () if name not in ("base", "steered")]
    if unknown:
        raise ValueError(f"streamers of {', '.join(unknown)}: the answers are base and steered")


def check_question(question: object) -> None:
    """Raise ValueError for what asks nothing."""
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"the question {question!r} is empty: say what to ask about the image")


def foreign(model: Model, images: list[Image.Image]) -> str | None:
    """What to know where the embedded model is shown other pictures than its own, else None."""
    if checkpoint_of(unwrapped(model))[0] != str(embedded()):
        return None
    from vrga.demo.data import is_card

    other = [image for image in images if not is_card(image)]
    if not other:
        return None
    return (
        "this is the small embedded model, which reads coloured letters on the cards that it was "
        "trained on and nothing else: its answer about another picture means nothing. Load a "
        "checkpoint for photos: --model, or vrga.load(...), with a folder or a hub id such as "
        "Qwen/Qwen2.5-VL-7B-Instruct"
    )


@contextmanager
def _patched(
    model: Model, config: VRGAConfig | str | None, tokenizer: Tokenizer
) -> Iterator[Patch]:
    """The model's own patch, whose config is put back at the end, or one for the time being."""
    found = patch_of(model)
    if found is None:
        with patch(model, config, tokenizer=tokenizer) as steered:
            yield steered
        return
    if not found.enabled:
        raise ValueError(
            "the model's patch is switched off: set patch.enabled = True, or call "
            "vrga.unpatch(model) first"
        )
    before = found.config
    try:
        if config is not None:
            found.config = choose(config, {}, *checkpoint_of(found.model)).config
        yield found
    finally:
        found.config = before


@contextmanager
def _unsteered(steered: Patch) -> Iterator[None]:
    """A patch that changes nothing for a while, and measures."""
    config, ablated = steered.config, steered.ablated
    steered.config, steered.ablated = unsteered_config(config), None
    try:
        yield
    finally:
        steered.config, steered.ablated = config, ablated
