"""The rows of steered answers on a GPU: attended to over vLLM's pages by the decode kernel.

What `vrga/engine/answer_rows.py` does on a CPU, without a copy of what lies in the pages: requests
whose numbers are the same take one launch per layer, with the gate known or not. On a CPU the same
runs in plain torch, for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vrga.engine.answer_rows import Piece
from vrga.kernels.api import Kernels
from vrga.kernels.columns import GATE, GROUP

if TYPE_CHECKING:
    from vrga.engine.passing import Passing

# Which of the rows of a piece's answer are steered; None for all.
Told = list[bool] | None


@dataclass(frozen=True)
class PagedRows:
    """Rows of the answers of some requests, as many of each, attended to together.

    Args:
        pieces: their requests; first: step of each one's first row, from the first of its answer.
        index: which rows of the pass, int64 [B, Q].
        steered: which of them are, bool [B, Q], or None for all.
        table: pages of each request, int32 [B, n]; lengths: keys, those of the rows among them,
            int32 [B]; flags, images: as `paged_decode_attention_reference` takes them.
        gate: open heads of this worker, bool [L, B, h], or None where each step decides.
        layers: whether each opens any, where the gate is known.
        heads: of this worker, among all.
        kernels: they compute.
        stats, seen: of the layers that have attended, and which these were.
    """

    pieces: list[Piece]
    first: list[int]
    index: Tensor
    steered: Tensor | None
    table: Tensor
    lengths: Tensor
    flags: Tensor
    images: Tensor
    gate: Tensor | None
    layers: list[bool]
    heads: slice
    kernels: Kernels
    stats: list[Tensor] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)

    def steer(
        self, layer: int, query: Tensor, output: Tensor, keys: Tensor, values: Tensor, scale: float
    ) -> None:
        """Put steered attention in the place of the engine's; arguments of `Passing.attend`.

        Rows and heads whose weights are all 1 keep what the engine computed, to the bit.
        """
        if self.gate is not None and not self.layers[layer]:
            return
        state = self.pieces[0].state
        config, groups = state.plan.config, state.groups
        own = query[self.index].transpose(1, 2)  # [B, H, Q, d]
        stats = torch.empty(*own.shape[:3], GROUP + groups.count, device=own.device)
        found = self.kernels.paged_decode_attention(
            own, keys, values, self.table, self.lengths, self.flags, self.images,
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
        changed = None
        if all(weight == 1 for weight in groups.closed):
            changed = stats[..., GATE].transpose(1, 2) > 0  # [B, Q, H]
        if self.steered is not None:
            rows = self.steered[..., None]
            changed = rows if changed is None else changed & rows
        if changed is not None:
            found = torch.where(changed[..., None], found, output[self.index])
        output[self.index] = found

    def shares(self, total: Callable[[Tensor], Tensor]) -> dict[str, list[tuple[int, float]]]:
        """As `vrga.engine.answer_rows.Rows.shares`."""
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
        return {
            piece.name: [
                (first + q, x) for q, (x, told) in enumerate(zip(means, rows, strict=True)) if told
            ]
            for piece, first, means, rows in zip(
                self.pieces, self.first, mean.tolist(), kept.tolist(), strict=True
            )
        }


def cuda_rows(
    pieces: Sequence[Piece], table: Tensor, page: int, heads: slice, kernels: Kernels
) -> list[PagedRows]:
    """The answers' rows of a pass: those of requests together whose numbers are the same.

    Args:
        pieces: of the pass, regions known where they have rows of an answer.
        table: the engine's block table, int [requests, most pages]; on its device all is.
        page: keys on one page.
        heads: those of this worker.
        kernels: they compute.
    """
    alike: dict[object, list[tuple[Piece, Told]]] = {}
    for piece in pieces:
        count, state = piece.rows - piece.answer, piece.state
        if count <= 0 or state.fault is not None:
            continue
        told = state.follow(piece.ids[piece.answer :], piece.past + piece.answer)
        if told is None or any(told):
            config, groups = state.plan.config, state.groups
            kind = (count, groups.opened, groups.closed, config.gate_focus, config.gate_entropy,
                    state.gate is None)  # fmt: skip
            alike.setdefault(kind, []).append((piece, told))
    return [_together(parts, table, page, heads, kernels) for parts in alike.values()]


def _together(
    parts: list[tuple[Piece, Told]], table: Tensor, page: int, heads: slice, kernels: Kernels
) -> PagedRows:
    """The rows of `cuda_rows` that go together."""
    pieces, told = [piece for piece, _ in parts], [rows for _, rows in parts]
    states, device = [piece.state for piece in pieces], table.device
    count = pieces[0].rows - pieces[0].answer
    ends = [piece.past + piece.rows for piece in pieces]
    pages = -(-max(ends) // page)
    own = torch.tensor([piece.place for piece in pieces], device=device)
    flags = torch.nn.utils.rnn.pad_sequence([s.flags[0] for s in states], batch_first=True)
    gates = [state.gate for state in states if state.gate is not None]
    gate = torch.stack([one[:, heads] for one in gates], 1) if gates else None
    steered = None
    if any(rows is not None and not all(rows) for rows in told):
        steered = torch.tensor(
            [[True] * count if rows is None else rows for rows in told], device=device
        )
    return PagedRows(
        pieces=pieces,
        first=[piece.past + piece.answer - piece.state.plan.prompt for piece in pieces],
        index=torch.tensor(
            [[p.first + p.answer + i for i in range(count)] for p in pieces], device=device
        ),
        steered=steered,
        table=table[own, :pages].int(),
        lengths=torch.tensor(ends, dtype=torch.int32, device=device),
        flags=flags[:, : pages * page].to(device),
        images=torch.tensor([s.images for s in states], dtype=torch.int32, device=device),
        gate=None if gate is None else gate.to(device),
        layers=[] if gate is None else gate.flatten(1).any(1).tolist(),
        heads=heads,
        kernels=kernels,
    )


def attend_paged(
    now: Passing,
    layer: int,
    query: Tensor,
    output: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    scale: float,
    kernels: Kernels,
) -> None:
    """`Passing.attend` with the rows of this file.

    Args:
        kernels: kept from pass to pass, as their launches are.
    """
    if now.rows is None:
        now.rows = cuda_rows(now.pieces, table, keys.shape[2], now.heads, kernels)
    now.attend(layer, query, output, keys, values, table, scale)
