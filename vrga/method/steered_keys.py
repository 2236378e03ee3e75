"""The keys of a prompt while its rows are steered to certain regions: groups, gate and bias."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vrga.kernels.api import Need
from vrga.kernels.gated import table
from vrga.method.key_groups import KeyGroups
from vrga.method.region import Region

if TYPE_CHECKING:
    from vrga.config import VRGAConfig

ROOM = 256  # keys by which a kept bias, or table, grows at a time


@dataclass(frozen=True)
class Placed:
    """The state on one device.

    Args:
        flags: of the prompt's keys, int32 [B, F]; images: image keys of each row, int32 [B].
        steered: rows with an image, and with a T where that is what is steered to, bool [B].
        gate: which heads are open, bool [L, B, H]; None where each step decides.
    """

    flags: Tensor
    images: Tensor
    steered: Tensor
    gate: Tensor | None

    def to(self, device: torch.device) -> Placed:
        """The same on another device."""
        gate = None if self.gate is None else self.gate.to(device)
        return Placed(self.flags.to(device), self.images.to(device), self.steered.to(device), gate)


class SteeredKeys:
    """What steps know of their keys; made anew where other regions are steered to.

    Args:
        regions: one per row.
        groups: of the keys.
        gate: which heads are open, bool [L, B, H]; None where each step decides.
        capacity: keys that the cache has room for, so that prompts of any length share one
            compiled step.
        devices: of the layers, where the state lies before a step is compiled.

    Attributes:
        rows: of the batch; every_row: whether each is steered.
        need: what attention to the keys takes.
    """

    def __init__(
        self,
        regions: list[Region],
        groups: KeyGroups,
        gate: Tensor | None,
        *,
        capacity: int = 0,
        devices: Iterable[torch.device] = (),
    ):
        image = torch.stack([region.image for region in regions])
        steered = image.any(1)
        if groups.boosts:
            steered = steered & torch.stack([region.mask.any() for region in regions])
        self.groups, self._capacity = groups, capacity
        self.every_row = bool(steered.all())
        flags = groups.flags(regions, capacity)
        self.rows = len(regions)
        weighs = all(groups.opened) and all(groups.closed)
        self.need: Need = "bias" if gate is not None else "gate" if weighs else "sums"
        self._own = Placed(flags, image.sum(1).to(torch.int32), steered, gate)
        self._on = {device: self._own.to(device) for device in devices}
        self._bias: dict[tuple, Tensor] = {}
        self._table: dict[tuple, Tensor] = {}
        self._open = None if gate is None else (gate & steered[:, None]).flatten(1).any(1).tolist()

    def aimed(self, regions: list[Region], gate: Tensor | None) -> SteeredKeys:
        """The same keys, steered to other regions."""
        return SteeredKeys(
            regions, self.groups, gate, capacity=self._capacity, devices=list(self._on)
        )

    @property
    def device(self) -> torch.device:
        """Of the first layers; the CPU's where it is not known yet."""
        return min(self._on, key=str, default=torch.device("cpu"))

    def on(self, device: torch.device) -> Placed:
        """The state on `device`, copied there on first use."""
        if device not in self._on:
            self._on[device] = self._own.to(device)
        return self._on[device]

    def gate(self, layer: int, device: torch.device) -> Tensor | None:
        """Which heads of a layer are open, bool [B, H]; None where each step decides."""
        gate = self.on(device).gate
        return None if gate is None else gate[layer]

    def steers(self, layer: int) -> bool:
        """Whether some head of a layer is steered, as far as is known beforehand."""
        return self._open is None or self._open[layer]

    def bias(self, layer: int, query: Tensor, keys: int, first: int = 0) -> Tensor:
        """Logarithms of what a layer's heads weigh `keys` keys with, [B, H, S].

        They are kept, and grow with the cache: what is generated weighs 1.

        Args:
            query: [B, H, Q, d], in at least whose precision, and float32, they are.
            first: position of the first of the keys.
        """
        dtype = torch.promote_types(query.dtype, torch.float32)
        if torch.compiler.is_compiling():  # it keeps what it likes
            made = self._log_weights(layer, query.device, dtype)
            return _grown(made, first + keys)[:, :, first : first + keys]
        place = layer, query.device, dtype
        kept = self._bias.get(place)
        if kept is None or kept.shape[2] < first + keys:
            kept = self._log_weights(*place) if kept is None else kept
            kept = self._bias[place] = _grown(kept, first + keys + ROOM)
        return kept[:, :, first : first + keys]

    def table(self, query: Tensor, keys: int, first: int = 0) -> Tensor:
        """The `table` of `keys` keys for a gate that steps decide, kept likewise; arguments as
        `bias` takes them."""
        dtype = torch.promote_types(query.dtype, torch.float32)
        end, weights = first + keys, (self.groups.opened, self.groups.closed)
        flags = self.on(query.device).flags
        if torch.compiler.is_compiling():
            return table(_grown(flags, end), *weights, dtype)[:, :, first:end]
        place = query.device, dtype
        kept = self._table.get(place)
        if kept is None or kept.shape[2] < end:
            kept = self._table[place] = table(_grown(flags, end + ROOM), *weights, dtype)
        return kept[:, :, first:end]

    def _log_weights(self, layer: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Of the prompt's keys, [B, H, F]."""
        placed = self.on(device)
        assert placed.gate is not None  # a bias is of a gate that is known
        opened, closed = self.groups.log_weights(placed.flags, dtype)  # [B, F]
        return torch.where(placed.gate[layer][:, :, None], opened[:, None], closed[:, None])


def known_gate(regions: list[Region], config: VRGAConfig, ablated: Tensor | None) -> Tensor | None:
    """Which heads are open at every step, bool [L, B, H]; None where each step decides. Of heads
    that lose the image, bool [B, L, H], it is these."""
    if config.boosts and not config.reproduces and config.gate == "static":
        return torch.stack([region.visual for region in regions], 1)
    return None if ablated is None else ablated.transpose(0, 1)


def _grown(rows: Tensor, keys: int) -> Tensor:
    """A bias, or flags, for at least so many keys: 0 behind the prompt's."""
    return torch.nn.functional.pad(rows, (0, max(keys - rows.shape[-1], 0)))
