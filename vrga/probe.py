"""The probe: attention of one query row per sample, taken beside a prefill."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from vrga.kernels.reference import probe_scores_reference
from vrga.waiting import LayerShape


def exactly(device: torch.device) -> AbstractContextManager:
    """Our own sums in the types they are given, also where autocast would round them."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def check_plain(kwargs: dict) -> None:
    """Refuse attention that is more than a softmax over the keys.

    Raises:
        ValueError: attention sinks or capped scores, which our kernels do not know.
    """
    for name in ("s_aux", "softcap"):
        if kwargs.get(name) is not None:
            raise ValueError(
                f"the text model's attention has {name}={type(kwargs[name]).__name__}, which is "
                "not part of steered attention; use a model without attention sinks and capped "
                "scores"
            )


class Probe:
    """Collects, in a prefill, the attention of one query row per sample from every layer.

    The prefill may come in several forward passes; `begin` opens each of them.

    Args:
        query: query position of each row, counted from the first key; -1 leaves the row out.
        visible: False on padding, bool [B, S] of the whole prompt.
        impl: "torch", "triton", or "auto", which is Triton on CUDA.
    """

    def __init__(self, query: list[int], visible: Tensor, impl: str):
        self.query, self._visible, self._impl = query, visible, impl
        self._scores: dict[int, Tensor] = {}  # layer -> [B, H, S]
        self._windows: dict[int, int | None] = {}  # layer -> keys that it sees at most
        self.layers: dict[int, LayerShape] = {}
        self._placed: dict[tuple, tuple[Tensor, Tensor]] = {}
        self._workspace = None
        self._offset = 0
        self.capacity = 0  # keys that the cache has room for; more than it holds if it is static

    def begin(self, offset: int) -> None:
        """Open a forward pass behind `offset` cached keys."""
        self._offset = offset

    def attend(self, own, module, query, key, value, attention_mask, **kwargs):
        """The model's own attention, and the probe rows beside it."""
        output = own(module, query, key, value, attention_mask, **kwargs)
        self.collect(module, query, key, kwargs)
        return output

    def collect(self, module, query: Tensor, key: Tensor, kwargs: dict) -> None:
        """Score the query rows of this pass; `kwargs` are the attention function's."""
        check_plain(kwargs)
        self.capacity = key.shape[2]
        with torch.no_grad(), exactly(query.device):
            self._probe(module.layer_idx, query, key, kwargs)

    def _probe(self, layer: int, query: Tensor, key: Tensor, kwargs: dict) -> None:
        window = kwargs.get("sliding_window")
        self._windows[layer] = window
        shape = (len(query), query.shape[1], query.shape[3])
        self.layers[layer] = LayerShape(shape, query.dtype, query.device, kwargs["scaling"])
        if layer not in self._scores:
            shape = *query.shape[:2], self._visible.shape[1]
            self._scores[layer] = torch.full(shape, -torch.inf, device=query.device)
        # A sliding window's cache drops the first keys.
        first = max(self._offset + query.shape[2] - key.shape[2], 0)
        place = query.device, window, first
        if place not in self._placed:
            last = torch.tensor(self.query, dtype=torch.int32) - first
            hidden = torch.stack([~self._sees(row, window) for row in range(len(self.query))])
            self._placed[place] = last.to(query.device), hidden[:, first:].to(query.device)
        arguments = (query, key, *self._placed[place], self._scores[layer][:, :, first:])
        numbers = dict(offset=self._offset - first, scale=kwargs["scaling"])
        if self._impl == "torch" or (self._impl == "auto" and not query.is_cuda):
            probe_scores_reference(*arguments, **numbers)
        else:
            from vrga.kernels.launch import Workspace
            from vrga.kernels.probe import probe_scores

            self._workspace = self._workspace or Workspace()
            probe_scores(*arguments, **numbers, workspace=self._workspace)

    def _sees(self, row: int, window: int | None) -> Tensor:
        """Keys that a sample's query sees through a window, bool [S]."""
        place, last = torch.arange(self._visible.shape[1]), self.query[row]
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
