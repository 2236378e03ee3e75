"""The rows of steered requests in a forward pass, and those of their answers put together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vrga.engine.steered import Steered
from vrga.kernels.columns import GROUP
from vrga.kernels.pages import gathered
from vrga.kernels.reference import KeySets, decode_attention_reference, key_sets

AT_ONCE = 1 << 22  # scores of one request's rows that are made at once: 16 MB in float32


@dataclass(frozen=True)
class Piece:
    """The rows of one steered request in a pass.

    Args:
        name: of the request; state: what is known of it.
        first: its first row in the pass; rows: how many.
        past: keys before them.
        place: of the request in the block table.
        ids: tokens of the rows.
    """

    name: str
    state: Steered
    first: int
    rows: int
    past: int
    place: int
    ids: Sequence[int]

    @property
    def probed(self) -> int | None:
        """The row of this pass whose attention is looked at, or None."""
        at = self.state.plan.probed - self.past
        here = self.state.region is None and 0 <= at < self.rows
        return self.first + at if here else None

    @property
    def answer(self) -> int:
        """The first of its rows that is of the answer, from 0; `rows` where none is."""
        return min(max(self.state.plan.prompt - self.past, 0), self.rows)


# Rows of a request, from its first in the pass, and which of them are steered; None for all.
Part = tuple[Piece, range, list[bool] | None]


@dataclass(frozen=True, kw_only=True)
class SteeredRows(ABC):
    """Rows of the answers of some requests, as many of each, attended to together.

    Args:
        pieces: their requests.
        index: which rows of the pass, int64 [B, Q].
        steered: which of them are, bool [B, Q], or None for all.
        table: pages of each request, int [B, n].
        gate: open heads of this worker, bool [L, B, h], or None where each step decides.
        layers: whether each opens any, where the gate is known.
        lengths: keys of each request, those of the rows among them, int32 [B].
        flags, images: as the attention takes them.
        heads: of this worker, among all.
        stats, seen: of the layers that have attended, and which these were.
    """

    pieces: list[Piece]
    index: Tensor
    steered: Tensor | None
    table: Tensor
    gate: Tensor | None
    layers: list[bool]
    lengths: Tensor
    flags: Tensor
    images: Tensor
    heads: slice
    stats: list[Tensor] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)

    def steer(
        self, layer: int, query: Tensor, output: Tensor, keys: Tensor, values: Tensor, scale: float
    ) -> None:
        """Put steered attention in the place of the engine's; arguments of `Passing.attend`."""
        if self.gate is not None and not self.layers[layer]:
            return
        state = self.pieces[0].state
        config, groups = state.plan.config, state.groups
        own = query[self.index].transpose(1, 2)  # [B, H, Q, d]
        stats = torch.empty(*own.shape[:3], GROUP + groups.count, device=own.device)
        found = self._attention(
            own, keys, values,
            scale=scale,
            opened=groups.opened,
            closed=groups.closed,
            focus=config.gate_focus,
            entropy=config.gate_entropy,
            gate=None if self.gate is None else self.gate[layer],
            stats=stats,
        )  # fmt: skip
        self.stats.append(stats)
        self.seen.append(layer)
        changed = self._changed(layer, stats)
        if self.steered is not None:
            rows = self.steered[..., None]
            changed = rows if changed is None else changed & rows
        if changed is not None:  # else the engine's own stands nowhere
            found = torch.where(changed[..., None], found, output[self.index])
        output[self.index] = found

    @abstractmethod
    def _attention(self, query: Tensor, keys: Tensor, values: Tensor, **numbers: Any) -> Tensor:
        """Steered attention of queries [B, H, Q, d] over keys and values in pages, [B, Q, H, d]."""

    @abstractmethod
    def _changed(self, layer: int, stats: Tensor) -> Tensor | None:
        """Which rows and heads steering changes, bool [B, Q, H]; None: all may be."""

    def shares(self, total: Callable[[Tensor], Tensor]) -> dict[str, list[tuple[int, float]]]:
        """Share of attention on the region after steering, as (step, share) of each request's rows.

        It is the mean over the request's visual heads; 0 where it has none.

        Args:
            total: a sum over the workers.
        """
        regions = [piece.state.region for piece in self.pieces]
        sums = torch.zeros(self.index.shape)  # [B, Q]
        if self.stats:  # else no head of this worker's is steered
            stats = torch.stack(self.stats).cpu()  # [l, B, h, Q, C]
            share = self.pieces[0].state.groups.shares(stats)["region"]
            visual = [r.visual[self.seen][:, self.heads] for r in regions if r is not None]
            sums = (share * torch.stack(visual, 1)[..., None]).sum((0, 2))
        counts = torch.tensor([max(1, int(r.visual.sum())) for r in regions if r is not None])
        mean = total(sums.to(self.index.device)).cpu() / counts[:, None]
        kept = torch.ones_like(mean, dtype=torch.bool)
        if self.steered is not None:
            kept = self.steered.cpu()
        found: dict[str, list[tuple[int, float]]] = {}
        firsts = self.index[:, 0].tolist()
        told = zip(self.pieces, firsts, mean.tolist(), kept.tolist(), strict=True)
        for piece, first, means, rows in told:
            begin = first - piece.first + piece.past - piece.state.plan.prompt
            pairs = zip(means, rows, strict=True)
            found[piece.name] = [(begin + q, x) for q, (x, kept) in enumerate(pairs) if kept]
        return found


@dataclass(frozen=True, kw_only=True)
class Rows(SteeredRows):
    """Rows that the reference attends to, over keys and values taken out of their pages.

    Args:
        extent, sets: as `decode_attention_reference` takes them.
    """

    extent: Tensor
    sets: KeySets

    def _attention(self, query: Tensor, keys: Tensor, values: Tensor, **numbers: Any) -> Tensor:
        keys, values = gathered(keys, self.table), gathered(values, self.table)
        return decode_attention_reference(
            query, keys, values, self.flags, self.images, extent=self.extent, sets=self.sets,
            **numbers,
        )  # fmt: skip

    def _changed(self, layer: int, stats: Tensor) -> Tensor | None:
        # Heads that are shut keep the engine's own, where it is known beforehand which are.
        return None if self.gate is None else self.gate[layer][:, None]


def rows_of(
    pieces: Sequence[Piece],
    table: Tensor,
    page: int,
    dtype: torch.dtype,
    heads: slice,
) -> list[Rows]:
    """The answers' rows of a pass: one of each request together, where the numbers are the same.

    Args:
        pieces: of the pass, regions known where they have rows of an answer.
        table: the engine's block table, int [requests, most pages].
        page: keys on one page.
        dtype: of the queries.
        heads: those of this worker.
    """
    alike: dict[object, list[Part]] = {}
    for piece in pieces:
        count, state = piece.rows - piece.answer, piece.state
        if count <= 0 or state.fault is not None:
            continue
        told = state.follow(piece.ids[piece.answer :], piece.past + piece.answer)
        most = max(1, AT_ONCE // ((heads.stop - heads.start) * (piece.past + piece.rows)))
        for begin in range(0, count, most):  # a preempted answer comes again
            part = None if told is None else told[begin : begin + most]
            if part is None or any(part):
                rows = range(piece.answer, piece.rows)[begin : begin + most]
                kind = numbers(state) if count == 1 else (piece.name, begin)
                alike.setdefault(kind, []).append((piece, rows, part))
    return [_rows(parts, table, page, dtype, heads) for parts in alike.values()]


def _rows(parts: list[Part], table: Tensor, page: int, dtype: torch.dtype, heads: slice) -> Rows:
    """The rows of `rows_of` that go together."""
    shared = together(parts, table, page, heads)
    lengths, groups = shared["lengths"], parts[0][0].state.groups
    extent = torch.stack([torch.zeros_like(lengths), lengths, lengths], 1)
    keys, accurate = shared["table"].shape[1] * page, torch.promote_types(dtype, torch.float32)
    sets = key_sets(
        shared["flags"], extent, keys, len(parts[0][1]), groups.opened, groups.closed, accurate
    )
    shared["table"] = shared["table"].long()  # once, for all layers
    return Rows(**shared, extent=extent, sets=sets)


def numbers(state: Steered) -> tuple:
    """What is the same of requests whose rows go together."""
    config, groups = state.plan.config, state.groups
    return (groups.opened, groups.closed, config.gate_focus, config.gate_entropy,
            state.gate is None)  # fmt: skip


def together(parts: Sequence[Part], table: Tensor, page: int, heads: slice) -> dict[str, Any]:
    """What `SteeredRows` are of, with as many rows of each request; on the device of the table."""
    device, states = table.device, [piece.state for piece, _, _ in parts]
    ends = [piece.past + rows.stop for piece, rows, _ in parts]
    pages = -(-max(ends) // page)
    places = torch.tensor([piece.place for piece, _, _ in parts], device=device)
    flags = torch.nn.utils.rnn.pad_sequence([s.flags[0] for s in states], batch_first=True)
    gates = [state.gate for state in states if state.gate is not None]
    gate = torch.stack([one[:, heads] for one in gates], 1) if gates else None
    steered = None
    if any(told is not None and not all(told) for _, _, told in parts):
        steered = torch.tensor(
            [[True] * len(rows) if told is None else told for _, rows, told in parts],
            device=device,
        )
    return {
        "pieces": [piece for piece, _, _ in parts],
        "index": torch.tensor(
            [[piece.first + i for i in rows] for piece, rows, _ in parts], device=device
        ),
        "steered": steered,
        "table": table[places, :pages].int(),
        "lengths": torch.tensor(ends, dtype=torch.int32, device=device),
        "flags": flags[:, : pages * page].to(device),
        "images": torch.tensor([s.images for s in states], dtype=torch.int32, device=device),
        "gate": None if gate is None else gate.to(device),
        "layers": [] if gate is None else gate.flatten(1).any(1).tolist(),
        "heads": heads,
    }
