"""Keeping what decode steps measure: on the device, into memory made beforehand, with no sync."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vrga.kernels.columns import GATE, GROUP
from vrga.kernels.reference import KeySets
from vrga.method.key_groups import KeyGroups
from vrga.method.maps import image_attention
from vrga.method.region import Region
from vrga.method.timeline import Relocation, Timeline
from vrga.recording.choices import Heads, check_steps, chosen_heads, chosen_layers
from vrga.recording.transcript import Transcript
from vrga.recording.waiting import CHUNK, Waiting

if TYPE_CHECKING:
    from vrga.hf.inputs import ForwardInputs


class Recorder:
    """Takes the kernel's statistics during decoding, and maps of chosen heads.

    Args:
        shape: (L, H) of the model.
        layers: those to measure; None is all.
        steps: generated tokens to measure at, counted from 0; None is all.
        maps: heads whose attention on every image token is kept: "visual" (H_v of any row),
            "all", bool [L, H] (of torch or NumPy), or pairs (layer, head); None is no head.
        layer_maps: whether to keep the mean over all heads of each measured layer likewise.

    Attributes:
        inside: rows inside a <back> span at each query row taken, bool [B], where spans are
            followed.
        uncertainty: entropy in nats of the distribution that each query row's token was drawn
            from, float32 [B], where the config decides by it.
        off: whether the patch was switched off.
        rows: query rows taken so far, rejected drafts and steps that were not asked for included.
        heard: what a call of generate() was given and returned; None without one, and with beams,
            which the rows of a trace do not follow.

    Raises:
        ValueError: layers, steps or heads that there are not, or that are of another form, or heads
            of layers left out.
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
        check_steps(steps)
        self.layers = chosen_layers(layers, shape[0])
        self._layers = frozenset(self.layers)
        self._due = False  # whether the current forward pass is to be measured
        self._maps = maps
        self.mapped = chosen_heads(maps, shape, self.layers)
        self._groups: KeyGroups | None = None
        self.inside: list[Tensor] = []
        self.uncertainty: list[Tensor] = []
        self.off = False
        self.rows = 0
        self._timeline = Timeline([])
        self._answer: int | None = None  # steps that the answer has, once it is known
        self.heard: Transcript | None = None
        self._numbers = range(0)  # steps whose queries the current forward pass has
        self._inside: Tensor | None = None  # of these queries, bool [B, Q]
        self._drawn: Tensor | None = None  # likewise, float32 [B], of a single query
        self._taken: dict[int, int] = {}  # step -> which of the query rows taken; ascending
        self._stats: dict[int, list[Tensor]] = {}  # layer -> [B, H, steps, 3 + groups], in pieces
        self._found: dict[int, list[Tensor]] = {}  # layer -> [B, heads, steps, n], likewise
        self._room: dict[tuple, list[Tensor]] = {}
        self._index = torch.zeros(0, 0, dtype=torch.int64)  # [B, n], -1 where a row has fewer
        self._placed: dict[torch.device, Tensor] = {}

    def aim(self, timeline: Timeline, groups: KeyGroups) -> None:
        """The prompt is through: its rows are steered to this timeline's regions."""
        self._timeline, self._groups, self._numbers = timeline, groups, range(0)
        regions = timeline.first
        index = [torch.cat([g.index for g in r.grids]) for r in regions if r.grids]
        self._index = torch.full((len(regions), max(map(len, index), default=0)), -1)
        rows = [row for row, region in enumerate(regions) if region.grids]
        for row, places in zip(rows, index, strict=True):
            self._index[row, : len(places)] = places
        if isinstance(self._maps, str) and self._maps == "visual":
            visual = torch.stack([region.visual for region in regions]).any(0)
            self.mapped = torch.zeros_like(visual)
            self.mapped[self.layers] = visual[self.layers]

    def hear(self, given: ForwardInputs, said: Tensor, ends: set[int]) -> None:
        """What generate() was given, the ids of its answer int64 [B, T], and what ends one."""
        ids, mask = given.ids, given.mask
        prompt: Tensor | None = None
        padding: Tensor | None = None
        if ids is not None:
            times = len(said) // len(ids)  # num_return_sequences
            prompt = ids.cpu().repeat_interleave(times, 0)
            if mask is not None and mask.shape == ids.shape:
                padding = mask.cpu().repeat_interleave(times, 0)
        self.heard = Transcript(said.cpu(), prompt, padding, ends, None)
        # Drafts may have gone on behind the answer; its last token is never a query.
        self._answer = said.shape[1] - 1
        self._forget_from(self._answer)

    @property
    def groups(self) -> KeyGroups:
        """Of the keys, by which the statistics are read; there are some from `aim` on."""
        assert self._groups is not None
        return self._groups

    @property
    def regions(self) -> list[Region]:
        """What is steered to at first, one per row."""
        return self._timeline.first

    @property
    def relocated(self) -> list[Relocation]:
        """The regions that came later, in the order of steps; of steps that came."""
        end = self.passed if self._answer is None else self._answer
        return [found for found in self._timeline.relocated if found.step < end]

    @property
    def steps(self) -> list[int]:
        """The steps that were measured, ascending."""
        return list(self._taken)

    @property
    def passed(self) -> int:
        """Steps that came, measured or not."""
        return self._numbers.stop

    @property
    def missing(self) -> str:
        """Why no step was measured, and what to do."""
        if not self.regions and self.off:
            return "the patch was switched off (patch.enabled = False): switch it on"
        if not self.regions:
            return "no prompt with an image came: record it around a call of generate with an image"
        if not self.passed:
            return (
                "its answer has one token, and the last one is not measured: let it be longer "
                "(max_new_tokens)"
            )
        if not any(map(self._wants_step, range(self.passed))):
            return f"steps={self._wanted!r} names none of those that came, 0 to {self.passed - 1}"
        return "its config steers passes of a single token alone, and every pass brought drafts"

    def begin(self, past: int, tokens: int) -> None:
        """A forward pass after the prefill begins.

        What was taken at the positions of its queries was of drafts that were rejected.

        Args:
            past: keys before it; tokens: its queries.
        """
        first = past - self._timeline.start
        self._numbers, self._inside, self._drawn = range(first, first + tokens), None, None
        self._due = any(map(self._wants_step, self._numbers))
        self._forget_from(first)

    def _forget_from(self, step: int) -> None:
        while self._taken and next(reversed(self._taken)) >= step:
            self._taken.popitem()

    def wants(self, layer: int) -> bool:
        """Whether this layer of this forward pass is to be measured."""
        return self._due and layer in self._layers

    def _wants_step(self, step: int) -> bool:
        return step >= 0 and (self._wanted is None or step in self._wanted)

    def note(self, inside: Tensor | None, drawn: Tensor | None) -> None:
        """Of the queries of this pass: which rows are inside a <back> span, bool [B, Q], and the
        entropy of what a single one's token was drawn from, float32 [B]; None: not followed."""
        self._inside, self._drawn = inside, drawn

    def count(self, layer: int) -> None:
        """This layer of this forward pass is measured."""
        if layer != self.layers[0]:
            return
        for row, number in enumerate(self._numbers, self.rows):
            if self._wants_step(number):
                self._taken[number] = row
        self.rows += len(self._numbers)
        if self._inside is not None:
            self.inside.extend(self._inside.unbind(1))
        if self._drawn is not None:
            self.uncertainty.append(self._drawn)

    def count_compiled(self, steps: int) -> list[tuple[int, int]]:
        """Compiled passes have come and gone; the wanted ones as runs [first, end) of them."""
        numbers = self._numbers = range(self.passed, self.passed + steps)
        kept = [i for i, number in enumerate(numbers) if self._wants_step(number)]
        self._taken.update((numbers[i], self.rows + row) for row, i in enumerate(kept))
        self.rows += len(kept)
        starts = [i for i in kept if i - 1 not in kept]
        ends = [i + 1 for i in kept if i + 1 not in kept]
        return list(zip(starts, ends, strict=True))

    def take(self, layer: int, query: Tensor) -> Tensor:
        """A buffer for one layer of the current pass, float32 [B, H, Q, 3 + groups]."""
        batch, heads, rows, _ = query.shape
        shape = (batch, heads, rows, GROUP + self.groups.count)
        room = self._room.setdefault((layer, shape), [])
        if not room:
            empty = torch.empty(CHUNK, *shape, dtype=torch.float32, device=query.device)
            room.extend(reversed(empty.unbind()))
        found = room.pop()
        self.keep(layer, found)
        return found

    def keep(self, layer: int, stats: Tensor) -> None:
        """Statistics of one layer at some query rows, [B, H, rows, 3 + groups]."""
        self._stats.setdefault(layer, []).append(stats)

    def maps_of(self, layer: int) -> bool:
        """Whether maps of this layer are kept."""
        return self._layer_maps or bool(self.mapped[layer].any())

    def keep_maps(
        self, layer: int, query: Tensor, waiting: Waiting, sets: KeySets, stats: Tensor | None
    ) -> None:
        """Where the chosen heads of one layer look on the image in some steps, after steering.

        Args:
            query: one row of each step, [B, H, steps, d]; waiting: these steps, and their keys.
            sets: of the keys, for these query rows.
            stats: [B, H, steps, 3 + groups], for the gate; None: attention as it is.
        """
        key = waiting.key
        assert key is not None  # of the queries that wait
        chosen = self.mapped[layer].nonzero().flatten().tolist()
        heads = list(range(self.shape[1])) if self._layer_maps else chosen
        gate = None if stats is None else stats[:, heads, :, GATE]
        if query.device not in self._placed:
            self._placed[query.device] = self._index.to(query.device)
        # Of the first key, which a sliding window's cache moves.
        first = max(waiting.past + 1 - key.shape[2], 0)
        places = self._placed[query.device] - first
        found = image_attention(query, key, heads, sets, gate, places, scale=waiting.scale)
        if self._layer_maps:
            found = torch.cat([found.mean(1, keepdim=True), found[:, chosen]], 1)
        # Half precision: its smallest step, 6e-8, is far below what any picture shows.
        self._found.setdefault(layer, []).append(found.half())

    def stacked(self) -> Tensor:
        """All steps, float32 [steps, layers, B, H, 3 + groups], on the CPU."""
        return self._of_steps(_gathered(self._stats, self.layers).permute(3, 0, 1, 2, 4))

    def stacked_notes(self, noted: list[Tensor]) -> Tensor | None:
        """`inside` or `uncertainty` at each step, [steps, B]; None where it was not followed."""
        return self._of_steps(torch.stack(noted).cpu()) if len(noted) == self.rows else None

    def _of_steps(self, rows: Tensor) -> Tensor:
        """Of all query rows taken, [rows, ...], those of the steps."""
        chosen = list(self._taken.values())
        return rows if chosen == list(range(len(rows))) else rows[chosen]

    def stacked_maps(self) -> tuple[Tensor | None, Tensor | None]:
        """Maps of the chosen heads [steps, heads, B, n] and of the layers; None where not kept."""
        layers = [layer for layer in self.layers if self.maps_of(layer)]
        if not layers or not self._index.numel():
            return None, None
        means, chosen = [], []
        for layer in layers:
            found = _gathered(self._found, [layer])[0].permute(2, 1, 0, 3)
            means.append(found[:, :1])
            chosen.append(found[:, int(self._layer_maps) :])
        heads, mean = self._of_steps(torch.cat(chosen, 1)), self._of_steps(torch.cat(means, 1))
        return heads if heads.shape[1] else None, mean if self._layer_maps else None


def _gathered(pieces: dict[int, list[Tensor]], layers: list[int]) -> Tensor:
    """Every layer's pieces put together, [layers, ...] on the CPU; one copy from each device."""
    whole = {layer: torch.cat(pieces[layer], 2) for layer in layers}
    found: dict[int, Tensor] = {}
    for device in {one.device for one in whole.values()}:
        here = [layer for layer in layers if whole[layer].device == device]
        stacked = torch.stack([whole[layer] for layer in here])
        found.update(zip(here, stacked.cpu(), strict=True))
    return torch.stack([found[layer] for layer in layers])
