"""Steering: what every decode step does with attention, from the regions found at prefill."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from vrga.config import VRGAConfig
from vrga.kernels.reference import (
    ENTROPY,
    GATE,
    GROUP,
    MASS,
    attention_statistics,
    decode_attention_reference,
)
from vrga.method.back_spans import Phase
from vrga.method.call import AttentionCall, exactly
from vrga.method.heads import choose_ablated
from vrga.method.key_groups import group_count, key_groups, weights
from vrga.method.key_views import View, view_of
from vrga.method.region import Region
from vrga.recording.recorder import Recorder
from vrga.recording.waiting import Bank, LayerShape, Waiting
from vrga.steering.probe import Probe
from vrga.steering.steps import CHOICE, OPENS, OUTSIDE

IMPLEMENTATIONS = ("auto", "torch", "triton")


def check_implementation(impl: str, device: torch.device) -> None:
    """Raise ValueError unless `impl` is known and can run on `device`."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r} is not one of {', '.join(map(repr, IMPLEMENTATIONS))}")
    if impl == "triton" and device.type != "cuda" and not _interpreting():
        raise ValueError(
            f"impl='triton' needs a model on a CUDA device, or Triton's interpreter "
            f"(TRITON_INTERPRET=1) for tests; the model is on {device}: use impl='torch' or 'auto'"
        )


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


class Steering:
    """The attention of the decode steps that follow one prefill. Its state is all tensors.

    Args:
        regions: one per row of the batch.
        config: the method's numbers.
        impl: "auto", "torch" or "triton".
        applied: False leaves every output as the model's own attention gives it, so that the
            steps are only measured.
        watch: extra set of keys whose attention is measured, bool [B, S], or None.
        question: the question's text tokens, whose attention is measured, bool [B, S], or None;
            instead of `watch`.
        recorder: takes the statistics of every step, or None.
        waits: whether measured steps may wait until `settle` is called: keys stay in the cache as
            attention saw them.
        capacity: keys that the cache has room for.
        phase: follows the rows' <back> spans, where the config asks for them, or None.
        ablated: heads that lose the image, bool [B, L, H], with ``ablate="given"``.

    Attributes:
        probe: measures the query rows of this pass as well, or None.
        regions: that are steered to, one per row.
    """

    def __init__(
        self,
        regions: list[Region],
        config: VRGAConfig,
        impl: str,
        *,
        applied: bool = True,
        watch: Tensor | None = None,
        question: Tensor | None = None,
        recorder: Recorder | None = None,
        waits: bool = False,
        capacity: int = 0,
        phase: Phase | None = None,
        ablated: Tensor | None = None,
    ):
        self.config, self.impl, self.applied = config, impl, applied
        self.recorder, self.phase = recorder, phase
        self.probe: Probe | None = None
        self.groups = group_count(config, watch, question)
        self.opened, self.closed = weights(config, self.groups, text=question is not None)
        if recorder is not None and applied:
            recorder.opened, recorder.closed = self.opened, self.closed
        elif recorder is not None:
            recorder.opened = recorder.closed = (1.0,) * self.groups
        self._watch, self._question, self._capacity = watch, question, capacity
        self._ablated_heads = ablated
        self._random = torch.Generator("cpu").manual_seed(config.seed)
        self._waits = waits
        self._waiting: dict[int, Waiting] = {}  # layer -> steps
        self._bank: Bank | None = None
        self._views: dict[tuple, tuple[Tensor | None, View]] = {}
        self._workspace = None
        self._past = 0
        self._now: Tensor | None = None  # which query rows are steered, bool [B, Q]; None: all
        self._asked: Tensor | None = None  # the same, kept where it turned out to be all or none
        self._idle = False
        self._left: Tensor | None = None  # compiled steps left alone, of each row, int64 [B]
        self._placed: dict[torch.device, dict[str, Tensor | None]] = {}
        self.steer_to(regions)

    def steer_to(self, regions: list[Region]) -> None:
        """Make these the regions, one per row of the batch."""
        self.settle()  # with the regions that they saw
        config = self.config
        kinds = key_groups(regions, config, self._watch, self._question)
        image = torch.stack([region.image for region in regions])
        flags = ((kinds << 1) | image).to(torch.int32)  # [B, S]
        # As long as a static cache, so that prompts of any length share one compiled step.
        self._flags = torch.nn.functional.pad(flags, (0, max(self._capacity - flags.shape[1], 0)))
        self._images = image.sum(1).to(torch.int32)  # [B]
        self._steered = image.any(1)  # [B]
        self.every_row = bool(self._steered.all())
        self._gate = None  # bool [L, B, H]
        if config.method == "vrga" and config.gate == "static":
            self._gate = torch.stack([region.visual for region in regions], 1)
        elif self._ablated_heads is not None:
            self._gate = self._ablated_heads.transpose(0, 1)
        self.regions = list(regions)
        if self._left is None:
            self._left = torch.zeros(len(regions), dtype=torch.int64, device="cpu")
        devices = set(self._placed)
        self._placed.clear()
        self.place(devices)

    def place(self, devices: set[torch.device]) -> None:
        """Put the state on the layers' devices, before a step is compiled that would do it."""
        for device in devices:
            self._on(device)
        if devices and self._left.device.type == "cpu":
            self._left = self._left.to(min(devices, key=str))
            torch._dynamo.mark_static_address(self._left)

    def expect_compiled(
        self, layers: Mapping[int, LayerShape], steps: int, cache: object, visible: Tensor
    ) -> None:
        """Make memory for what compiled steps measure, before they are compiled.

        Args:
            layers: all of the model's.
            steps: that come at most before `settle` is called.
            cache: the static cache; visible: False on padding, bool [B, S] of the prompt in it.
        """
        recorder = self.recorder
        self._bank = Bank(
            {i: layers[i] for i in recorder.layers},
            steps=steps,
            columns=GROUP + self.groups if self.applied else 0,
            queries=not self.applied or any(recorder.maps_of(i) for i in recorder.layers),
            cache=cache,
            visible=visible,
        )

    def begin(self, past: int | None, ids: Tensor | None = None, rows: int = 1) -> None:
        """Start a forward pass: the masks of the last one are gone.

        Args:
            past: cached keys before it; None in a compiled step, which must not depend on them.
            ids: its tokens, int64 [B, Q]; None where they are not known.
            rows: Q.

        Raises:
            ValueError: no ids where the config's `when` or `relocate` needs them.
        """
        if past is not None:
            self._past = past
            self._views.clear()
            if self.recorder is not None:
                self.recorder.begin(past, rows, self.regions)
        elif self._bank is not None:
            self._bank.begin()
        self._now, self._asked, self._idle = None, None, False
        if self.config.when == "always" and self.phase is None:
            return
        if ids is None:
            if self.config.when == "always" and self.config.relocate == "question":
                return  # spans are followed for the trace alone, which goes without
            raise ValueError(
                f"when={self.config.when!r} with relocate={self.config.relocate!r} follows the "
                "tokens: give the model input_ids, not inputs_embeds, in decode steps"
            )
        self._now = self._asked = self._chosen(ids, past)
        if past is None and self._asked is not None:
            self._left.add_((~self._asked[:, -1]).to(self._left.device))
        told = None if self._now is None or past is None else self._told(past)
        if told is not None:  # one attention is enough where all rows are treated alike
            self._idle = not bool(told.any())
            self._now = None if bool(told.all()) else self._now

    @property
    def chosen_rows(self) -> tuple[str | None, Tensor | None, Tensor | None]:
        """Of the current pass: why rows are left alone that are not chosen; which tokens are
        chosen, bool [B, Q]; which of the others open a <back> span. None: all are steered."""
        if self._asked is None:
            return None, None, None
        opened = self.phase.opened if self.config.relocate == "back" else None
        return self._reason, self._asked, opened

    @property
    def _reason(self) -> str:
        if callable(self.config.when):
            return CHOICE
        return OUTSIDE if self.config.when == "back" else OPENS

    @property
    def left_compiled(self) -> dict[str, Tensor]:
        """Compiled steps of each row that were left alone, int64 [B], by reason."""
        return {self._reason: self._left}

    def _chosen(self, ids: Tensor, past: int | None) -> Tensor | None:
        """Which of the new tokens are steered, bool [B, Q]; None for all."""
        config = self.config
        if self.phase is not None:
            self.phase.advance(ids, past)
            if self._bank is not None and past is None:
                self._bank.note(self.phase.inside[:, -1])
            elif self.recorder is not None:
                self.recorder.note(self.phase.inside)
        if config.when in ("always", "back"):
            return self._by_phase(self.phase.inside, self.phase.opened)
        if past is None:
            raise RuntimeError(
                "a callable `when` needs decoding that is not compiled: call generate with "
                "disable_compile=True"
            )
        chosen = config.when(ids, past)
        if not isinstance(chosen, Tensor) or chosen.shape != ids.shape:
            found = list(chosen.shape) if isinstance(chosen, Tensor) else repr(chosen)
            raise ValueError(f"when(...) gave {found}; wanted: bool {list(ids.shape)}")
        chosen = chosen.to(ids.device, torch.bool)
        if config.relocate == "back":
            chosen = chosen & ~self.phase.opened
        return chosen

    def _by_phase(self, inside: Tensor, opened: Tensor) -> Tensor | None:
        """What <back> spans leave of the new tokens, bool [B, Q]; None for all."""
        chosen = inside if self.config.when == "back" else None
        if self.config.relocate == "back":
            # The row that opens a span is the one that is looked at, as at the prompt's question.
            chosen = ~opened if chosen is None else chosen & ~opened
        return chosen

    def _told(self, past: int) -> Tensor | None:
        """`_now` on the CPU, bool [B, Q]; None where the device would have to be waited for."""
        if self._now.device.type == "cpu" and callable(self.config.when):
            return self._now
        told = None if callable(self.config.when) else self.phase.on_host(past)
        return None if told is None else self._by_phase(*told)

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        """Steered attention; [B, Q, H, d] and None, as every attention backend returns."""
        if call.rows > 1 and self.config.reproduces:
            # The released code steers forward passes of exactly one query token.
            return call.output()
        call.check()
        call.check_dropout()
        if self.probe is not None:
            self.probe.collect(call)
        device, measured = call.query.device, self._measures(call.layer)
        if not self.applied or (self._idle and not measured):
            output = call.output()
            if measured:
                with exactly(device):
                    self._observe(call, None)
            return output
        with exactly(device):
            steered = self._steer(call, measured)
        if self.every_row and self._now is None:
            return steered, None
        output, weights = call.output()
        # Rows that are not steered keep the model's own attention, bit for bit.
        chosen = self._on(device)["steered"][:, None]
        if self._now is not None:
            chosen = chosen & self._now.to(device)
        return torch.where(chosen[:, :, None, None], steered, output), weights

    def _measures(self, layer: int) -> bool:
        """Whether this layer of this forward pass is measured."""
        if self.recorder is None:
            return False
        if not torch.compiler.is_compiling():
            return self.recorder.wants(layer)
        if self._bank is None:
            raise RuntimeError(
                "compiled decoding can be recorded with a static cache alone, greedily or "
                "sampling: call generate with disable_compile=True"
            )
        return layer in self._bank.layers

    def _steer(self, call: AttentionCall, measured: bool) -> Tensor:
        stats, compiling = None, torch.compiler.is_compiling()
        if call.window is not None and compiling:
            raise RuntimeError(
                "sliding-window layers are steered in eager decoding alone: call generate with "
                "disable_compile=True"
            )
        if measured and compiling:
            stats = self._room(call.query)
        elif measured:
            self.recorder.count(call.layer)
            stats = self.recorder.take(call.layer, call.query)
        # A compiled step must not depend on how many keys there are.
        past = 0 if compiling else self._past
        if call.window is None or call.rows == 1:
            out = self._rows(call, past, stats)
        else:
            parts = []
            for i, part in call.each_row():
                one = None if stats is None else torch.empty_like(stats[:, :, :1])
                parts.append(self._rows(part, past + i, one))
                if stats is not None:
                    stats[:, :, i : i + 1] = one
            out = torch.cat(parts, 1)
        if stats is not None and self._now is not None:
            stats[..., GATE] *= self._now.to(stats.device)[:, None]  # what is not steered is shut
        if measured and (compiling or self.recorder.maps_of(call.layer)):
            self._observe(call, stats)
        return out

    # --- measuring ---

    def _observe(self, call: AttentionCall, stats: Tensor | None) -> None:
        """Let a step wait until its statistics, or maps, are computed; or do it now.

        Args:
            stats: of the step, [B, H, Q, 3 + groups]; None where they are still to be computed.
        """
        layer = call.layer
        if torch.compiler.is_compiling():
            self._bank.put(layer, call.query, stats)
            return
        if stats is None:
            self.recorder.count(layer)
        past = self._past
        if call.window is not None and call.rows > 1:
            for i, part in call.each_row():
                known = None if stats is None else stats[:, :, i : i + 1]
                self._finish(layer, self._wait(None, part, known, past + i))
            return
        waiting = self._waiting.get(layer)
        if waiting is not None and waiting.past + 1 != past:
            self._finish(layer, self._waiting.pop(layer))
            waiting = None
        self._waiting[layer] = self._wait(waiting, call, stats, past + call.rows - 1)
        if not self._waits or not call.plain or call.window is not None:
            self._finish(layer, self._waiting.pop(layer))

    @staticmethod
    def _wait(
        waiting: Waiting | None, call: AttentionCall, stats: Tensor | None, past: int
    ) -> Waiting:
        """A call whose last query is at `past` waits, behind those that wait already."""
        plain, call = call.plain, call.as_softmax()
        waiting = Waiting(call.scale, call.window, plain) if waiting is None else waiting
        waiting.add(call.query, stats, call.key, call.mask, past)
        return waiting

    def settle(self) -> None:
        """Compute what waits."""
        while self._waiting:
            self._finish(*self._waiting.popitem())
        bank, recorder = self._bank, self.recorder
        count = 0 if bank is None else int(bank.at)
        if not count:
            return
        for first, end in recorder.count_compiled(count):
            if self.phase is not None:
                recorder.inside.extend(bank.inside[first:end].clone().unbind())
            mask = bank.mask(end)
            for layer in bank.layers:
                waiting = bank.waiting(layer, first, end, mask)
                for stats in waiting.stats:
                    recorder.keep(layer, stats)
                self._finish(layer, waiting)
        bank.empty()
        self._views.clear()

    def release(self) -> None:
        """Nothing more is measured: let go of the cache."""
        self.recorder = self._bank = None
        self._waiting.clear()

    def _finish(self, layer: int, waiting: Waiting) -> None:
        """Compute the statistics of one layer's steps, where none are known, and their maps."""
        recorder = self.recorder
        if waiting.stats and not recorder.maps_of(layer):
            return
        query, key, past = torch.cat(waiting.queries, 2), waiting.key, waiting.past
        rows, keys = query.shape[2], key.shape[2]
        with torch.no_grad():
            view = self._view(waiting.mask, query, keys, past - rows + 1, waiting.window)
            gates = torch.cat(waiting.stats, 2) if waiting.stats else None
            if gates is None:
                recorder.keep(layer, self._statistics(layer, query, key, view, waiting))
            if recorder.maps_of(layer):
                first = max(past + 1 - keys, 0)
                sets = view.key_sets(query, keys, self.opened, self.closed)
                recorder.keep_maps(layer, query, key, sets, gates, scale=waiting.scale, first=first)

    def _statistics(
        self, layer: int, query: Tensor, key: Tensor, view: View, waiting: Waiting
    ) -> Tensor:
        """Statistics of attention as the model's own backend computes it, [B, H, Q, 3 + groups]."""
        state = self._on(query.device)
        stats = self._room(query)
        plain = waiting.plain
        numbers = dict(
            scale=waiting.scale,
            focus=self.config.gate_focus,
            entropy=self.config.gate_entropy,
            gate=None if state["gate"] is None else state["gate"][layer],
        )
        decode = self._implementation(query, False, plain)
        if decode is decode_attention_reference:
            sets = view.key_sets(query, key.shape[2], self.opened, self.closed)
            attention_statistics(query, key, view.images, sets, stats, **numbers)
        else:  # its output is not read, so that keys do for values
            decode(
                query, key, key, view.flags, view.images, opened=self.opened, closed=self.closed,
                extent=view.extent, stats=stats, **numbers,
            )  # fmt: skip
        return stats

    def _room(self, query: Tensor) -> Tensor:
        """Room for the statistics of query rows, [B, H, Q, 3 + groups]."""
        shape = (*query.shape[:3], GROUP + self.groups)
        return torch.empty(shape, dtype=torch.float32, device=query.device)

    # --- the attention of a step ---

    def _rows(self, call: AttentionCall, past: int, stats: Tensor | None) -> Tensor:
        """Steered attention of query rows that see the same window of the keys."""
        dtype, plain, call = call.value.dtype, call.plain, call.as_softmax()
        layer, query, key, value = call.layer, call.query, call.key, call.value
        state = self._on(query.device)
        view = self._view(call.mask, query, call.keys, past, call.window)
        gradients = any(x.requires_grad for x in (query, key, value))
        decode = self._implementation(query, gradients, plain)
        arguments = dict(
            scale=call.scale,
            focus=self.config.gate_focus,
            entropy=self.config.gate_entropy,
            extent=view.extent,
        )
        tensors = (query, key, value, view.flags, view.images)
        gate = None if state["gate"] is None else state["gate"][layer]
        if self.config.method == "ablation" and gate is None:
            gate = self._ablated(layer, decode, tensors, arguments)
        elif decode is decode_attention_reference and not torch.compiler.is_compiling():
            arguments["sets"] = view.key_sets(query, call.keys, self.opened, self.closed)
        out = decode(
            *tensors, opened=self.opened, closed=self.closed, gate=gate, stats=stats, **arguments
        )
        if call.total is not None:  # of attention that keeps some weight from all keys
            out = out * call.total.transpose(1, 2)[..., None]
        return out.to(dtype)

    def _implementation(self, query: Tensor, needs_gradient: bool, plain: bool):
        """The decode function for this device; gradients need the one in torch, and so do
        attention probabilities in the place of queries, which are as long as the cache."""
        differentiable = torch.is_grad_enabled() and needs_gradient
        if not plain:
            return decode_attention_reference
        if self.impl == "torch" or (self.impl == "auto" and (not query.is_cuda or differentiable)):
            return decode_attention_reference
        if differentiable:
            raise RuntimeError(
                "impl='triton' has no backward pass: use torch.no_grad(), or impl='torch'"
            )
        from vrga.kernels import decode, launch

        if torch.compiler.is_compiling():
            return decode.decode_attention_op
        if self._workspace is None:
            self._workspace = launch.Workspace()
        return lambda *args, **kw: decode.decode_attention(*args, workspace=self._workspace, **kw)

    def _view(
        self, mask: Tensor | None, query: Tensor, keys: int, past: int, window: int | None
    ) -> View:
        """What a layer sees of the state; computed once per mask and forward pass."""
        if torch.compiler.is_compiling():  # which does not like id()
            return self._new_view(mask, query, keys, past, window)
        place = id(mask), keys, past, query.shape[2], query.device, window
        if place not in self._views:
            # Holding the mask keeps its id its own.
            self._views[place] = mask, self._new_view(mask, query, keys, past, window)
        return self._views[place][1]

    def _new_view(
        self, mask: Tensor | None, query: Tensor, keys: int, past: int, window: int | None
    ) -> View:
        state = self._on(query.device)
        # A sliding window's cache drops the first keys. A cache may also have been cut below the
        # prompt (assisted decoding does).
        first = max(past + query.shape[2] - keys, 0)
        return view_of(
            state["flags"], state["images"], mask, keys=keys, first=first, last=past, window=window
        )

    def _ablated(self, layer: int, decode, tensors: tuple, arguments: dict) -> Tensor:
        """The heads of this layer and step that lose their image attention, bool [B, H]."""
        query = tensors[0]
        if layer < self.config.first_layer:
            return torch.zeros(query.shape[:2], dtype=torch.bool, device=query.device)
        stats = self._room(query)
        decode(*tensors, opened=self.closed, closed=self.closed, stats=stats, **arguments)
        mass, mass_entropy = stats[:, :, 0, MASS], stats[:, :, 0, ENTROPY]
        extent, keys = arguments["extent"], tensors[1].shape[2]
        visible = keys if extent is None else extent[:, 2:]
        focus = mass * visible / tensors[4][:, None]
        return choose_ablated(self.config, focus, mass, mass_entropy, self._random)

    def _on(self, device: torch.device) -> dict[str, Tensor | None]:
        """The state on `device`, copied there on first use."""
        if device not in self._placed:
            own = {
                "flags": self._flags,
                "images": self._images,
                "steered": self._steered,
                "gate": self._gate,
            }
            self._placed[device] = {
                name: None if x is None else x.to(device) for name, x in own.items()
            }
        return self._placed[device]
