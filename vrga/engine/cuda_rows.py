"""The rows of steered answers on a GPU: attended to over vLLM's pages by the decode kernel.

What `vrga/engine/answer_rows.py` does on a CPU, without a copy of what lies in the pages: requests
whose numbers are the same take one launch per layer, with the gate known or not. On a CPU the same
runs in plain torch, for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vrga.engine.answer_rows import Part, Piece, SteeredRows, numbers, together
from vrga.kernels.api import Kernels
from vrga.kernels.columns import GATE

if TYPE_CHECKING:
    from vrga.engine.passing import Passing


@dataclass(frozen=True, kw_only=True)
class PagedRows(SteeredRows):
    """Rows that the decode kernel attends to, in the pages.

    Args:
        kernels: they compute.
    """

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
    alike: dict[object, list[Part]] = {}
    for piece in pieces:
        rows, state = range(piece.answer, piece.rows), piece.state
        if not rows or state.fault is not None:
            continue
        told = state.follow(piece.ids[piece.answer :], piece.past + piece.answer)
        if told is None or any(told):
            alike.setdefault((len(rows), *numbers(state)), []).append((piece, rows, told))
    return [
        PagedRows(**together(parts, table, page, heads), kernels=kernels)
        for parts in alike.values()
    ]


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
