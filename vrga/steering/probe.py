"""The probe: attention of one query row per sample, taken beside a prefill."""

from __future__ import annotations

import torch
from torch import Tensor

from vrga.kernels.api import Kernels
from vrga.method.call import AttentionCall, exactly
from vrga.recording.waiting import LayerShape


class Probe:
    """Collects, in a prefill, the attention of one query row per sample from every layer.

    The prefill may come in several forward passes; `begin` opens each of them.

    Args:
        query: query position of each row, counted from the first key; -1 leaves the row out.
        visible: False on padding, bool [B, S] of the whole prompt.
        kernels: that compute.
    """

    def __init__(self, query: list[int], visible: Tensor, kernels: Kernels):
        self.query, self._visible, self._kernels = query, visible, kernels
        self._scores: dict[int, Tensor] = {}  # layer -> [B, H, S]
        self._windows: dict[int, int | None] = {}  # layer -> keys that it sees at most
        self.layers: dict[int, LayerShape] = {}
        self._placed: dict[tuple, tuple[Tensor, Tensor]] = {}
        self._offset = 0
        self.capacity = 0  # keys that the cache has room for; more than it holds if it is static

    def begin(self, offset: int) -> None:
        """Open a forward pass behind `offset` cached keys."""
        self._offset = offset

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        """The model's own attention, and the probe rows beside it."""
        output = call.output()
        self.collect(call)
        return output

    def collect(self, call: AttentionCall) -> None:
        """Score the query rows of this pass."""
        call.check()
        self.capacity = call.keys
        with torch.no_grad(), exactly(call.query.device):
            self._probe(call)

    def _probe(self, call: AttentionCall) -> None:
        layer, query, key, window = call.layer, call.query, call.key, call.window
        self._windows[layer] = window
        shape = (len(query), query.shape[1], query.shape[3])
        self.layers[layer] = LayerShape(shape, query.dtype, query.device, call.scale)
        if layer not in self._scores:
            shape = *query.shape[:2], self._visible.shape[1]
            self._scores[layer] = torch.full(shape, -torch.inf, device=query.device)
        # A sliding window's cache drops the first keys.
        first = max(self._offset + call.rows - call.keys, 0)
        scores = self._scores[layer][:, :, first:]
        if not call.plain:
            self._read_off(call, scores, first)
            return
        place = query.device, window, first
        if place not in self._placed:
            last = torch.tensor(self.query, dtype=torch.int32, device="cpu") - first
            hidden = torch.stack([~self._sees(row, window) for row in range(len(self.query))])
            self._placed[place] = last.to(query.device), hidden[:, first:].to(query.device)
        arguments = (query, key, *self._placed[place], scores)
        self._kernels.probe_scores(*arguments, offset=self._offset - first, scale=call.scale)

    def _read_off(self, call: AttentionCall, scores: Tensor, first: int) -> None:
        """Logarithms of the attention that the model's own backend gives the query rows."""
        for row, place in enumerate(self.query):
            at = place - self._offset
            if not 0 <= at < call.rows:
                continue
            end, mask = place - first + 1, call.mask
            if mask is not None:
                mask = mask[row % len(mask)][None]
                mask = mask[:, :, at : at + 1, :end] if mask.ndim == 4 else mask[:, :end]
            one = slice(row, row + 1)
            query = call.query[one, :, at : at + 1]
            alone = call.of(query, call.key[one, :, :end], call.value[one, :, :end], mask)
            scores[row, :, :end] = alone.probabilities()[0, :, 0].log().to(scores.dtype)  # [H, end]

    def _sees(self, row: int, window: int | None) -> Tensor:
        """Keys that a sample's query sees through a window, bool [S]."""
        place, last = torch.arange(self._visible.shape[1], device="cpu"), self.query[row]
        seen = self._visible[row] & (place <= last)
        return seen if window is None else seen & (place > last - window)

    @property
    def windowed(self) -> bool:
        """Whether some layer sees a sliding window."""
        return any(window is not None for window in self._windows.values())

    @property
    def devices(self) -> set[torch.device]:
        """The devices of the layers."""
        return {scores.device for scores in self._scores.values()}

    def seen(self, row: int) -> Tensor:
        """Keys that a sample's query sees in every layer, bool [L, S], on the CPU."""
        return torch.stack([self._sees(row, self._windows[i]) for i in sorted(self._windows)])

    def attention_rows(self, row: int, layers: int) -> Tensor:
        """The probed row of a sample from every layer, softmax(q K), float32 [L, H, S].

        Raises:
            RuntimeError: the model did not hand its keyword arguments to its attention layers.
        """
        if len(self._scores) != layers:
            raise RuntimeError(
                f"only {len(self._scores)} of the model's {layers} layers called the attention "
                "function with vrga's keyword argument; this model cannot be patched"
            )
        found = [self._scores[layer][row] for layer in sorted(self._scores)]
        return torch.stack([scores.to(found[0].device) for scores in found]).softmax(-1)
