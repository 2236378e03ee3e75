"""Keeping what decode steps measure: on the device, into memory made beforehand, with no sync."""

from __future__ import annotations

from collections.abc import Container, Iterable

import torch
from torch import Tensor

from vrga.kernels.reference import GATE, GROUP, KeySets
from vrga.region import Region

CHUNK = 64  # steps that a recorder makes room for at a time
Heads = str | Tensor | Iterable[tuple[int, int]]


class Recorder:
    """Takes the kernel's statistics during decoding, and maps of chosen heads.

    Args:
        shape: (L, H) of the model.
        layers: those to measure; None is all.
        steps: forward passes after the prefill to measure, counted from 0; None is all.
        maps: heads whose attention on every image token is kept: "visual" (H_v of any row),
            "all", bool [L, H], or pairs (layer, head); None is no head.
        layer_maps: whether to keep the mean over all heads of each measured layer likewise.

    Attributes:
        opened, closed: weight of each group of keys under an open and a shut gate, for reading
            the statistics, which are those of attention before steering.
        question: whether groups 2 and 3 are the prompt's text, of the question and other.
        inside: rows inside a <back> span at each step, bool [B], where spans are followed.
        taken: the steps that were measured.
        regions: one per row, as steered to.
        prompt, padding, said: token ids of the call of generate(), its attention mask, and the
            ids of the answer, int64 [B, S] each, or None.

    Raises:
        ValueError: layers or heads that the model does not have, or heads of layers left out.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        layers: Iterable[int] | None = None,
        steps: Container[int] | None = None,
        maps: Heads | None = None,
        layer_maps: bool = False,
    ):
        self.shape, self._wanted, self._layer_maps = shape, steps, layer_maps
        self.layers = list(range(shape[0])) if layers is None else sorted(set(layers))
        if not self.layers or not 0 <= self.layers[0] <= self.layers[-1] < shape[0]:
            raise ValueError(f"layers={layers!r}: give some of 0 to {shape[0] - 1}")
        self._maps = maps
        self.mapped = self._chosen(maps)
        self.opened = self.closed = (1.0, 1.0)
        self.question = False
        self.inside: list[Tensor] = []
        self.taken: list[int] = []
        self.regions: list[Region] = []
        self.prompt: Tensor | None = None
        self.padding: Tensor | None = None
        self.said: Tensor | None = None
        self._pass = -1  # of no forward pass yet: all are wanted, so that none is passed over
        self._slots: list[dict[int, Tensor]] = []  # step -> layer -> [B, H, Q, 3 + groups]
        self._map_slots: list[dict[int, Tensor]] = []  # step -> layer -> [B, heads, n]
        self._room: dict[tuple, list[Tensor]] = {}
        self._index = torch.zeros(0, 0, dtype=torch.int64)  # [B, n], -1 where a row has fewer
        self._placed: dict[torch.device, Tensor] = {}

    def _chosen(self, maps: Heads | None) -> Tensor:
        """Heads whose maps are kept, bool [L, H]; those that "visual" means are not known yet."""
        chosen = torch.zeros(self.shape, dtype=torch.bool)
        if maps is None or (isinstance(maps, str) and maps == "visual"):
            return chosen
        if isinstance(maps, str):
            if maps != "all":
                raise ValueError(f"maps={maps!r}: give 'visual', 'all', bool [L, H] or pairs")
            chosen[self.layers] = True
            return chosen
        if isinstance(maps, Tensor) and maps.dtype == torch.bool:
            if tuple(maps.shape) != self.shape:
                raise ValueError(f"maps has shape {list(maps.shape)}; wanted: {list(self.shape)}")
            chosen = maps.cpu().clone()
        else:
            for layer, head in torch.as_tensor(maps).tolist() if len(maps) else []:
                if not (0 <= layer < self.shape[0] and 0 <= head < self.shape[1]):
                    raise ValueError(
                        f"maps asks for head {head} of layer {layer}; the model has "
                        f"{self.shape[0]} layers of {self.shape[1]} heads"
                    )
                chosen[layer, head] = True
        left_out = set(chosen.any(1).nonzero().flatten().tolist()) - set(self.layers)
        if left_out:
            raise ValueError(f"maps asks for heads of layers {sorted(left_out)}, not in layers=...")
        return chosen

    def aim(self, regions: list[Region]) -> None:
        """The prompt is through: these are its regions, one per row."""
        self.regions = list(regions)
        index = [torch.cat([g.index for g in r.grids]) for r in regions if r.grids]
        self._index = torch.full((len(regions), max(map(len, index), default=0)), -1)
        rows = [row for row, region in enumerate(regions) if region.grids]
        for row, places in zip(rows, index, strict=True):
            self._index[row, : len(places)] = places
        if isinstance(self._maps, str) and self._maps == "visual":
            visual = torch.stack([region.visual for region in regions]).any(0)
            self.mapped = torch.zeros_like(visual)
            self.mapped[self.layers] = visual[self.layers]

    def hear(self, inputs: dict, output: object) -> None:
        """What generate() was given, and what it returned."""
        said = output if isinstance(output, Tensor) else output.sequences
        ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        if ids is not None:
            self.prompt, said = ids.cpu(), said[:, ids.shape[1] :]
        if mask is not None and ids is not None and mask.shape == ids.shape:
            self.padding = mask.cpu()
        self.said = said.cpu()

    @property
    def steps(self) -> int:
        """Forward passes measured so far."""
        return len(self._slots)

    def begin(self) -> None:
        """A forward pass after the prefill begins."""
        self._pass += 1

    def wants(self, layer: int) -> bool:
        """Whether this layer of this forward pass is to be measured."""
        return self._wants_step() and layer in self.layers

    def _wants_step(self) -> bool:
        return self._pass < 0 or self._wanted is None or self._pass in self._wanted

    def note(self, inside: Tensor) -> None:
        """Which rows are inside a <back> span at this forward pass, bool [B]."""
        if self._wants_step():
            self.inside.append(inside)

    def take(self, layer: int, query: Tensor) -> Tensor:
        """A buffer for one layer of the current step, float32 [B, H, Q, 3 + groups]."""
        if not self._slots or layer in self._slots[-1]:
            self._slots.append({})
            self._map_slots.append({})
            self.taken.append(max(self._pass, 0))
        batch, heads, rows, _ = query.shape
        shape = (batch, heads, rows, GROUP + len(self.opened))
        self._slots[-1][layer] = self._new("statistics", layer, shape, torch.float32, query.device)
        return self._slots[-1][layer]

    def _new(self, kind: str, layer: int, shape: tuple, dtype: torch.dtype, device) -> Tensor:
        room = self._room.setdefault((kind, layer, shape), [])
        if not room:
            room.extend(reversed(torch.empty(CHUNK, *shape, dtype=dtype, device=device).unbind()))
        return room.pop()

    def maps_of(self, layer: int) -> bool:
        """Whether maps of this layer are kept."""
        return self._layer_maps or bool(self.mapped[layer].any())

    def keep_maps(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        sets: KeySets,
        stats: Tensor | None,
        *,
        scale: float,
        first: int,
    ) -> None:
        """Where the last query row of the chosen heads looks on the image, after steering.

        Args:
            query: [B, H, Q, d]; key: the cache [B, H_kv, S, d].
            sets: of the keys, for these query rows.
            stats: of this layer, [B, H, Q, 3 + groups], for the gate; None: attention as it is.
            first: position of the first key, which a sliding window's cache moves.
        """
        chosen = self.mapped[layer].nonzero().flatten().tolist()
        heads = list(range(self.shape[1])) if self._layer_maps else chosen
        gate = None if stats is None else stats[:, heads, -1, GATE]
        if query.device not in self._placed:
            self._placed[query.device] = self._index.to(query.device)
        places = self._placed[query.device] - first
        found = image_attention(query[:, :, -1], key, heads, sets, gate, places, scale=scale)
        if self._layer_maps:
            found = torch.cat([found.mean(1, keepdim=True), found[:, chosen]], 1)
        # Half precision: its smallest step, 6e-8, is far below what any picture shows.
        shape = tuple(found.shape)
        kept = self._new("maps", layer, shape, torch.float16, query.device)
        self._map_slots[-1][layer] = kept.copy_(found)

    def stacked(self) -> Tensor:
        """All steps, float32 [steps, layers, B, H, 3 + groups], on the CPU; last query rows."""
        return _gathered(self._slots, self.layers, lambda x: x[:, :, -1]).transpose(0, 1)

    def stacked_maps(self) -> tuple[Tensor | None, Tensor | None]:
        """Maps of the chosen heads [steps, heads, B, n] and of the layers; None where not kept."""
        layers = [layer for layer in self.layers if self.maps_of(layer)]
        if not layers or not self._index.numel():
            return None, None
        mean, heads = [], []
        for layer in layers:
            found = _gathered(self._map_slots, [layer], lambda x: x)[0].transpose(1, 2)
            mean.append(found[:, :1])
            heads.append(found[:, int(self._layer_maps) :])
        heads, mean = torch.cat(heads, 1), torch.cat(mean, 1)
        return heads if heads.shape[1] else None, mean if self._layer_maps else None


def _gathered(slots: list[dict[int, Tensor]], layers: list[int], part) -> Tensor:
    """A part of every slot, [layers, steps, ...] on the CPU; one copy from each device."""
    devices = {layer: slots[0][layer].device for layer in layers}
    found: dict[int, Tensor] = {}
    for device in set(devices.values()):
        here = [layer for layer in layers if devices[layer] == device]
        stacked = torch.stack([torch.stack([part(step[i]) for step in slots]) for i in here])
        found.update(zip(here, stacked.cpu(), strict=True))
    return torch.stack([found[layer] for layer in layers])


def image_attention(
    query: Tensor,
    key: Tensor,
    heads: list[int],
    sets: KeySets,
    gate: Tensor | None,
    places: Tensor,
    *,
    scale: float,
) -> Tensor:
    """Attention of some heads from one query row on the image's tokens, after steering.

    What `decode_attention_reference` weighs its values with, for these heads and keys.

    Args:
        query: [B, H, d]; key: [B, H_kv, S, d].
        heads: ascending.
        sets: of the keys; the last of its query rows counts.
        gate: 1 where the head's gate is open, [B, heads]; None: attention before steering.
        places: the image's tokens among the keys, int64 [B, n]; those outside of 0 to S - 1 get 0.

    Returns:
        float32 (or wider) [B, heads, n].
    """
    group, scores = query.shape[1] // key.shape[1], []
    for kv in sorted({head // group for head in heads}):  # each KV head's keys are read once
        members = [head for head in heads if head // group == kv]
        scores.append(query[:, members] @ key[:, kv].transpose(1, 2))
    accurate = torch.promote_types(query.dtype, torch.float32)
    scores = torch.cat(scores, 1).to(accurate) * scale  # [B, heads, S]
    scores = scores.masked_fill(sets.hidden[:, :, -1], -torch.inf)
    if gate is not None:
        # Weighing probabilities and renormalising is adding log weights to the scores.
        weight = sets.shut[:, 0] + gate[..., None] * sets.change[:, 0]
        weighted = scores + weight.log()
        empty = weighted.amax(-1, keepdim=True) == -torch.inf  # then the head stays unsteered
        scores = torch.where(empty, scores, weighted)
    inside = (places >= 0) & (places < key.shape[2])
    index = places.clamp(0, key.shape[2] - 1)[:, None].expand(-1, len(heads), -1)
    return scores.softmax(-1).gather(2, index) * inside[:, None]
