"""The meter: what attention is at decode steps, measured at once or many steps together."""

from __future__ import annotations

import torch
from torch import Tensor

from vrga.config import VRGAConfig
from vrga.kernels.api import Kernels
from vrga.kernels.columns import GROUP
from vrga.kernels.reference import KeySets
from vrga.method.call import AttentionCall, exactly
from vrga.method.key_views import PassViews, View
from vrga.method.steered_keys import SteeredKeys
from vrga.recording.recorder import Recorder
from vrga.recording.waiting import Bank, Waiting


class Meter:
    """Measures the attention of decode steps for a recorder.

    Args:
        recorder: takes what is measured; it knows the groups of the keys.
        config: whose gate is measured.
        kernels: that compute.
        keys: that the steps see, while the first regions are steered to.
        waits: whether steps may wait until `settle` is called: keys stay in the cache as attention
            saw them.
        bank: memory for what compiled steps measure, or None where they cannot be measured.
    """

    def __init__(
        self,
        recorder: Recorder,
        config: VRGAConfig,
        kernels: Kernels,
        keys: SteeredKeys,
        *,
        waits: bool = False,
        bank: Bank | None = None,
    ):
        self.recorder, self._config, self._kernels, self._keys = recorder, config, kernels, keys
        self._waits, self._bank = waits, bank
        self._waiting: dict[int, Waiting] = {}  # layer -> steps

    def aim(self, keys: SteeredKeys) -> None:
        """Other regions are steered to from here on; what waits saw those before."""
        self.settle()
        self._keys = keys

    def begin_compiled(self) -> None:
        """A compiled step begins."""
        if self._bank is not None:
            self._bank.begin()

    def note(self, inside: Tensor | None, drawn: Tensor | None) -> None:
        """Which tokens of this pass are inside a <back> span, bool [B, Q], and the entropy of what
        a single one was drawn from, float32 [B]; None where that is not followed."""
        if not torch.compiler.is_compiling():
            self.recorder.note(inside, drawn)
        elif self._bank is not None:
            self._bank.note(inside, drawn)

    def wants(self, layer: int) -> bool:
        """Whether this layer of this forward pass is measured.

        Raises:
            RuntimeError: a compiled step without memory made for it.
        """
        if not torch.compiler.is_compiling():
            return self.recorder.wants(layer)
        if self._bank is None:
            raise RuntimeError(
                "compiled decoding can be recorded with a static cache alone, greedily or "
                "sampling: call generate with disable_compile=True"
            )
        return layer in self._bank.layers

    def room(self, call: AttentionCall) -> Tensor:
        """Room for the statistics of a call, [B, H, Q, 3 + groups], which its attention writes."""
        if torch.compiler.is_compiling():
            return self._empty(call.query)
        waiting = self._waiting.get(call.layer)
        if waiting is not None and not waiting.stats:  # those before it come first
            self._finish(call.layer, self._waiting.pop(call.layer), PassViews(self._keys))
        self.recorder.count(call.layer)
        return self.recorder.take(call.layer, call.query)

    def take(self, call: AttentionCall, stats: Tensor, past: int, views: PassViews) -> None:
        """A call's statistics are written; its maps are still to be made.

        Args:
            past: keys before the pass; views: of the pass.
        """
        if torch.compiler.is_compiling():
            assert self._bank is not None  # `wants` has refused such a step
            self._bank.put(call.layer, call.query, stats)
        elif self.recorder.maps_of(call.layer):
            self._observe(call, stats, past, views)

    def watch(
        self, call: AttentionCall, past: int, views: PassViews, opened: Tensor | bool = False
    ) -> None:
        """Measure a call beside what computes it; arguments likewise.

        Args:
            opened: whether it is steered, or which of its query rows are, bool [B, Q].
        """
        if torch.compiler.is_compiling():
            assert self._bank is not None  # likewise
            self._bank.put(call.layer, call.query, None)
            return
        self.recorder.count(call.layer)
        with exactly(call.query.device):
            self._observe(call, None, past, views, opened)

    def settle(self) -> None:
        """Compute what waits."""
        views = PassViews(self._keys)
        while self._waiting:
            self._finish(*self._waiting.popitem(), views)
        bank, recorder = self._bank, self.recorder
        if bank is None:
            return
        count = int(bank.at)
        if not count:
            return
        for first, end in recorder.count_compiled(count):
            if bank.follows:
                recorder.inside.extend(bank.inside[first:end].clone().unbind())
            if bank.hears:
                recorder.uncertainty.extend(bank.drawn[first:end].clone().unbind())
            mask = bank.mask(end)
            for layer in bank.layers:
                waiting = bank.waiting(layer, first, end, mask)
                for stats in waiting.stats:
                    recorder.keep(layer, stats)
                self._finish(layer, waiting, views)
        bank.empty()

    def _observe(
        self,
        call: AttentionCall,
        stats: Tensor | None,
        past: int,
        views: PassViews,
        opened: Tensor | bool = False,
    ) -> None:
        """Let a step wait until its statistics, or maps, are computed; or do it now.

        Args:
            stats: of the step, [B, H, Q, 3 + groups]; None where they are still to be computed.
            opened: with none, whether it is steered, or which of its query rows are.
        """
        layer = call.layer
        if call.window is not None and call.rows > 1:
            for i, part in call.each_row():
                own = None if stats is None else stats[:, :, i : i + 1]
                seen = opened[:, i : i + 1] if isinstance(opened, Tensor) else opened
                self._finish(layer, _wait(None, part, own, past + i, seen), views)
            return
        waiting = self._waiting.get(layer)
        known = stats is not None
        if waiting and (waiting.past + 1 != past or bool(waiting.stats) != known):
            self._finish(layer, self._waiting.pop(layer), views)
            waiting = None
        self._waiting[layer] = _wait(waiting, call, stats, past + call.rows - 1, opened)
        if not self._waits or not call.plain or call.window is not None:
            self._finish(layer, self._waiting.pop(layer), views)

    def _finish(self, layer: int, waiting: Waiting, views: PassViews) -> None:
        """Compute the statistics of one layer's steps, where none are known, and their maps."""
        recorder = self.recorder
        if waiting.stats and not recorder.maps_of(layer):
            return
        query, key, past = torch.cat(waiting.queries, 2), waiting.key, waiting.past
        assert key is not None  # of the queries that wait
        rows, keys = query.shape[2], key.shape[2]
        with torch.no_grad():
            view = views.view(waiting.mask, query, keys, past - rows + 1, waiting.window)
            gates = torch.cat(waiting.stats, 2) if waiting.stats else None
            if gates is None:
                stats = self.statistics(layer, query, key, view, waiting)
                recorder.keep(layer, stats)
                if waiting.steered:
                    gates = waiting.shut_where_left(stats)
            if recorder.maps_of(layer):
                recorder.keep_maps(layer, query, waiting, self._sets(view, query, keys), gates)

    def statistics(
        self, layer: int, query: Tensor, key: Tensor, view: View, waiting: Waiting
    ) -> Tensor:
        """Statistics of attention as the model's own backend computes it, [B, H, Q, 3 + groups]."""
        stats = self._empty(query)
        self._kernels.attention_statistics(
            self._kernels.way(query, plain=waiting.plain),
            query,
            key,
            view.flags,
            view.images,
            stats,
            sets=lambda: self._sets(view, query, key.shape[2]),
            opened=self.recorder.groups.opened,
            closed=self.recorder.groups.closed,
            extent=view.extent,
            scale=waiting.scale,
            focus=self._config.gate_focus,
            entropy=self._config.gate_entropy,
            gate=self._keys.gate(layer, query.device),
        )
        return stats

    def _sets(self, view: View, query: Tensor, keys: int) -> KeySets:
        groups = self.recorder.groups
        return view.key_sets(query, keys, groups.opened, groups.closed)

    def _empty(self, query: Tensor) -> Tensor:
        shape = (*query.shape[:3], GROUP + self.recorder.groups.count)
        return torch.empty(shape, dtype=torch.float32, device=query.device)


def _wait(
    waiting: Waiting | None,
    call: AttentionCall,
    stats: Tensor | None,
    past: int,
    opened: Tensor | bool,
) -> Waiting:
    """A call whose last query is at `past` waits, behind those that wait already."""
    plain, call = call.plain, call.as_softmax()
    waiting = Waiting(call.scale, call.window, plain) if waiting is None else waiting
    waiting.queries.append(call.query)
    if stats is not None:
        waiting.stats.append(stats)
    waiting.opened.append(opened)
    mask = call.mask
    if call.rows > 1 and mask is not None and mask.ndim == 4:
        mask = mask[:, :, -1:]  # the rows before see less of the same keys
    waiting.key, waiting.mask, waiting.past = call.key, mask, past
    return waiting
