"""look_closer: find where the question looks, crop the original there, and ask again."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from vrga.annotations import Model
from vrga.closer.back_looks import BackLooks
from vrga.closer.closer import Closer
from vrga.closer.two_looks import TwoLooks
from vrga.closer.zoom import Zoom
from vrga.config import VRGAConfig
from vrga.hf.families import unwrapped
from vrga.hf.second_look import check_pictures, turn_of
from vrga.hf.tokenizers import check_text
from vrga.images import read_image
from vrga.steering.patching import patch

VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".gif")


def look_closer(
    model: Model,
    processor,
    images: Image.Image | str | Path | Sequence[Image.Image | str | Path],
    question: str,
    config: VRGAConfig | str | None = None,
    zoom: Zoom | None = None,
    *,
    max_new_tokens: int = 256,
    record: bool = False,
    streamer: object | None = None,
) -> Closer:
    """Answer a question about pictures; where its region is small, look at the originals there.

    The first look is an ordinary prompt: the pictures as the processor shrinks them, and the
    question. Its prefill tells the region. Where that is small, and the original holds more than
    was seen, the same question is asked about the pictures and crops of the originals; else the
    first answer goes on, as if nothing had been asked.

    With ``Zoom(when="back")`` the model says when: at each <back> that it writes the place is found
    from there and cropped, and the answer goes on. An answer without a <back> is the plain one.

    Args:
        model, processor: of a Qwen-VL family, not patched.
        images: PIL images or image files, one or several.
        question: asked of both looks, as it stands.
        config: how the region is found and steered to, as of `vrga.patch`: None is what the
            checkpoint brings in vrga_config.json, else the paper's.
        zoom: when and where to look closer; None is `Zoom()`.
        max_new_tokens: longest answer; it is greedy.
        record: measure the answer, see `Closer.trace`; the first look's cache is not reused then.
        streamer: what `generate` takes as its streamer; it is told of both looks, each from its
            prompt to its end. It needs `record`.

    Raises:
        ValueError: a video, no image, an empty question or one with a control token, a model whose
            processor does more than shrink pictures, or a model that is patched already.
        OSError: an image file that cannot be read.

    Warns:
        UserWarning: pictures that the model sees as they are, so that there is nothing to gain.
    """
    zoom = Zoom() if zoom is None else zoom
    _check(zoom, question, max_new_tokens, streamer, record)
    model = unwrapped(model)
    check_pictures(model, processor)
    check_text("question", question, processor.tokenizer)
    looks = looks_of(zoom)(model, processor, zoom, max_new_tokens, record, streamer)
    originals = _pictures(images)
    started = time.perf_counter()
    messages = turn_of(len(originals), question)
    chat = processor.apply_chat_template(messages, add_generation_prompt=True)
    with patch(model, config, tokenizer=processor.tokenizer) as steered, torch.inference_mode():
        inputs = looks.first_inputs(chat, originals)
        found = looks.answer(steered, messages, originals, inputs, started)
    if found.pictures.shows_all:
        warnings.warn(
            f"{found.decision.reason}; look_closer is for pictures of more pixels than the model "
            "is given",
            stacklevel=2,
        )
    return found


def _check(
    zoom: object, question: object, max_new_tokens: object, streamer: object, record: bool
) -> None:
    """Refuse arguments that are none."""
    if not isinstance(zoom, Zoom):
        raise ValueError(f"zoom={zoom!r} is not a vrga.Zoom")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"question={question!r}: give what to ask, as text")
    if (
        isinstance(max_new_tokens, bool)
        or not isinstance(max_new_tokens, int)
        or max_new_tokens < 1
    ):
        raise ValueError(f"max_new_tokens={max_new_tokens!r} is out of range: an integer from 1")
    if streamer is not None and not record:
        raise ValueError("a streamer follows generate(), which record=True asks with: set it")


def looks_of(zoom: Zoom) -> type[TwoLooks]:
    """How questions are asked: a look before the answer, or at each <back> of it."""
    return BackLooks if zoom.when == "back" else TwoLooks


def _pictures(images) -> list[Image.Image]:
    """The images as RGB."""
    given = images if isinstance(images, (list, tuple)) else [images]
    found = []
    for one in given:
        if isinstance(one, (str, Path)) and Path(one).suffix.lower() in VIDEOS:
            raise ValueError(f"{one} is a video, and a closer look is taken at pictures alone")
        if isinstance(one, (str, Path, Image.Image)):
            found.append(read_image(Path(one) if isinstance(one, str) else one))
        else:
            frames = isinstance(one, (list, tuple)) or getattr(one, "ndim", 0) >= 4
            kind = "a video, or a list of frames" if frames else f"a {type(one).__name__}"
            raise ValueError(
                f"images holds {kind}: give PIL images or image files; a closer look is taken at "
                "pictures alone"
            )
    if not found:
        raise ValueError("images is empty: give one PIL image or image file at least")
    return found
