"""One answer, greedily: what a model is given, what it says, and what is recorded of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from PIL import Image

from vrga.annotations import Model, Processor
from vrga.hf.processors import processed
from vrga.hf.tokenizers import check_text
from vrga.images import bounded
from vrga.method.region import Region
from vrga.recording.choices import Heads
from vrga.recording.trace import Trace
from vrga.steering.patching import Patch


def inputs_of(
    model: Model,
    processor: Processor,
    images: list[Image.Image],
    question: str,
    *,
    system: str | None = None,
    max_pixels: int | None = None,
) -> Mapping:
    """A model's inputs of one question: images, then the question, in the chat template.

    Args:
        system: what stands before them as the system's message.
        max_pixels: of an image; None is the processor's own.

    Raises:
        ValueError: no processor, one without a chat template or bounds in pixels, images that it
            does not take, or a text with one of the model's control tokens.
    """
    if not hasattr(processor, "apply_chat_template") or not hasattr(processor, "tokenizer"):
        raise ValueError(
            f"processor={type(processor).__name__} is none of a model with images: give the "
            "checkpoint's, AutoProcessor.from_pretrained(...)"
        )
    for name, said in (("question", question), ("system message", system or "")):
        check_text(name, said, processor.tokenizer)
    pixels = bounded(processor.image_processor, (None, max_pixels))
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
    chat = [{"role": "user", "content": content}]
    if system is not None:
        chat.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    return processed(model, processor, [text], [images], pixels).to(model.device)


def recorded(
    steered: Patch,
    processor,
    inputs: Mapping,
    images: list[Image.Image],
    max_new_tokens: int,
    streamer: object | None = None,
    maps: Heads = "visual",
) -> tuple[str, Region, Trace]:
    """The answer, its region, and its trace with texts, images and maps, those of layers too."""
    with steered.record(maps=maps, layer_maps=True) as trace:
        text = generated(steered.model, processor, inputs, max_new_tokens, streamer)
    region = steered.region[0]
    # Models that cut an image into tiles have more grids than there are images to show.
    shown = [images] if len(images) == len(region.grids) else None
    return text, region, trace.attach(processor.tokenizer, images=shown)


def generated(
    model: Model, processor, inputs: Mapping, max_new_tokens: int, streamer: object | None = None
) -> str:
    """The answer, greedily."""
    more = {} if streamer is None else {"streamer": streamer}
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, **more)
    new = tokens[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(new, skip_special_tokens=True)[0].strip()
