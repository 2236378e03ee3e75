"""What a decode step sees of the keys: their groups, where they are hidden, how many there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from vrga.kernels.gated import GatedKeys
from vrga.kernels.reference import KeySets, key_sets
from vrga.method.prompt import visible_keys
from vrga.method.steered_keys import SteeredKeys

Made = TypeVar("Made")


class View:
    """What the layers of one forward pass that share a mask see of the state.

    Args:
        flags: of the keys, int32 [B, F], -1 on hidden ones; images: image keys of each row,
            int32 [B]; extent: int32 [B, 3] or None; all as of `decode_attention_reference`.
    """

    def __init__(self, flags: Tensor, images: Tensor, extent: Tensor | None):
        self.flags, self.images, self.extent = flags, images, extent
        self._sets: dict[tuple, KeySets] = {}

    def key_sets(self, query: Tensor, keys: int, opened: tuple, closed: tuple) -> KeySets:
        """The reference's key sets."""
        dtype = torch.promote_types(query.dtype, torch.float32)
        place = dtype, opened, closed
        if place not in self._sets:
            self._sets[place] = key_sets(
                self.flags, self.extent, keys, query.shape[2], opened, closed, dtype
            )
        return self._sets[place]


def masked(flags: Tensor, visible: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """Flags of all keys, -1 on those not visible (bool [B or 1, S]), and their extent [B, 3]."""
    visible = visible.expand(len(flags), -1)
    padded = torch.nn.functional.pad(flags, (0, keys - flags.shape[1]))
    place = torch.arange(keys, dtype=torch.int32, device=flags.device)
    extent = torch.stack(
        [
            torch.where(visible, place, keys).amin(1),
            torch.where(visible, place, -1).amax(1) + 1,
            visible.sum(1),
        ],
        1,
    )
    return torch.where(visible, padded, -1), extent.to(torch.int32)


class PassViews:
    """What the layers of one forward pass see of the keys; computed once for each mask.

    Args:
        keys: that are steered.
    """

    def __init__(self, keys: SteeredKeys):
        self.keys = keys
        self._kept: dict[tuple, tuple[Tensor | None, Any]] = {}

    def view(
        self, mask: Tensor | None, query: Tensor, keys: int, past: int, window: int | None
    ) -> View:
        """Flags, image keys and extent for sums over groups.

        Args:
            mask, keys, window: of the layer's call.
            query: [B, H, Q, d]; past: position of its first row.
        """
        return self._once(self._view, mask, query, keys, past, window)

    def bias(
        self,
        layer: int,
        mask: Tensor | None,
        query: Tensor,
        keys: int,
        past: int,
        window: int | None,
    ) -> Tensor:
        """What is added to the scores of one query row, [B, H, S]; arguments likewise."""
        visible = self._once(self._visible, mask, query, keys, past, window)
        bias = self.keys.bias(layer, query, keys, _first(query, keys, past))
        if visible is None:
            return bias
        return torch.where(visible[:, None], bias, torch.finfo(bias.dtype).min)

    def gated(
        self, mask: Tensor | None, query: Tensor, keys: int, past: int, window: int | None
    ) -> GatedKeys:
        """What a gate that one query row decides is made of; arguments likewise."""
        return self._once(self._gated, mask, query, keys, past, window)

    def _gated(
        self, mask: Tensor | None, query: Tensor, keys: int, past: int, window: int | None
    ) -> GatedKeys:
        rows = self.keys.table(query, keys, _first(query, keys, past))
        visible = self._once(self._visible, mask, query, keys, past, window)
        images: Tensor | None = None
        if window is None:
            images = self.keys.on(query.device).images
        if visible is None:
            images = rows[:, 0].sum(1) if images is None else images
            return GatedKeys.of(rows, (keys / images)[:, None, None], None)
        if images is None:
            images = (rows[:, 0] * visible).sum(1)
        per_image = visible.sum(1) / images
        return GatedKeys.of(rows, per_image[:, None, None], ~visible[:, None])

    def _once(
        self, make: Callable[..., Made], mask: Tensor | None, query: Tensor, *numbers: object
    ) -> Made:
        if torch.compiler.is_compiling():  # which does not like id()
            return make(mask, query, *numbers)
        place = make.__name__, id(mask), *numbers, query.shape[2], query.device
        if place not in self._kept:
            # Holding the mask keeps its id its own.
            self._kept[place] = mask, make(mask, query, *numbers)
        return self._kept[place][1]

    def _view(
        self, mask: Tensor | None, query: Tensor, keys: int, past: int, window: int | None
    ) -> View:
        placed, first = self.keys.on(query.device), _first(query, keys, past)
        flags, images = placed.flags[:, first : first + keys], placed.images
        visible = self._once(self._visible, mask, query, keys, past, window)
        extent = None
        if visible is not None:
            flags, extent = masked(flags, visible, keys)
        if window is not None:
            images = ((flags >= 0) & (flags & 1 > 0)).sum(1).to(torch.int32)
        return View(flags, images, extent)

    def _visible(
        self, mask: Tensor | None, query: Tensor, keys: int, past: int, window: int | None
    ) -> Tensor | None:
        """Keys that the last query row sees, bool [B or 1, S]; None for all.

        With a window there is one query row.
        """
        visible = None if mask is None else visible_keys(mask, keys)
        if window is not None and keys > window:
            # Some backends are told of the window instead of being given a mask of it.
            first = _first(query, keys, past)
            place = torch.arange(first, first + keys, device=query.device)
            near = ((place > past - window) & (place <= past))[None]
            visible = near if visible is None else visible & near
        return visible


def _first(query: Tensor, keys: int, past: int) -> int:
    """Position of the first key that a layer is given.

    A sliding window's cache drops the first keys. A cache may also have been cut below the prompt
    (assisted decoding does).
    """
    return max(past + query.shape[2] - keys, 0)
