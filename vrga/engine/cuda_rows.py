"""The rows of steered answers on a GPU: attended to over vLLM's pages by the decode kernel.

What `vrga/engine/answer_rows.py` does on a CPU, without a copy of what lies in the pages: requests
whose numbers are the same take one launch per layer, with the gate known or not. On a CPU the same
runs in plain torch, for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vrga.engine.answer_rows import Piece, SteeredRows
from vrga.kernels.api import Kernels
from vrga.kernels.columns import GATE

if TYPE_CHECKING:
    from vrga.engine.passing import Passing

# Which of the rows of a piece's answer are steered; None for all.
Told = list[bool] | None


@dataclass(frozen=True, kw_only=True)
class PagedRows(SteeredRows):
    """Rows that the decode kernel attends to, in the pages.

    Args:
        lengths: keys of each request, those of the rows among them, int32 [B].
        kernels: they compute.
    """

    lengths: Tensor
    kernels: Kernels

    def _attention(self, query: Tensor, keys: Tensor, values: Tensor, **numbers: Any) -> Tensor:
        return self.kernels.paged_decode_attention(
            query, keys, values, self.table, self.lengths, self.flags, self.images, **numbers
        )

    def _changed(self, layer: int, stats: Tensor) -> Tensor | None:
        # Heads whose weights are all 1 keep what the engine computed, to the bit.
        if any(weight != 1 for weight in self.pieces[0].state.groups.closed):
            return None
        return stats[..., GATE].transpose(1, 2) > 0


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
