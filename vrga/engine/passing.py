"""One forward pass of a worker, as far as steered requests are in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vrga.engine.answer_rows import Piece, Rows, rows_of
from vrga.engine.compiled_rows import CompiledRows, Kept, probe
from vrga.engine.cuda_rows import PagedRows
from vrga.engine.row_attention import row_attention
from vrga.engine.steered import Steered
from vrga.kernels.pages import gathered


class Passing:
    """A pass with steered requests in it: what its attention layers do.

    Args:
        pieces: of the pass.
        heads: of this worker, among all.
        kept: from pass to pass.
        steady: of a pass that goes on as the last, which has no pieces: its steered requests, and
            their rows.

    Attributes:
        members: the steered requests, by name.
        done: layers that were seen.
        shares: once it is through, (step, share) of each request's rows, as of `Rows.shares`.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        heads: slice,
        kept: Kept,
        steady: tuple[list[tuple[str, Steered]], CompiledRows] | None = None,
    ):
        self.pieces, self.heads, self._kept = pieces, heads, kept
        self.members = steady[0] if steady else [(piece.name, piece.state) for piece in pieces]
        looking = [(piece, piece.probed) for piece in pieces]
        self._looking = [(piece, at) for piece, at in looking if at is not None]
        self.done: set[int] = set()
        self.rows: Sequence[Rows | PagedRows] | None = None
        self.compiled: CompiledRows | None = steady[1] if steady else None
        self.shares: dict[str, list[tuple[int, float]]] = {}
        self._probed: dict[str, list[Tensor]] = {}

    def attend(
        self,
        layer: int,
        query: Tensor,
        output: Tensor,
        keys: Tensor,
        values: Tensor,
        table: Tensor,
        scale: float,
    ) -> None:
        """Look at the probed rows, and put steered attention in the place of the engine's.

        Args:
            layer: its number, from 0.
            query, output: [T, H, d], of all rows of the pass.
            keys, values: pages, [pages, H_kv, page, d], those of this pass among them.
            table: the block table, int [requests, most pages].
            scale: factor on q . k.
        """
        assert self.pieces  # a pass goes on by compiled rows alone
        self.done.add(layer)
        page = keys.shape[2]
        for piece, at in self._looking:
            if piece.state.fault is None:
                seen = piece.state.plan.probed + 1
                own = table[piece.place, : -(-seen // page)].long()
                whole = gathered(keys, own[None])[0, :, :seen]
                self._probed.setdefault(piece.name, []).append(
                    row_attention(query[at], whole, scale)
                )
        if self.rows is None:
            self.rows = rows_of(self.pieces, table, page, query.dtype, self.heads)
        for rows in self.rows:
            rows.steer(layer, query, output, keys, values, scale)

    def attend_compiled(
        self,
        layer: int,
        query: Tensor,
        output: Tensor,
        cache: np.ndarray,
        table: Tensor,
        scale: float,
    ) -> None:
        """As `attend`, by what `page_rows` compiled.

        Args:
            cache: pages in float32, [pages, H_kv, 2 * page * d], as `page_rows.steer_rows` has it.
        """
        self.done.add(layer)
        if self.compiled is None:
            self.compiled = CompiledRows(self.pieces, self._kept, self.heads)
        for piece, at in self._looking:
            if piece.state.fault is None:
                seen = piece.state.plan.probed + 1
                row = probe(query, cache, table, at, piece.place, seen, scale, self._kept)
                self._probed.setdefault(piece.name, []).append(row)
        self.compiled.steer(layer, query, output, cache, table, scale)

    def close(self, gather: Callable[[Tensor], Tensor], total: Callable[[Tensor], Tensor]) -> None:
        """The pass is through: find regions, and count where the answers' rows looked.

        Args:
            gather: attention of this worker's heads [L, h, S] -> of all heads.
            total: a sum over the workers.
        """
        for piece, _ in self._looking:
            found = self._probed.pop(piece.name, None)
            if found is not None:
                piece.state.locate(gather(torch.stack(found)).cpu())
        if self.compiled is not None:
            self.shares = self.compiled.shares(total)
        for rows in self.rows or ():
            for name, told in rows.shares(total).items():
                self.shares.setdefault(name, []).extend(told)
