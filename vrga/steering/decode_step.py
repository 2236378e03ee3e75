"""The decode step: what every step behind a prompt does with attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vrga.config import VRGAConfig
from vrga.kernels.api import Kernels, Way
from vrga.kernels.columns import ENTROPY, GATE, GROUP, MASS
from vrga.method.back_spans import BackSpans
from vrga.method.call import AttentionCall, exactly
from vrga.method.heads import choose_ablated
from vrga.method.key_groups import KeyGroups
from vrga.method.key_views import PassViews, View
from vrga.method.region import Region
from vrga.method.steered_keys import SteeredKeys, known_gate
from vrga.method.uncertainty import Uncertainty
from vrga.recording.meter import Meter
from vrga.steering.chosen_rows import ChosenRows
from vrga.steering.probe import Probe


@dataclass(frozen=True)
class StepPass:
    """One forward pass of steps.

    Args:
        views: of its keys; past: keys before it, 0 in a compiled step, which must not depend on
            how many there are.
        chosen: which query rows are steered, bool [B, Q]; None: all.
        mask: the same, but None where it is known that all are: one attention is enough then.
        idle: whether it is known that none is.
    """

    views: PassViews
    past: int = 0
    chosen: Tensor | None = None
    mask: Tensor | None = None
    idle: bool = False


class DecodeStep:
    """The attention of the steps that follow one prompt. Its state is all tensors.

    Args:
        config: the method's numbers.
        kernels: that compute.
        keys: that the steps see, steered to the first regions.
        meter: measures the steps, or None.
        spans: follows the rows' <back> spans, where the config asks for them, or None.
        uncertainty: of the rows' tokens, likewise.
        ablated: heads that lose the image, bool [B, L, H], with ``ablate="given"``.

    Attributes:
        applied: False, with a config that steers nothing, leaves every output as the model's own
            attention gives it, so that the steps are only measured.
        probe: measures the query rows of this pass as well, or None.
        choice: which query rows are steered; left: compiled steps of each row that were not.
    """

    def __init__(
        self,
        config: VRGAConfig,
        kernels: Kernels,
        keys: SteeredKeys,
        *,
        meter: Meter | None = None,
        spans: BackSpans | None = None,
        uncertainty: Uncertainty | None = None,
        ablated: Tensor | None = None,
    ):
        self.config, self.applied = config, config.steers
        self.meter, self.spans, self.uncertainty = meter, spans, uncertainty
        self.choice = ChosenRows(config, spans, uncertainty)
        self.probe: Probe | None = None
        self._kernels, self._keys, self._ablated_heads = kernels, keys, ablated
        self._random = torch.Generator("cpu").manual_seed(config.seed)
        self._pass = StepPass(PassViews(keys))
        self.left = torch.zeros(keys.rows, dtype=torch.int64, device=keys.device)
        torch._dynamo.mark_static_address(self.left)

    def steer_to(self, regions: list[Region]) -> None:
        """Make these the regions, one per row of the batch."""
        self._keys = self._keys.aimed(
            regions, known_gate(regions, self.config, self._ablated_heads)
        )
        if self.meter is not None:
            self.meter.aim(self._keys)

    # --- a pass ---

    def begin(self, past: int, ids: Tensor | None = None, tokens: int = 1) -> None:
        """Start a forward pass.

        Args:
            past: cached keys before it.
            ids: its tokens, int64 [B, Q]; None where they are not known.
            tokens: Q.

        Raises:
            ValueError: no ids where the config's `when` or `relocate` needs them.
            SteeringError: it is not known what distribution the tokens were drawn from.
        """
        views = PassViews(self._keys)
        if self.meter is not None:
            self.meter.recorder.begin(past, tokens)
        chosen = self._chosen(ids, past, tokens)
        told = None if chosen is None else self.choice.on_host(chosen, past)
        mask = None if told is not None and bool(told.all()) else chosen
        idle = told is not None and not bool(told.any())
        self._pass = StepPass(views, past, chosen, mask, idle)

    def begin_compiled(self, ids: Tensor | None = None) -> None:
        """Start a compiled step; its tokens, int64 [B, 1].

        Raises:
            ValueError, RuntimeError: as `begin`; or a config that cannot be compiled.
        """
        if self.config.relocate != "question":
            raise RuntimeError(
                f"relocate={self.config.relocate!r} finds a region amid decoding, which cannot be "
                "compiled: call generate with disable_compile=True"
            )
        if self.meter is not None:
            self.meter.begin_compiled()
        chosen = self._chosen(ids, None, 1)
        if chosen is not None:
            self.left.add_((~chosen[:, -1]).to(self.left.device))
        self._pass = StepPass(PassViews(self._keys), 0, chosen, chosen)

    @property
    def chosen_rows(self) -> tuple[str | None, Tensor | None, Tensor | None]:
        """Of the current pass: why rows are left alone that are not chosen; which tokens are
        chosen, bool [B, Q]; at which others a region is found anew. None: all are steered."""
        if self._pass.chosen is None:
            return None, None, None
        return self.choice.reason, self._pass.chosen, self.choice.opened

    def _chosen(self, ids: Tensor | None, past: int | None, tokens: int) -> Tensor | None:
        """Which of the new tokens are to be steered, bool [B, Q]; None for all."""
        decides = self.choice.follow(ids, past, tokens)
        if self.meter is not None:
            inside = None if self.spans is None or ids is None else self.spans.inside
            self.meter.note(inside, None if self.uncertainty is None else self.uncertainty.drawn)
        return self.choice.among(ids, past) if decides else None

    # --- its layers ---

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        """Steered attention; [B, Q, H, d] and None, as every attention backend returns."""
        if call.rows > 1 and self.config.reproduces:
            # The released code steers forward passes of exactly one query token.
            return call.output()
        call.check()
        call.check_dropout()
        if self.probe is not None:
            self.probe.collect(call)
        now = self._pass
        meter = self.meter if self.meter is not None and self.meter.wants(call.layer) else None
        if now.idle and meter is None:
            return call.output()
        way = self._way(call, meter is not None) if self.applied else None
        # Such a call is measured beside it, and the answer is the one that is not recorded.
        beside = way in (None, "biased")
        if meter is not None and beside:
            meter.watch(call, now.past, now.views, self.applied and (now.mask is None or now.mask))
        if way is None or (way == "biased" and (now.idle or not self._steers(call.layer))):
            return call.output()
        with exactly(call.query.device):
            steered = self._steer(call, way, None if beside else meter)
        if self._keys.every_row and now.mask is None:
            return steered, None
        output, weights = call.output()
        # Rows that are not steered keep the model's own attention, bit for bit.
        rows = self._keys.on(call.query.device).steered[:, None]
        if now.mask is not None:
            rows = rows & now.mask.to(rows.device)
        return torch.where(rows[:, :, None, None], steered, output), weights

    def _way(self, call: AttentionCall, measured: bool) -> Way:
        """What computes a call."""
        given = call.query, call.key, call.value
        gradients = torch.is_grad_enabled() and any(x.requires_grad for x in given)
        need = self._keys.need
        if need == "bias" and measured and torch.compiler.is_compiling():
            need = "sums"  # a compiled step leaves its statistics in memory made for them
        return self._kernels.way(call.query, plain=call.plain, gradients=gradients, need=need)

    def _steers(self, layer: int) -> bool:
        """Whether a layer steers; a compiled step must not depend on it: it serves all prompts."""
        return torch.compiler.is_compiling() or self._keys.steers(layer)

    def _steer(self, call: AttentionCall, way: Way, meter: Meter | None) -> Tensor:
        if call.window is not None and torch.compiler.is_compiling():
            raise RuntimeError(
                "sliding-window layers are steered in eager decoding alone: call generate with "
                "disable_compile=True"
            )
        now = self._pass
        stats = None if meter is None else meter.room(call)
        if call.window is None or call.rows == 1:
            out = self._rows(call, way, now.past, stats)
        else:
            parts = []
            for i, part in call.each_row():
                one = None if stats is None else torch.empty_like(stats[:, :, :1])
                parts.append(self._rows(part, way, now.past + i, one))
                if stats is not None and one is not None:
                    stats[:, :, i : i + 1] = one
            out = torch.cat(parts, 1)
        if meter is None or stats is None:
            return out
        if now.mask is not None:  # what is not steered is shut
            stats[..., GATE] *= now.mask.to(stats.device)[:, None]
        meter.take(call, stats, now.past, now.views)
        return out

    def _rows(self, call: AttentionCall, way: Way, past: int, stats: Tensor | None) -> Tensor:
        """Steered attention of query rows that see the same window of the keys."""
        dtype, call = call.value.dtype, call.as_softmax()
        layer, query = call.layer, call.query
        sight = call.mask, query, call.keys, past, call.window
        if way == "biased":
            bias = self._pass.views.bias(layer, *sight)
            return self._kernels.biased_attention(
                query, call.key, call.value, bias, scale=call.scale
            )
        if way == "gated":
            return self._kernels.gated_attention(
                query, call.key, call.value, self._pass.views.gated(*sight), scale=call.scale,
                focus=self.config.gate_focus, entropy=self.config.gate_entropy, stats=stats,
            )  # fmt: skip
        groups, view = self._keys.groups, self._pass.views.view(*sight)
        gate = self._keys.gate(layer, query.device)
        if self.config.method == "ablation" and gate is None:
            gate = self._ablated(call, way, view)
        out = self._sums(call, way, view, groups, gate, stats)
        if call.total is not None:  # of attention that keeps some weight from all keys
            out = out * call.total.transpose(1, 2)[..., None]
        return out.to(dtype)

    def _sums(
        self,
        call: AttentionCall,
        way: Way,
        view: View,
        groups: KeyGroups,
        gate: Tensor | None,
        stats: Tensor | None,
    ) -> Tensor:
        """Attention with the sums over groups of keys that it takes."""
        return self._kernels.decode_attention(
            way,
            call.query,
            call.key,
            call.value,
            view.flags,
            view.images,
            sets=lambda: view.key_sets(call.query, call.keys, groups.opened, groups.closed),
            opened=groups.opened,
            closed=groups.closed,
            gate=gate,
            stats=stats,
            scale=call.scale,
            focus=self.config.gate_focus,
            entropy=self.config.gate_entropy,
            extent=view.extent,
        )

    def _ablated(self, call: AttentionCall, way: Way, view: View) -> Tensor:
        """The heads of this layer and step that lose their image attention, bool [B, H]."""
        query, groups = call.query, self._keys.groups.unweighted()
        if call.layer < self.config.first_layer:
            return torch.zeros(query.shape[:2], dtype=torch.bool, device=query.device)
        shape = (*query.shape[:3], GROUP + groups.count)
        stats = torch.empty(shape, dtype=torch.float32, device=query.device)
        self._sums(call, way, view, groups, None, stats)
        mass, mass_entropy = stats[:, :, 0, MASS], stats[:, :, 0, ENTROPY]
        visible = call.keys if view.extent is None else view.extent[:, 2:]
        focus = mass * visible / view.images[:, None]
        return choose_ablated(self.config, focus, mass, mass_entropy, self._random)
