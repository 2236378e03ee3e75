"""The probe: attention of one query row per sample, or of a whole question's, beside a prefill."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vrga.kernels.api import Kernels
from vrga.method.call import AttentionCall, exactly
from vrga.recording.waiting import LayerShape
from vrga.steering.probe_scores import KeptScores, LateScores
from vrga.steering.probed_rows import ProbedRows
from vrga.steering.query_rows import QueryRows


class Probe:
    """Collects, in a prefill, the attention of the question's rows from every layer.

    Where a layer's keys are in the cache as attention saw them, the query rows alone are kept, to
    be scored when the pass is through; else the rows' scores are. The prefill may come in several
    forward passes: `begin` opens each of them, `rows` asks about it, and `close` lets go of it. A
    question that comes in several passes leaves the scores of its first rows, [B, H, Q, S] of each
    layer, until its last row has come.

    Args:
        query: query position of each row, counted from the first key; -1 leaves the row out.
        visible: False on padding, bool [B, S] of the whole prompt.
        kernels: that compute.
        words: positions of all of each row's question, ascending, with the query as the last; None
            probes the query alone.
    """

    def __init__(
        self,
        query: list[int],
        visible: Tensor,
        kernels: Kernels,
        words: Sequence[Sequence[int]] | None = None,
    ):
        self.query, self._kernels = query, kernels
        self._asked = QueryRows(query, visible, words)
        self._scored: dict[int, LateScores | KeptScores] = {}  # layer -> of the current pass
        self._begun: dict[int, KeptScores] = {}  # layer -> of questions that go on
        self._windows: dict[int, int | None] = {}  # layer -> keys that it sees at most
        self.layers: dict[int, LayerShape] = {}
        self._placed: dict[tuple, tuple[Tensor, ...]] = {}
        self._offset = self._width = 0  # of the current pass
        self._holds: Callable[[int, Tensor], bool] | None = None
        self.capacity = 0  # keys that the cache has room for; more than it holds if it is static

    def begin(self, offset: int, holds: Callable[[int, Tensor], bool]) -> None:
        """Open a forward pass behind `offset` cached keys.

        Args:
            holds: tells, of a layer and the keys that its attention is given, whether these are the
                cache's own.
        """
        self._offset, self._width, self._holds = offset, 0, holds
        self._scored = {}

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        """The model's own attention, and the probe rows beside it."""
        output = call.output()
        self.collect(call)
        return output

    def collect(self, call: AttentionCall) -> None:
        """Take what this layer shows of the query rows of this pass."""
        call.check()
        self.capacity, self._width = call.keys, call.rows
        shape = (len(call.query), call.query.shape[1], call.query.shape[3])
        query = call.query
        self.layers[call.layer] = LayerShape(shape, query.dtype, query.device, call.scale)
        self._windows[call.layer] = call.window
        holds = self._holds
        if holds is None or not self._asked.among(self._offset, self._width):
            return  # computed again in a backward pass, or another piece of the prompt
        with torch.no_grad(), exactly(query.device):
            self._scored[call.layer] = self._score(call, holds)

    def _score(
        self, call: AttentionCall, holds: Callable[[int, Tensor], bool]
    ) -> LateScores | KeptScores:
        """The query rows of this layer where they can wait, else their scores."""
        query, key = call.query, call.key
        # A sliding window's cache drops the first keys.
        first = max(self._offset + call.rows - call.keys, 0)
        late = self._late(call, first) if call.plain else None
        whole = not first and call.window is None
        if late is not None and whole and holds(call.layer, key):
            return late
        batch, heads = query.shape[:2]
        scores = torch.full(
            (batch, heads * self._asked.width, self._asked.length), -torch.inf, device=query.device
        )
        kept = KeptScores(scores, key.shape[1], self._asked.width)
        if late is None:
            self._read_off(call, kept.of_rows[..., first:], first)
        else:
            late.write(slice(0, batch), slice(0, key.shape[1]), scores[:, :, first:])
        return kept

    def _late(self, call: AttentionCall, first: int) -> LateScores:
        """Query rows and keys of a plain call, of whose keys the first `first` are gone."""
        query, key, window = call.query, call.key, call.window
        device, begin = query.device, self._offset - first
        place = device, window, first, self._offset
        if place not in self._placed:
            last, at = self._asked.within(self._offset, call.rows)
            hidden, unseen = self._asked.hidden(window)
            numbers = torch.arange(len(at), device="cpu")[:, None]
            self._placed[place] = tuple(
                x.to(device)
                for x in (last - first, hidden[:, first:], numbers, at, unseen[..., first:])
            )
        last, hidden, numbers, at, unseen = self._placed[place]
        rows = query[numbers, :, at].transpose(1, 2)  # a copy: the others are let go
        return LateScores(
            rows, key, last, hidden, unseen, begin, call.rows, call.scale,
            self._kernels.probe_scores,
        )  # fmt: skip

    def _read_off(self, call: AttentionCall, scores: Tensor, first: int) -> None:
        """Logarithms of the attention that the model's own backend gives the query rows, into
        [B, H, Q, S]."""
        for row, number, place in self._asked.among(self._offset, call.rows):
            at = place - self._offset
            end, mask = place - first + 1, call.mask
            if mask is not None:
                mask = mask[row % len(mask)][None]
                mask = mask[:, :, at : at + 1, :end] if mask.ndim == 4 else mask[:, :end]
            one = slice(row, row + 1)
            query = call.query[one, :, at : at + 1]
            alone = call.of(query, call.key[one, :, :end], call.value[one, :, :end], mask)
            found = alone.probabilities()[0, :, 0].log().to(scores.dtype)  # [H, end]
            scores[row, :, number, :end] = found

    @property
    def windowed(self) -> bool:
        """Whether some layer sees a sliding window."""
        return any(window is not None for window in self._windows.values())

    @property
    def devices(self) -> set[torch.device]:
        """The devices of the layers."""
        return {layer.device for layer in self.layers.values()}

    @property
    def here(self) -> list[int]:
        """Rows whose query is in the current pass, as far as its layers have shown."""
        return [row for row, at in enumerate(self.query) if 0 <= at - self._offset < self._width]

    def seen(self, row: int) -> Tensor:
        """Keys that a sample's query sees in every layer, bool [L, S], on the CPU; with the words
        of its question, those that each of them sees, bool [L, Q, S]."""
        windows = [self._windows[i] for i in sorted(self._windows)]
        return torch.stack([self._asked.sees(row, window) for window in windows])

    def rows(self, samples: list[int], layers: int) -> ProbedRows:
        """Attention rows of some samples, whose query is in the current pass, from every layer.

        Raises:
            RuntimeError: the model did not hand its keyword arguments to its attention layers.
        """
        if len(self._scored) != layers:
            raise RuntimeError(
                f"only {len(self._scored)} of the model's {layers} layers called the attention "
                "function with vrga's keyword argument; this model cannot be patched"
            )
        scored = {layer: self._with_begun(layer) for layer in self._scored}
        return ProbedRows(scored, samples, self._asked)

    def _with_begun(self, layer: int) -> LateScores | KeptScores:
        """What a layer left of this pass, and of the rows that came before it."""
        scored, begun = self._scored[layer], self._begun.get(layer)
        if begun is None:
            return scored
        came = torch.zeros(len(self.query), 1, self._asked.width, 1, dtype=torch.bool, device="cpu")
        for row, number, _ in self._asked.among(self._offset, self._width):
            came[row, :, number] = True
        new = self._asked.made(scored)
        scores = torch.where(came.to(new.device), new.of_rows, begun.of_rows)
        return KeptScores(scores.flatten(1, 2), new.kv_heads, self._asked.width)

    def close(self) -> None:
        """The pass is through: let go of its keys and of its cache."""
        if self._scored:
            goes_on = self._asked.goes_on(self._offset, self._width)
            layers = self._scored if goes_on else {}
            self._begun = {i: self._asked.made(self._with_begun(i)) for i in layers}
        self._scored, self._holds = {}, None
