"""Prompts of a second, closer look, and the models that can take one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor

from vrga.annotations import Model
from vrga.hf.families import FAMILIES, family_of
from vrga.hf.layouts import by_patches

# Families whose processor shrinks a picture, and no more.
_SHRINK = {kind for kind, family in FAMILIES.items() if family.layout is by_patches}


def check_kind(kind: object) -> None:
    """Refuse a kind of model whose processor does more to a picture than shrink it.

    Args:
        kind: the "model_type" of its config.

    Raises:
        ValueError: such a kind, or one that vrga does not know.
    """
    if kind not in _SHRINK:
        raise ValueError(
            f"{kind} models cannot look closer here: their processor cuts pictures into tiles of "
            "its own, or makes all of one size, so that a crop is not seen as it is; "
            f"{', '.join(sorted(_SHRINK))} can"
        )


def check_pictures(model: Model, processor) -> None:
    """Refuse models whose processor does more to a picture than shrink it.

    Raises:
        ValueError: such a model, one that vrga does not know, or a processor without pictures.
    """
    family_of(model)  # says what it knows
    check_kind(model.config.model_type)
    if not hasattr(processor, "image_processor"):
        raise ValueError(
            f"a {type(processor).__name__} reads no pictures: give the processor of the checkpoint"
        )


def token_side(processor) -> int:
    """Pixels of a side of one visual token."""
    images = processor.image_processor
    return images.patch_size * images.merge_size


def turn_of(images: int, question: str) -> list[dict]:
    """A chat of one turn: so many images, then the question."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def most_pixels(processor, pixels: int | None) -> dict[str, object]:
    """The image processor's option for at most so many pixels of an image; none for None."""
    if pixels is None:
        return {}
    least = min(pixels, token_side(processor) ** 2)
    return {"size": {"shortest_edge": least, "longest_edge": pixels}}


def batch_inputs(
    processor, chats: list[str], images: list[Image.Image], bounds: Mapping[str, object]
) -> dict[str, Tensor]:
    """Model inputs of a left-padded batch.

    Args:
        bounds: options of the image processor, as of `most_pixels` or `vrga.images.bounded`.
    """
    more = {"images_kwargs": dict(bounds)} if bounds else {}
    processor.tokenizer.padding_side = "left"
    return dict(processor(text=chats, images=images, padding=True, return_tensors="pt", **more))


def with_crops(
    processor,
    messages: list[dict],
    first: dict[str, Tensor],
    crops: list[Image.Image],
    token: int,
    *,
    before: bool = False,
) -> tuple[dict[str, Tensor], int]:
    """Model inputs of a chat with crops behind its last picture, or before its first.

    The crops alone are read: the pictures' tokens and pixels are those of the first look.

    Args:
        messages: the chat, its images as parts {"type": "image"}.
        first: its model inputs, of one row without padding.
        crops: of the size that they are to be seen in.
        token: that stands for an image.
        before: put them before the pictures.

    Returns:
        The inputs, and how many of their first tokens are those of `first` up to the crops.
    """
    chat = processor.apply_chat_template(
        _cropped_chat(messages, len(crops), before), add_generation_prompt=True
    )
    most = max(image.width * image.height for image in crops)
    own = batch_inputs(processor, [chat], crops, most_pixels(processor, most))
    head, tail = (own, first) if before else (first, own)
    # An image's tokens stand between two tokens that begin and end it.
    end = int((head["input_ids"][0] == token).nonzero()[-1]) + 2
    start = int((tail["input_ids"][0] == token).nonzero()[0]) - 1
    inputs = {}
    for name in first:
        if name in ("pixel_values", "image_grid_thw"):
            inputs[name] = torch.cat([head[name], tail[name]])
        else:  # one column a token
            inputs[name] = torch.cat([head[name][:, :end], tail[name][:, start:]], 1)
    return inputs, 0 if before else end


def _cropped_chat(messages: list[dict], crops: int, before: bool) -> list[dict]:
    """A chat with crops in the place of its last picture, or of its first, and no other picture."""
    places = [
        (i, j)
        for i, message in enumerate(messages)
        if not isinstance(message["content"], str)
        for j, part in enumerate(message["content"])
        if part["type"] == "image"
    ]
    place = places[0 if before else -1]
    found = []
    for i, message in enumerate(messages):
        content = message["content"]
        if not isinstance(content, str):
            content = [
                own
                for j, part in enumerate(content)
                for own in ([part] * crops if (i, j) == place else [part] * ((i, j) not in places))
            ]
        found.append({**message, "content": content})
    return found


def seen_sizes(processor, inputs: dict[str, Tensor]) -> list[tuple[int, int]]:
    """(width, height) in pixels of each image as the model sees it."""
    side = processor.image_processor.patch_size
    return [(w * side, h * side) for _, h, w in inputs["image_grid_thw"].tolist()]
