"""The newest rows of answers whose open heads are known: those heads alone are attended to.

With the static gate the chosen heads stand when the prompt is through, and steering them adds
log γ to the scores of T (docs/design.md, "A gate that is known beforehand is a bias"). Here a pair
is a request and one of its open heads; the pairs of a layer are attended to at once, whatever
request they are of and whatever its gain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vrga.method.region import Region

if TYPE_CHECKING:
    from vrga.engine.answer_rows import Piece

LEAST = torch.finfo(torch.float32).min


class Pairs:
    """Pairs of some requests, which hold as long as these requests answer together.

    Args:
        pieces: one row of the answer of each; heads: of this worker, among all.

    Attributes:
        regions: of the requests, each its own.
        spans: (first, end) of each layer's pairs.
        request, head: of every pair, int64 [P], layer by layer.
        weights: logarithms of the weights of the prompts' keys, float32 [B, F]; region: 1 on T.
        counts: visual heads of each request, over all workers.
    """

    def __init__(self, pieces: Sequence[Piece], heads: slice):
        states = [piece.state for piece in pieces]
        self.regions = [one.region for one in states if one.region is not None]
        gate = torch.stack([one.gate[:, heads] for one in states if one.gate is not None], 1)
        place = gate.nonzero()  # [P, 3], by layer
        self.request, self.head = place[:, 1].contiguous(), place[:, 2].contiguous()
        ends = gate.flatten(1).sum(1).cumsum(0).tolist()
        self.spans = list(zip([0, *ends[:-1]], ends, strict=True))
        opened = [one.groups.log_weights(one.flags[0], torch.float32)[0] for one in states]
        pad = torch.nn.utils.rnn.pad_sequence
        self.weights = pad(opened, batch_first=True)
        self.region = pad([one.mask.float() for one in self.regions], batch_first=True)
        self.counts = torch.tensor([max(1, int(one.gate.sum())) for one in states
                                    if one.gate is not None])  # fmt: skip

    def are_of(self, regions: Sequence[Region | None]) -> bool:
        """Whether these are the requests, in this order, by their regions."""
        return len(regions) == len(self.regions) and all(
            one is other for one, other in zip(regions, self.regions, strict=True)
        )


class KnownRows:
    """The rows of one pass.

    Args:
        pairs: of the requests; pieces: one row of the answer of each.
        table: the engine's block table; page: keys on one page.
    """

    def __init__(self, pairs: Pairs, pieces: Sequence[Piece], table: Tensor, page: int):
        self._pairs, self._pieces = pairs, pieces
        ends = [piece.past + piece.rows for piece in pieces]
        pages = -(-max(ends) // page)
        self._keys = pages * page
        weights = pairs.weights[:, : self._keys]
        weights = torch.nn.functional.pad(weights, (0, self._keys - weights.shape[1]))
        seen = torch.arange(self._keys) < torch.tensor(ends)[:, None]
        bias = torch.where(seen, weights, LEAST)
        request = pairs.request
        self._bias = bias[request]  # [P, S]
        self._table = table[[piece.place for piece in pieces], :pages].long()[request]  # [P, n]
        self._rows = torch.tensor([piece.first + piece.rows - 1 for piece in pieces])[request]
        self._probabilities: list[Tensor] = []
        self._order: list[int] = []

    def steer(
        self, layer: int, query: Tensor, output: Tensor, keys: Tensor, values: Tensor, scale: float
    ) -> None:
        """Put steered attention in the place of the engine's; arguments of `Passing.attend`."""
        first, end = self._pairs.spans[layer]
        if first == end:
            return
        head, rows = self._pairs.head[first:end], self._rows[first:end]
        pages = self._table[first:end]
        own = (head // (query.shape[1] // keys.shape[1]))[:, None]  # of KV heads
        asked = query[rows, head].float()  # [p, d]
        # [p, n, page, 1] -> [p, S]
        scores = (keys[pages, own].float() @ asked[:, None, :, None]).flatten(1)
        share = torch.add(self._bias[first:end], scores, alpha=scale).softmax(-1)
        found = share[:, None] @ values[pages, own].float().flatten(1, 2)  # [p, 1, d]
        output[rows, head] = found[:, 0].to(output.dtype)
        self._probabilities.append(share)
        self._order.append(layer)

    def shares(self, total: Callable[[Tensor], Tensor]) -> dict[str, list[tuple[int, float]]]:
        """As `Rows.shares`."""
        pairs = self._pairs
        sums = torch.zeros(len(pairs.regions))
        if self._probabilities:
            on = torch.cat([torch.arange(*pairs.spans[layer]) for layer in self._order])
            request = pairs.request[on]
            width = min(self._keys, pairs.region.shape[1])
            whole = torch.cat(self._probabilities)[:, :width]
            sums.index_add_(0, request, (whole * pairs.region[request, :width]).sum(-1))
        means = (total(sums) / pairs.counts).tolist()
        return {
            piece.name: [(piece.past + piece.rows - 1 - piece.state.plan.prompt, mean)]
            for piece, mean in zip(self._pieces, means, strict=True)
        }
