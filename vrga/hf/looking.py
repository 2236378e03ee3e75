"""Prompts of a second, closer look, and going on from the cache of the first."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from vrga.foreign import Cache, Model
from vrga.hf.cache import NAMES
from vrga.hf.families import family_of
from vrga.hf.inputs import PIXELS
from vrga.hf.layouts import by_patches


def check_pictures(model: Model, processor) -> None:
    """Refuse models whose processor does more to a picture than shrink it.

    Raises:
        ValueError: such a model, or one that vrga does not know.
    """
    family = family_of(model)
    kind = model.config.model_type
    if family.layout is not by_patches or not hasattr(processor, "image_processor"):
        raise ValueError(
            f"{kind} models cannot look closer here: their processor cuts pictures into tiles of "
            "its own, or makes all of one size, so that a crop is not seen as it is; the Qwen-VL "
            "families (qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe) can"
        )


def token_side(processor) -> int:
    """Pixels of a side of one visual token."""
    images = processor.image_processor
    return images.patch_size * images.merge_size


def chat_inputs(
    processor, images: Sequence[Image.Image], question: str, pixels: int | None = None
) -> dict[str, Tensor]:
    """Model inputs of one turn: images, then the question.

    Args:
        pixels: most pixels of each image; None is what the processor allows.
    """
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
    chat = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return batch_inputs(processor, [chat], list(images), pixels)


def batch_inputs(
    processor, chats: list[str], images: list[Image.Image], pixels: int | None = None
) -> dict[str, Tensor]:
    """Model inputs of a left-padded batch; `pixels` as of `chat_inputs`."""
    more = {}
    if pixels is not None:
        least = min(pixels, token_side(processor) ** 2)
        more["images_kwargs"] = {"size": {"shortest_edge": least, "longest_edge": pixels}}
    processor.tokenizer.padding_side = "left"
    return dict(processor(text=chats, images=images, padding=True, return_tensors="pt", **more))


def seen_sizes(processor, inputs: dict[str, Tensor]) -> list[tuple[int, int]]:
    """(width, height) in pixels of each image as the model sees it."""
    side = processor.image_processor.patch_size
    return [(w * side, h * side) for _, h, w in inputs["image_grid_thw"].tolist()]


def as_seen(processor, image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image of this size in pixels, shrunk or enlarged as the processor does it."""
    if image.size == tuple(size):
        return image
    return image.resize(size, Image.Resampling(int(processor.image_processor.resample)))


def plain_cache(cache: Cache) -> bool:
    """Whether a cache can be cut: keys alone, of every token, growing as they come."""
    layers = getattr(cache, "layers", ())
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def cut(cache: Cache, length: int) -> None:
    """Keep the first `length` keys of a plain cache.

    By hand: what `crop` counts, keys kept or keys removed, differs between versions.
    """
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]


def common_start(first: Tensor, second: Tensor) -> int:
    """How many tokens two prompts, int64 [1, S] each, begin with alike."""
    length = min(first.shape[1], second.shape[1])
    differ = (first[0, :length] != second[0, :length]).nonzero()
    return int(differ[0]) if len(differ) else length


def answer_on(
    model: Model, inputs: dict[str, Tensor], cache: Cache, start: int, max_new_tokens: int
) -> Tensor:
    """Greedy answer to a prompt of which the first `start` tokens are in the cache.

    Args:
        inputs: of the whole prompt; images that end before `start` are not encoded again, and none
            lies across it.
        cache: plain, of `start` keys; it grows.

    Returns:
        The new tokens, int64 [1, T].
    """
    outer = family_of(model).modules(model)[0]
    name = next(name for name in NAMES if name in inspect.signature(outer.forward).parameters)
    ids, grids = inputs["input_ids"], inputs["image_grid_thw"]
    # generate() wants the sizes of all images for the positions, and of the new ones alone for the
    # pixels; so the prompt's rest is run by hand, and generate() goes on from its first token.
    images = (ids == model.config.image_token_id)[0]
    merged = model.config.vision_config.spatial_merge_size**2
    held, known = int(images[:start].sum()), 0
    while held:
        held -= int(grids[known].prod()) // merged
        known += 1
    taken = int(grids[:known].prod(1).sum())
    accepted = inspect.signature(outer.get_rope_index).parameters
    told = {k: v for k, v in inputs.items() if k in accepted}
    positions, deltas = outer.get_rope_index(**told)
    kinds = {k: v[:, start:] for k, v in inputs.items() if k == "mm_token_type_ids"}
    output = model(
        input_ids=ids[:, start:],
        attention_mask=inputs["attention_mask"],
        position_ids=positions[..., start:],
        pixel_values=inputs["pixel_values"][taken:],
        image_grid_thw=grids[known:],
        use_cache=True,
        logits_to_keep=1,
        **{name: cache},
        **kinds,
    )
    token = output.logits[:, -1].argmax(-1, keepdim=True)
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, (list, tuple)) else [ends])
    if max_new_tokens == 1 or int(token) in ends:
        return token
    outer.rope_deltas = deltas
    more = {k: v for k, v in inputs.items() if not k.startswith(PIXELS)}
    more["input_ids"] = torch.cat([ids, token], 1)
    for key in ("attention_mask", "mm_token_type_ids"):
        if key in more:
            fill = int(key == "attention_mask")
            more[key] = torch.nn.functional.pad(more[key], (0, 1), value=fill)
    sequences = model.generate(
        **more, **{name: cache}, max_new_tokens=max_new_tokens - 1, do_sample=False
    )
    return sequences[:, ids.shape[1] :]
