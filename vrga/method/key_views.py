"""What a decode step sees of the keys: their groups, where they are hidden, how many there are."""

from __future__ import annotations

import torch
from torch import Tensor

from vrga.kernels.reference import KeySets, key_sets
from vrga.method.prompt import visible_keys


class View:
    """What the layers of one forward pass that share a mask see of the state.

    Args:
        flags: of the keys, int32 [B, F], -1 on hidden ones; images: image keys of each row,
            int32 [B]; extent: int32 [B, 3] or None; all as of `decode_attention_reference`.
    """

    def __init__(self, flags: Tensor, images: Tensor, extent: Tensor | None):
        self.flags, self.images, self.extent = flags, images, extent
        self._sets: dict[torch.dtype, KeySets] = {}

    def key_sets(self, query: Tensor, keys: int, opened: tuple, closed: tuple) -> KeySets:
        """The reference's key sets."""
        dtype = torch.promote_types(query.dtype, torch.float32)
        if dtype not in self._sets:
            self._sets[dtype] = key_sets(
                self.flags, self.extent, keys, query.shape[2], opened, closed, dtype
            )
        return self._sets[dtype]


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


def view_of(
    flags: Tensor,
    images: Tensor,
    mask: Tensor | None,
    *,
    keys: int,
    first: int,
    last: int,
    window: int | None,
) -> View:
    """What a layer sees.

    Args:
        flags: of the prompt's tokens, int32 [B, F]; images: image tokens of each row, int32 [B].
        mask: as the attention backend is given it, or None.
        keys: that the layer is given, from position `first` on.
        last: position of the first query row.
        window: keys that the layer sees at most, or None; then there is one query row.
    """
    flags = flags[:, first : first + keys]
    visible = None if mask is None else visible_keys(mask, keys)
    if window is not None and keys > window:
        # Some backends are told of the window instead of being given a mask of it.
        place = torch.arange(first, first + keys, device=flags.device)
        near = (place > last - window) & (place <= last)
        visible = near[None] if visible is None else visible & near
    extent = None
    if visible is not None:
        flags, extent = masked(flags, visible, keys)
    if window is not None:
        images = ((flags >= 0) & (flags & 1 > 0)).sum(1).to(torch.int32)
    return View(flags, images, extent)
