"""The rows of steered answers in a forward pass on a CPU, as `page_rows` takes them.

What holds as long as the same requests answer together is put together once; a pass adds its rows,
and a layer is one call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vrga.engine.steered import Steered

if TYPE_CHECKING:
    from vrga.engine.answer_rows import Piece

NEAR = 0.5  # a weight below it would take more than half of what the engine's sum holds away


class Known:
    """What a pass needs of one request whose region is known.

    Args:
        state: of it; heads: of this worker, among all.

    Attributes:
        kinds: [4, prompt]; chosen: positions; heads: bool [L, 2, H]; limits, columns: numbers,
            all as of `page_rows.steer_rows`; count: visual heads, over all workers.
    """

    def __init__(self, state: Steered, heads: slice):
        config, groups, region = state.plan.config, state.groups, state.region
        assert region is not None  # the prompt is through
        flags = state.flags[0].numpy()
        group, image = flags >> 1, flags & 1
        opened = np.asarray(groups.opened, np.float32)[group]
        closed = np.asarray(groups.closed, np.float32)[group]
        self.kinds = np.stack([image, region.mask.numpy(), opened, closed]).astype(np.float32)
        self.chosen = np.flatnonzero(opened != 1)
        visual = region.visual.numpy()[:, heads]
        gate = np.zeros_like(visual) if state.gate is None else state.gate.numpy()[:, heads]
        self.heads = np.stack([gate, visual], 1)
        least = min(opened.min(), closed.min())
        plain = bool((closed == 1).all())
        self.columns = (
            state.gate is not None, not len(self.chosen), plain, not plain or least < NEAR,
            least == 0,
        )  # fmt: skip
        self.limits = (config.gate_focus, config.gate_entropy, 1 / max(1, state.images))
        self.count = max(1, int(region.visual.sum()))
        # Whether a layer does anything to it.
        self.layers = gate.any(1) | (state.gate is None) | (not plain)


class Requests:
    """Requests that answer together, one after another.

    Args:
        states: of them, regions known; heads: of this worker, among all.
    """

    def __init__(self, states: Sequence[Steered], heads: slice):
        for state in states:
            if state.known is None:
                state.known = Known(state, heads)
        known = [state.known for state in states if state.known is not None]
        self._states = [weakref.ref(state) for state in states]  # which ends with its request
        tokens = np.cumsum([0, *(one.kinds.shape[1] for one in known)])
        parts = np.cumsum([0, *(len(one.chosen) for one in known)])
        self.columns = np.array(
            [
                (one.kinds.shape[1], tokens[i], parts[i], parts[i + 1], *one.columns)
                for i, one in enumerate(known)
            ],
            np.int64,
        )
        self.limits = np.array([one.limits for one in known], np.float32)
        self.kinds = np.concatenate([one.kinds for one in known], 1)
        self.chosen = np.concatenate([one.chosen for one in known])
        self.heads = np.ascontiguousarray(np.stack([one.heads for one in known], 2))
        self.counts = torch.tensor([one.count for one in known])
        self.layers = np.any([one.layers for one in known], 0).tolist()

    def are(self, states: Sequence[Steered]) -> bool:
        """Whether these are the requests, in this order."""
        return len(states) == len(self._states) and all(
            one is other() for one, other in zip(states, self._states, strict=True)
        )


class Kept:
    """What lasts from one pass to the next."""

    def __init__(self) -> None:
        self._requests: Requests | None = None
        self._scratch = np.zeros((4, 0), np.float32)

    def requests(self, states: Sequence[Steered], heads: slice) -> Requests:
        """These requests, put together; arguments of `Requests`."""
        if self._requests is None or not self._requests.are(states):
            self._requests = Requests(states, heads)
        return self._requests

    def scratch(self, keys: int) -> np.ndarray:
        """Memory for the scores of so many keys, float32 [4, more]."""
        if self._scratch.shape[1] < keys:
            self._scratch = np.zeros((4, 2 * keys), np.float32)
        return self._scratch


class CompiledRows:
    """The rows of one pass.

    Args:
        pieces: of the pass.
        kept: from pass to pass.
        table: the engine's block table, int32 [requests, most pages].
        heads: of this worker, among all.
    """

    def __init__(self, pieces: Sequence[Piece], kept: Kept, table: Tensor, heads: slice):
        steered, rows = list[Steered](), list[tuple[int, int, int, int]]()
        self._steps: list[tuple[str, int]] = []  # request and step of each row
        for piece in pieces:
            state, first = piece.state, piece.answer
            if first >= piece.rows or state.fault is not None:
                continue
            told = state.follow(piece.ids[first:], piece.past + first)
            begin = piece.past - state.plan.prompt
            for i in range(first, piece.rows):
                if told is None or told[i - first]:
                    own = (piece.first + i, piece.place, piece.past + i + 1, len(steered))
                    rows.append(own)
                    self._steps.append((piece.name, begin + i))
            steered.append(state)
        self._rows = np.array(rows, np.int64).reshape(-1, 4)
        self._shares = np.zeros(len(rows), np.float32)
        self._table = table.numpy()
        self._requests = kept.requests(steered, heads) if rows else None
        self._kept, self._most = kept, max((end for _, _, end, _ in rows), default=0)

    def steer(
        self, layer: int, query: np.ndarray, output: np.ndarray, cache: np.ndarray, scale: float
    ) -> None:
        """Put steered attention in the place of the engine's; arguments of `steer_rows`."""
        of = self._requests
        if of is None or not of.layers[layer]:
            return
        from vrga.engine.page_rows import steer_rows  # compiled where numba is

        scratch = self._kept.scratch(room(self._most, cache, query.shape[2]))
        steer_rows(
            query, output, cache, self._table, self._rows, of.columns, of.limits, of.kinds,
            of.chosen, of.heads[layer], scale, scratch, self._shares,
        )  # fmt: skip

    def shares(self, total: Callable[[Tensor], Tensor]) -> dict[str, list[tuple[int, float]]]:
        """As `Rows.shares`."""
        found: dict[str, list[tuple[int, float]]] = {}
        if self._requests is not None:
            counts = self._requests.counts[self._rows[:, -1]]
            means = (total(torch.from_numpy(self._shares)) / counts).tolist()
            for (name, step), mean in zip(self._steps, means, strict=True):
                found.setdefault(name, []).append((step, mean))
        return found


def probe(
    query: np.ndarray, cache: np.ndarray, pages: np.ndarray, seen: int, scale: float, kept: Kept
) -> Tensor:
    """Attention of one query row [H, d] over the first `seen` keys of its pages, [H, seen]."""
    from vrga.engine.page_rows import probe_row

    found = np.empty((query.shape[0], seen), np.float32)
    scratch = kept.scratch(room(seen, cache, query.shape[1]))
    probe_row(query, cache, pages, seen, scale, scratch, found)
    return torch.from_numpy(found)


def room(keys: int, cache: np.ndarray, size: int) -> int:
    """Length of scratch memory for so many keys: of whole pages, and at least a head's `size`."""
    page = cache.shape[2] // (2 * size)
    return max(-(-keys // page) * page, size)
