"""The rows of steered answers in a forward pass on a CPU, as `page_rows` takes them.

What holds as long as the same requests answer together is put together once; a pass adds its rows,
and a layer is one call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vrga.engine.steered import Steered

if TYPE_CHECKING:
    from vrga.engine.answer_rows import Piece
    from vrga.engine.steady import Steady

LANES, SCRATCH = 16, 6  # keys that are read at once; rows of numbers that a head needs
END = 2  # column of a row: the keys that it sees
NEAR = 0.5  # a weight below it would take more than half of what the engine's sum holds away


class Known:
    """What a pass needs of one request whose region is known.

    Args:
        state: of it; heads: of this worker, among all.

    Attributes:
        prompt: its tokens; kinds: [4, prompt, and up to the next LANES]; chosen: positions;
            heads: bool [L, 2, H]; limits, columns: numbers, all as of `page_rows.steer_rows`.
        count: visual heads, over all workers.
    """

    def __init__(self, state: Steered, heads: slice):
        config, groups, region = state.plan.config, state.groups, state.region
        assert region is not None  # the prompt is through
        flags = state.flags[0].numpy()
        group, image = flags >> 1, flags & 1
        opened = np.asarray(groups.opened, np.float32)[group]
        closed = np.asarray(groups.closed, np.float32)[group]
        self.prompt = len(flags)
        self.kinds = np.zeros((4, -(-len(flags) // LANES) * LANES), np.float32)
        self.kinds[:, : len(flags)] = image, region.mask.numpy(), opened, closed
        self.kinds[2:, len(flags) :] = 1
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
                (one.prompt, tokens[i], parts[i], parts[i + 1], *one.columns)
                for i, one in enumerate(known)
            ],
            np.int64,
        )
        self.limits = np.array([one.limits for one in known], np.float32)
        self.kinds = np.concatenate([one.kinds for one in known], 1)
        self.chosen = np.concatenate([one.chosen for one in known])
        each = np.ascontiguousarray(np.stack([one.heads for one in known], 2))
        used = np.any([one.layers for one in known], 0)
        self.heads = [own if any_of else None for own, any_of in zip(each, used, strict=True)]
        self.counts = np.array([one.count for one in known])

    def are(self, states: Sequence[Steered]) -> bool:
        """Whether these are the requests, in this order."""
        return len(states) == len(self._states) and all(
            one is other() for one, other in zip(states, self._states, strict=True)
        )


class Kept:
    """What lasts from one pass to the next.

    Attributes:
        steady: the last pass, where the next may be one like it, or None.
    """

    def __init__(self) -> None:
        self.steady: Steady | None = None
        self._requests: Requests | None = None
        self._scratch = np.zeros((SCRATCH, 0), np.float32)

    def requests(self, states: Sequence[Steered], heads: slice) -> Requests:
        """These requests, put together; arguments of `Requests`."""
        if self._requests is None or not self._requests.are(states):
            self._requests = Requests(states, heads)
        return self._requests

    def scratch(self, keys: int) -> np.ndarray:
        """Memory for the scores of so many keys, float32 [SCRATCH, more]."""
        if self._scratch.shape[1] < keys:
            self._scratch = np.zeros((SCRATCH, 2 * keys), np.float32)
        return self._scratch


class CompiledRows:
    """The rows of one pass, and of the next ones where these are like it.

    Args:
        pieces: of the pass.
        kept: from pass to pass.
        heads: of this worker, among all.
    """

    def __init__(self, pieces: Sequence[Piece], kept: Kept, heads: slice):
        steered, rows = list[Steered](), list[tuple[int, int, int, int]]()
        self._names, self._steps = list[str](), list[int]()  # of each row
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
                    self._names.append(piece.name)
                    self._steps.append(begin + i)
            steered.append(state)
        self._rows = np.array(rows, np.int64).reshape(-1, 4)
        self._shares = np.zeros(len(rows), np.float32)
        self._requests = kept.requests(steered, heads) if rows else None
        self._counts: Any = 1 if self._requests is None else self._requests.counts[self._rows[:, 3]]
        self._single = len(set(self._names)) == len(rows)
        self._kept = kept
        self._call: Callable[..., None] | None = None  # once the first layer has come

    def go_on(self, ends: Sequence[int], steps: list[int]) -> None:
        """The next pass has the same rows, of later tokens.

        Args:
            ends: keys that each sees; steps: of the answers.
        """
        self._rows[:, END] = ends
        self._shares[:] = 0
        self._steps, self._call = steps, None

    def steer(
        self,
        layer: int,
        query: Tensor,
        output: Tensor,
        cache: np.ndarray,
        table: Tensor,
        scale: float,
    ) -> None:
        """Put steered attention in the place of the engine's; arguments of `steer_rows`."""
        of = self._requests
        if of is None or of.heads[layer] is None:
            return
        if self._call is None:
            from vrga.engine.page_rows import steer_rows  # compiled where numba is

            self._call, self._table = steer_rows, table.numpy()
            most = room(int(self._rows[:, END].max()), cache, query.shape[2])
            self._scratch = self._kept.scratch(most)
        self._call(
            query.numpy(), output.numpy(), cache, self._table, self._rows, of.columns, of.limits,
            of.kinds, of.chosen, of.heads[layer], scale, self._scratch, self._shares,
        )  # fmt: skip

    def shares(self, total: Callable[[Tensor], Tensor]) -> dict[str, list[tuple[int, float]]]:
        """As `Rows.shares`."""
        found: dict[str, list[tuple[int, float]]] = {}
        if self._requests is not None:
            means = (total(torch.from_numpy(self._shares)).numpy() / self._counts).tolist()
            rows = zip(self._names, self._steps, means, strict=True)
            if self._single:
                return {name: [(step, mean)] for name, step, mean in rows}
            for name, step, mean in rows:
                found.setdefault(name, []).append((step, mean))
        return found


def probe(
    query: Tensor,
    cache: np.ndarray,
    table: Tensor,
    row: int,
    place: int,
    seen: int,
    scale: float,
    kept: Kept,
) -> Tensor:
    """Attention of a row of the query [T, H, d] over the first `seen` keys of a place in the table,
    [H, seen]."""
    from vrga.engine.page_rows import probe_row

    found = np.empty((query.shape[1], seen), np.float32)
    scratch = kept.scratch(room(seen, cache, query.shape[2]))
    probe_row(query.numpy(), cache, table.numpy(), row, place, seen, scale, scratch, found)
    return torch.from_numpy(found)


def room(keys: int, cache: np.ndarray, size: int) -> int:
    """Length of scratch memory for so many keys: of whole pages, and at least a head's `size`."""
    page = cache.shape[2] // (2 * size)
    return max(-(-keys // page) * page, size)
