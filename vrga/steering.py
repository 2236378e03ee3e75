"""Steering: what every decode step does with attention, from the regions found at prefill."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from vrga.config import VRGAConfig
from vrga.kernels.reference import (
    ENTROPY,
    MASS,
    KeySets,
    decode_attention_reference,
    key_sets,
)
from vrga.region import Region
from vrga.tokens import visible_keys
from vrga.trace import Recorder

IMPLEMENTATIONS = ("auto", "torch", "triton")

# Groups of keys in which the kernel sums, and their weights where the gate is open and closed.
OTHER, REGION, WATCHED = 0, 1, 2
REST_OF_IMAGE = 2  # released_mask: the image outside T
_ALWAYS_SHUT = (1.0, 1.0)


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
        recorder: takes the statistics of every step, or None.
        capacity: keys that the cache has room for.
    """

    def __init__(
        self,
        regions: list[Region],
        config: VRGAConfig,
        impl: str,
        *,
        applied: bool = True,
        watch: Tensor | None = None,
        recorder: Recorder | None = None,
        capacity: int = 0,
    ):
        self.config, self.impl, self.applied = config, impl, applied
        self.recorder = recorder
        self.groups = _groups(config, watch)
        self.opened, self.closed = _weights(config, self.groups)
        if recorder is not None and applied:
            recorder.opened, recorder.closed = self.opened, self.closed
        elif recorder is not None:
            recorder.opened = recorder.closed = (1.0,) * self.groups
        kinds = _key_groups(regions, config, watch)
        image = torch.stack([region.image for region in regions])
        flags = ((kinds << 1) | image).to(torch.int32)  # [B, S]
        # As long as a static cache, so that prompts of any length share one compiled step.
        self._flags = torch.nn.functional.pad(flags, (0, max(capacity - flags.shape[1], 0)))
        self._images = image.sum(1).to(torch.int32)  # [B]
        self._steered = image.any(1)  # [B]
        self.every_row = bool(self._steered.all())
        self._gate = None  # bool [L, B, H]
        if config.method == "vrga" and config.gate == "static":
            self._gate = torch.stack([region.visual for region in regions], 1)
        self._random = torch.Generator().manual_seed(config.seed)
        self._placed: dict[torch.device, dict[str, Tensor | None]] = {}
        self._views: dict[int, tuple[Tensor, tuple[Tensor, Tensor | None]]] = {}
        self._sets: dict[tuple, KeySets] = {}
        self._workspace = None

    def begin(self) -> None:
        """Start a forward pass: the masks of the last one are gone."""
        self._views.clear()
        self._sets.clear()

    def attend(self, own, module, query, key, value, attention_mask, **kwargs):
        """Steered attention; [B, Q, H, d] and None, as every attention backend returns."""
        rows = query.shape[2]
        if rows > 1 and self.config.method != "vrga":
            # The released code steers forward passes of exactly one query token.
            return own(module, query, key, value, attention_mask, **kwargs)
        steered = self._steer(module.layer_idx, query, key, value, attention_mask, kwargs)
        if self.applied and self.every_row:
            return steered, None
        output, weights = own(module, query, key, value, attention_mask, **kwargs)
        if not self.applied:
            return output, weights
        # Rows without an image keep the model's own attention, bit for bit.
        chosen = self._on(query.device)["steered"][:, None, None, None]
        return torch.where(chosen, steered, output), weights

    def _steer(self, layer, query, key, value, attention_mask, kwargs) -> Tensor:
        state = self._on(query.device)
        flags, extent = self._view(attention_mask, state["flags"], key.shape[2])
        decode = self._implementation(query)
        arguments = dict(
            scale=kwargs["scaling"],
            focus=self.config.gate_focus,
            entropy=self.config.gate_entropy,
            extent=extent,
        )
        tensors = (query, key, value, flags, state["images"])
        gate = None if state["gate"] is None else state["gate"][layer]
        if self.config.method == "ablation":
            gate = self._ablated(layer, decode, tensors, arguments)
        elif decode is decode_attention_reference and not torch.compiler.is_compiling():
            arguments["sets"] = self._key_sets(query, key, flags, extent)
        stats = None
        if self.recorder is not None:
            if torch.compiler.is_compiling():
                raise RuntimeError(
                    "patch.record() needs decoding that is not compiled: call generate with "
                    "disable_compile=True"
                )
            stats = self.recorder.take(layer, query)
        return decode(
            *tensors, opened=self.opened, closed=self.closed, gate=gate, stats=stats, **arguments
        )

    def _key_sets(self, query: Tensor, key: Tensor, flags: Tensor, extent: Tensor | None):
        """The reference's key sets, computed once per forward pass, mask and device."""
        shape = key.shape[2], query.shape[2], query.dtype, query.device
        found = self._sets.get((*shape, id(extent)))
        if found is None:
            dtype = torch.promote_types(query.dtype, torch.float32)
            found = key_sets(flags, extent, *shape[:2], self.opened, self.closed, dtype)
            # The view of this pass holds the extent, so that its id stays its own.
            self._sets[(*shape, id(extent))] = found
        return found

    def _implementation(self, query: Tensor):
        """The decode function for this device; gradients need the one in torch."""
        differentiable = torch.is_grad_enabled() and query.requires_grad
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

    def _view(self, mask: Tensor | None, flags: Tensor, keys: int) -> tuple[Tensor, Tensor | None]:
        """Flags of the visible keys and their extent; computed once per mask and forward pass.

        Returns:
            flags int32 [B, F], -1 on hidden keys; extent int32 [B, 3] or None for no mask.
        """
        if mask is None:
            # A cache may have been cut below the prompt (assisted decoding does).
            return flags[:, :keys], None
        if not isinstance(mask, Tensor):
            raise ValueError(
                f"the attention backend hides its mask in a {type(mask).__name__}: load the model "
                "with attn_implementation='sdpa', 'eager' or 'flash_attention_2'"
            )
        compiling = torch.compiler.is_compiling()
        if not compiling and id(mask) in self._views:
            return self._views[id(mask)][1]
        visible = visible_keys(mask, keys)
        visible = visible.expand(len(flags), -1)
        padded = torch.nn.functional.pad(flags, (0, keys - flags.shape[1]))
        place = torch.arange(keys, dtype=torch.int32, device=flags.device)
        extent = torch.stack(
            [
                torch.where(visible, place, keys).amin(1),
                torch.where(visible, place, -1).amax(1) + 1,
                visible.sum(1),
            ],
            1,
        )
        view = torch.where(visible, padded, -1), extent.to(torch.int32)
        if not compiling:
            self._views[id(mask)] = mask, view  # holding the mask keeps its id its own
        return view

    def _ablated(self, layer: int, decode, tensors: tuple, arguments: dict) -> Tensor:
        """The heads of this layer and step that lose their image attention, bool [B, H]."""
        query = tensors[0]
        batch, heads, rows, _ = query.shape
        if layer < self.config.first_layer:
            return torch.zeros(batch, heads, dtype=torch.bool, device=query.device)
        stats = torch.empty(batch, heads, rows, 3 + self.groups, device=query.device)
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


def choose_ablated(
    config: VRGAConfig,
    focus: Tensor,
    mass: Tensor,
    mass_entropy: Tensor,
    random: torch.Generator,
) -> Tensor:
    """Heads of one layer to ablate, bool [B, H] (paper, head ablation).

    Args:
        focus: R; mass: attention on the image; mass_entropy: H_mass in nats; [B, H] each.
    """
    count = min(config.heads, focus.shape[1])
    if config.ablate == "low_focus":
        score = focus
    elif config.ablate == "random":
        score = torch.rand(focus.shape, generator=random).to(focus.device)
    else:
        # H_img from the sums at hand: a = mass * share, so H_mass = mass (H_img - log mass).
        entropy = mass_entropy / (mass + 1e-12) + (mass + 1e-12).log()
        above = focus > focus.median(1, keepdim=True).values
        score = torch.where(above, entropy / (focus + 1e-12), torch.inf)
    lowest = score.topk(count, largest=False)
    chosen = torch.zeros_like(focus, dtype=torch.bool)
    return chosen.scatter(1, lowest.indices, lowest.values < torch.inf)


def _groups(config: VRGAConfig, watch: Tensor | None) -> int:
    if watch is None:
        return 3 if config.method == "released_mask" else 2
    if config.method in ("released_mask", "ablation"):
        raise ValueError(f"watch works with method='vrga' or 'released', not {config.method!r}")
    return 4


def _key_groups(regions: list[Region], config: VRGAConfig, watch: Tensor | None) -> Tensor:
    """The group of every key of the prompt, int64 [B, S]."""
    image = torch.stack([region.image for region in regions]).long()
    region = torch.stack([region.mask for region in regions]).long()
    if config.method == "ablation":
        return image * REGION
    if config.method == "released_mask":
        return torch.where(region > 0, REGION, image * REST_OF_IMAGE)
    return region * REGION if watch is None else region * REGION + watch.long() * WATCHED


def _weights(config: VRGAConfig, groups: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Weight of each group where the gate is open, and where it is not."""
    if config.method == "ablation":
        return (1.0, 0.0), _ALWAYS_SHUT
    if config.method == "released_mask":
        return (1.0, 1.0, 0.0), (1.0, 0.0, 0.0)
    gain = float(config.gain)
    return (1.0, gain) * (groups // 2), _ALWAYS_SHUT * (groups // 2)
