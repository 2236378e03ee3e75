"""A greedy answer, pass by pass, that may go on from the cache of an earlier one."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer

from vrga.annotations import Cache, Model
from vrga.hf.cache import cache_in
from vrga.hf.host import Host
from vrga.hf.inputs import TYPES


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
    ends = (grids.prod(1) // merged).cumsum(0)  # of each image, in image tokens
    return int((ends <= (ids == model.config.image_token_id).sum()).sum())


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
