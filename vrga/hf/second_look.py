"""Prompts of a second, closer look, and going on from the cache of the first."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer

from vrga.annotations import Cache, Model
from vrga.hf.cache import cache_in
from vrga.hf.families import FAMILIES, family_of
from vrga.hf.host import Host
from vrga.hf.inputs import TYPES
from vrga.hf.layouts import by_patches


def check_kind(kind: object) -> None:
    """Refuse a kind of model whose processor does more to a picture than shrink it.

    Args:
        kind: the "model_type" of its config.

    Raises:
        ValueError: such a kind, or one that vrga does not know.
    """
    if kind not in FAMILIES or FAMILIES[str(kind)].layout is not by_patches:
        raise ValueError(
            f"{kind} models cannot look closer here: their processor cuts pictures into tiles of "
            "its own, or makes all of one size, so that a crop is not seen as it is; the Qwen-VL "
            "families (qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe) can"
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


class Greedy:
    """A greedy answer to one prompt, pass by pass, as generate() would give it.

    By hand, because generate() wants the sizes of all images for the positions of a prompt that is
    in the cache in part, and of the new ones alone for the pixels; and because it takes as long to
    set up as a small model takes for its prompt.

    Args:
        model: of a Qwen-VL family, on whose device the inputs are.
        inputs: of the whole prompt, one row without padding; images that end before `start` are
            not encoded again, and none lies across it.
        max_new_tokens: longest answer.
        cache: plain, of the prompt's first `start` keys; it grows. None begins one.

    Attributes:
        cache: of what has gone through the model.
    """

    def __init__(
        self,
        model: Model,
        inputs: dict[str, Tensor],
        max_new_tokens: int,
        cache: Cache | None = None,
        start: int = 0,
    ):
        self.model, self.cache = model, cache
        host = Host(model)
        self._name, outer = host.cache_name, host.outer
        self._ids, self._mask = inputs["input_ids"], inputs["attention_mask"]
        self._length = self._ids.shape[1]
        accepted = inspect.signature(outer.get_rope_index).parameters
        told = {k: v for k, v in inputs.items() if k in accepted}
        positions, self._deltas = outer.get_rope_index(**told)
        self._choose, self._ended = _greedy(model, self._ids, max_new_tokens)
        self._next = {k: v[:, start:] for k, v in inputs.items() if k in ("input_ids", TYPES)}
        self._next["position_ids"] = positions[..., start:]
        grids, pixels = inputs["image_grid_thw"], inputs["pixel_values"]
        known = _images_in(model, self._ids[0, :start], grids)
        self._next["image_grid_thw"] = grids[known:]
        self._next["pixel_values"] = pixels[int(grids[:known].prod(1).sum()) :]

    @property
    def new(self) -> Tensor:
        """The tokens chosen so far, int64 [1, T]."""
        return self._ids[:, self._length :]

    def go_on(self) -> bool:
        """One pass, and the token that it chooses; whether the answer goes on behind it."""
        held = {} if self.cache is None else {self._name: self.cache}
        output = self.model(
            **self._next, attention_mask=self._mask, use_cache=True, logits_to_keep=1, **held
        )
        self.cache = cache_in(output)
        scores = self._choose(self._ids, output.logits[:, -1].float())
        token = scores.argmax(-1, keepdim=True)
        self._ids = torch.cat([self._ids, token], 1)
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        places = self._deltas + self._ids.shape[1] - 1
        rows = len(self._next["position_ids"])
        self._next = {"input_ids": token, "position_ids": places.expand(rows, 1, 1)}
        return not bool(self._ended(self._ids, scores).all())


def _images_in(model: Model, ids: Tensor, grids: Tensor) -> int:
    """How many of a prompt's images the tokens [S] hold."""
    merged = model.config.vision_config.spatial_merge_size**2
    held, known = int((ids == model.config.image_token_id).sum()), 0
    while held:
        held -= int(grids[known].prod()) // merged
        known += 1
    return known


def _greedy(
    model: Model, ids: Tensor, max_new_tokens: int
) -> tuple[LogitsProcessorList, StoppingCriteriaList]:
    """What generate() does to logits before the largest is taken, and when it ends: the numbers
    that a checkpoint brings for it, such as Qwen's repetition penalty, count here as well."""
    given = {"do_sample": False, "max_new_tokens": max_new_tokens}
    config = model._prepare_generation_config(None, **given)[0]
    config.max_length = ids.shape[1] + max_new_tokens
    model._prepare_special_tokens(config, device=ids.device)
    choose = model._get_logits_processor(
        config, input_ids_seq_length=ids.shape[1], encoder_input_ids=ids,
        prefix_allowed_tokens_fn=None, logits_processor=LogitsProcessorList(),
        device=ids.device, model_kwargs={},
    )  # fmt: skip
    return choose, model._get_stopping_criteria(config, StoppingCriteriaList())
