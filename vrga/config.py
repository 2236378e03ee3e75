"""VRGAConfig: every number of the method, validated, and the presets."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, get_args

Method = Literal["vrga", "released", "released_mask", "ablation"]
Gate = Literal["dynamic", "static"]
Ablated = Literal["visual", "low_focus", "random", "given"]
When = Literal["always", "back"]
Relocate = Literal["question", "back"]
Border = Literal["always", "background"]

_FLOAT = 3.4028234e38  # largest finite float32, in which thresholds are compared
_WHOLE = 2**31 - 1
# Inclusive bounds of each numeric field.
RANGES: dict[str, tuple[float, float]] = {
    "gain": (0, 1e9),  # room for sums over keys in float32; beyond it T has all attention anyway
    "gate_focus": (0, _FLOAT),
    "gate_entropy": (0, _FLOAT),
    "efr_percentile": (0, 100),
    "focus_percentile": (0, 100),
    "background_layers": (0, 1),
    "background_focus": (0, _FLOAT),
    "background_weight": (0, 1e9),
    "sink_fraction": (0, 1),
    "region_std": (-1e9, 1e9),
    "region_min": (1, _WHOLE),
    "dilation": (0, 1000),  # more than a side of any token grid
    "heads": (1, _WHOLE),
    "first_layer": (0, _WHOLE),
    "seed": (0, 2**63 - 1),
}
CHOICES = {"method": get_args(Method), "gate": get_args(Gate), "ablate": get_args(Ablated)}
CHOICES |= {"when": get_args(When), "relocate": get_args(Relocate)}
CHOICES |= {"sink_border": get_args(Border)}
INTEGERS = {"region_min", "dilation", "heads", "first_layer", "seed"}

# What a method reads. A field outside this set must keep its default, so no option is ignored.
_BOOST = {f for f in RANGES if f not in {"heads", "first_layer", "seed"}}
READ_BY: dict[str, set[str]] = {
    "vrga": _BOOST | {"gate", "when", "relocate", "sink_border"},
    "released": _BOOST - {"background_layers"},
    "released_mask": {"gate_focus", "gate_entropy", "dilation"},
    "ablation": {"ablate", "heads", "first_layer", "seed"},
}


PRESETS = ("default", "published", "paper", "released", "released_mask")


@dataclass(frozen=True)
class VRGAConfig:
    """The numbers of VRGA (arXiv 2603.14184).

    Phase 1 (prefill) chooses heads and the region T, phase 2 (decode) steers toward T. The
    defaults are those that served best on the embedded model (README, "Recovery");
    `VRGAConfig.published()` has the published numbers.

    Args:
        method: ``"vrga"``, or one of the reproductions ``"released"``, ``"released_mask"``,
            ``"ablation"``; use the presets rather than setting it.
        gain: gamma, the factor on the attention to T before the row is renormalised; 1 is off.
        gate: ``"dynamic"`` decides per decode row and head, ``"static"`` steers exactly the visual
            heads chosen at prefill.
        gate_focus: a head is steered only where its image focus R exceeds this.
        gate_entropy: ... and where R exceeds this times H_mass (nats).
        efr_percentile: visual heads have an EFR at or below this percentile of all heads, and
        focus_percentile: an R at or above this percentile.
        background_layers: share of the layers, from the first, in which background heads are
            sought; there they are the heads with R below
        background_focus: this value.
        background_weight: lambda, the weight of the background map subtracted.
        sink_fraction: largest share of an image's tokens given to its sink border.
        sink_border: ``"always"`` leaves it out of T, ``"background"`` only where there are
            background heads, which show that there are sinks.
        region_std: T holds the tokens whose ratio exceeds mean + this many standard deviations.
        region_min: with fewer tokens than this above the threshold, the highest this-many are T.
        dilation: grid cells by which T grows (``released``: tokens of the raster, in one
            dimension).
        when: ``"always"`` steers every decode step, ``"back"`` those inside the model's own <back>
            spans (Look-Back, arXiv 2507.03019). Or a callable (newest tokens int64 [B, Q],
            position of the first of them) -> bool [B, Q] on the same device: which are steered.
        relocate: ``"question"`` keeps the region that the question looks at, ``"back"`` finds it
            anew at each <back>, from the row of the token that opens the span.
        ablate: which heads lose their image attention, for ``method="ablation"`` alone: chosen
            per layer and step as in the released code, or ``"given"``, those of `Patch.ablated`.
        heads: heads of a layer ablated at each step.
        first_layer: the first layer (from 0) with ablated heads.
        seed: seed of ``ablate="random"``.

    Raises:
        ValueError: a value of another type or out of range, or a field that the chosen method does
            not read; the message names field, value and range. Scalars of NumPy are numbers.
    """

    method: Method = "vrga"
    gain: float = 3.0
    gate: Gate = "static"
    gate_focus: float = 0.6
    gate_entropy: float = 0.2
    efr_percentile: float = 15.0
    focus_percentile: float = 70.0
    background_layers: float = 0.1
    background_focus: float = 0.01
    background_weight: float = 1.0
    sink_fraction: float = 0.2
    sink_border: Border = "background"
    region_std: float = 2.0
    region_min: int = 1
    dilation: int = 0
    when: When | Callable = "always"
    relocate: Relocate = "question"
    ablate: Ablated | None = None
    heads: int = 5
    first_layer: int = 6
    seed: int = 0

    def __post_init__(self):
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if name == "when" and callable(value):
                continue
            if name == "ablate" and self.method != "ablation" and value is None:
                continue
            if not isinstance(value, str) or value not in choices:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")
        for name in RANGES:
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        base = _METHOD_DEFAULTS.get(self.method, {})
        read = READ_BY[self.method] | {"method"}
        if self.gate == "static":
            read = read - {"gate_focus", "gate_entropy"}  # thresholds of the dynamic gate
        if self.ablate == "given":
            read = read - {"heads", "first_layer", "seed"}  # of a choice per layer and step
        for field in fields(self):
            if field.name in read:
                continue
            default = base.get(field.name, field.default)
            if getattr(self, field.name) != default:
                raise ValueError(
                    f"{field.name}={getattr(self, field.name)!r} is not read by "
                    f"method={self.method!r} with gate={self.gate!r}: leave it at {default!r}"
                )

    @property
    def steers(self) -> bool:
        """Whether this config changes anything: a gain of 1 does not."""
        return self.gain != 1 or self.method not in ("vrga", "released")

    @property
    def boosts(self) -> bool:
        """Whether it raises the attention to T; the hard mask and ablations take some away."""
        return self.method in ("vrga", "released")

    @property
    def reproduces(self) -> bool:
        """Whether it repeats what the released code computes, off by one where that is."""
        return self.method != "vrga" and self.ablate != "given"

    @classmethod
    def named(cls, preset: str, gain: float | None = None) -> VRGAConfig:
        """A preset by its name in `PRESETS`; `gain` replaces its own.

        Raises:
            ValueError: no such preset.
        """
        if preset not in PRESETS:
            raise ValueError(f"preset {preset!r}: known are {', '.join(PRESETS)}")
        start = cls if preset == "default" else getattr(cls, preset)
        return start() if gain is None else start(gain=gain)

    @classmethod
    def published(cls, **overrides) -> VRGAConfig:
        """The method with the published numbers and the released code's dynamic gate."""
        return cls(**{**_PUBLISHED, **overrides})

    @classmethod
    def paper(cls, **overrides) -> VRGAConfig:
        """The method with the paper's numbers and its static gate: H_v is fixed at prefill."""
        return cls(**{**_PUBLISHED, "gate": "static", **overrides})

    @classmethod
    def released(cls, **overrides) -> VRGAConfig:
        """What the authors' released code computes, point by point, to reproduce its figures."""
        return cls(**{"method": "released", **_METHOD_DEFAULTS["released"], **overrides})

    @classmethod
    def released_mask(cls, **overrides) -> VRGAConfig:
        """The released hard-mask variant: gated heads keep T alone, all others lose the image."""
        return cls(**{"method": "released_mask", **_METHOD_DEFAULTS["released_mask"], **overrides})

    @classmethod
    def ablation(
        cls, ablate: Ablated, heads: int = 5, first_layer: int = 6, seed: int = 0
    ) -> VRGAConfig:
        """The paper's check that heads matter: zero the image attention of some heads."""
        return cls(
            **_METHOD_DEFAULTS["ablation"],
            method="ablation", ablate=ablate, heads=heads, first_layer=first_layer, seed=seed,
        )  # fmt: skip


def _number(name: str, value: object) -> int | float:
    """A numeric field's value, a scalar of NumPy as Python's number.

    Raises:
        ValueError: no number, or one out of range.
    """
    whole = name in INTEGERS
    kind = numbers.Integral if whole else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ValueError(f"{name}={_short(value)} is not {'an integer' if whole else 'a number'}")
    if not isinstance(value, (int, float)):
        try:
            value = int(value) if isinstance(value, numbers.Integral) else float(value)
        except OverflowError:  # a fraction
            value = math.inf if value > 0 else -math.inf
    low, high = RANGES[name]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value!r} must be finite: from {low:.8g} to {high:.8g}")
    if value < low:
        raise ValueError(f"{name}={_short(value)} must be ≥ {low:.8g}")
    if value > high:
        told = str(high) if whole else f"{high:.8g}"
        raise ValueError(f"{name}={_short(value)} must be ≤ {told}")
    return value


def _short(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 200:
        return f"(an integer of {value.bit_length()} bits)"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_PUBLISHED: dict[str, object] = {
    "gain": 1.5,
    "gate": "dynamic",
    "gate_focus": 0.6,
    "gate_entropy": 0.2,
    "efr_percentile": 5.0,
    "focus_percentile": 95.0,
    "background_layers": 0.1,
    "background_focus": 0.01,
    "background_weight": 1.0,
    "sink_fraction": 0.2,
    "sink_border": "always",
    "region_std": 0.6,
    "region_min": 10,
    "dilation": 1,
}
_METHOD_DEFAULTS: dict[str, dict] = {
    "released": {**_PUBLISHED, "dilation": 2},
    "released_mask": {**_PUBLISHED, "dilation": 3},
    "ablation": _PUBLISHED,
}
