"""What each field of a configuration takes, and which method reads it."""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from vrga.config import VRGAConfig

Method = Literal["vrga", "released", "released_mask", "ablation"]
Gate = Literal["dynamic", "static"]
Ablated = Literal["visual", "low_focus", "random", "given"]
When = Literal["always", "back", "uncertain"]
Relocate = Literal["question", "back", "uncertain"]
Border = Literal["always", "background"]
Question = Literal["last", "whole"]

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
    "abstain": (0, 1),
    "uncertainty": (0, _FLOAT),
    "heads": (1, _WHOLE),
    "first_layer": (0, _WHOLE),
    "seed": (0, 2**63 - 1),
}
CHOICES = {"method": get_args(Method), "gate": get_args(Gate), "ablate": get_args(Ablated)}
CHOICES |= {"when": get_args(When), "relocate": get_args(Relocate)}
CHOICES |= {"sink_border": get_args(Border), "question": get_args(Question)}
INTEGERS = {"region_min", "dilation", "heads", "first_layer", "seed"}

# What a method reads. A field outside this set must keep its default, so no option is ignored.
_ELSE = {"abstain", "uncertainty", "heads", "first_layer", "seed"}
_BOOST = {f for f in RANGES if f not in _ELSE}
_VRGA = {"gate", "when", "relocate", "uncertainty", "tag", "sink_border", "question", "abstain"}
READ_BY: dict[str, set[str]] = {
    "vrga": _BOOST | _VRGA,
    "released": _BOOST - {"background_layers"},
    "released_mask": {"gate_focus", "gate_entropy", "dilation"},
    "ablation": {"ablate", "heads", "first_layer", "seed"},
}
REPRODUCED = ("released", "released_mask", "ablation")  # what the authors' released code computes


def check_abstain(abstain: float, relocate: str) -> None:
    """Raise ValueError where steps that are left alone could not be told from others."""
    if abstain and relocate != "question":
        raise ValueError(
            f"abstain={abstain!r} with relocate={relocate!r}: a region found anew replaces the "
            "question's, so that steps could not be accounted for; set one of them back"
        )


def fields_read(config: VRGAConfig) -> set[str]:
    """The fields that a configuration of its method, gate and times is read by."""
    read = READ_BY[config.method] | {"method"}
    if config.gate == "static":
        read = read - {"gate_focus", "gate_entropy"}  # thresholds of the dynamic gate
    if config.ablate == "given":
        read = read - {"heads", "first_layer", "seed"}  # of a choice per layer and step
    if "uncertain" not in (config.when, config.relocate):
        read = read - {"uncertainty"}
    return read


def number(name: str, value: object) -> int | float:
    """A numeric field's value, a scalar of NumPy as Python's number.

    Raises:
        ValueError: no number, or one out of range.
    """
    whole = name in INTEGERS
    kind = numbers.Integral if whole else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ValueError(f"{name}={short(value)} is not {'an integer' if whole else 'a number'}")
    if not isinstance(value, (int, float)):
        try:
            value = int(value) if isinstance(value, numbers.Integral) else float(value)
        except OverflowError:  # a fraction
            value = -math.inf if value < 0 else math.inf
    low, high = RANGES[name]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value!r} must be finite: from {low:.8g} to {high:.8g}")
    if value < low:
        raise ValueError(f"{name}={short(value)} must be ≥ {low:.8g}")
    if value > high:
        told = str(high) if whole else f"{high:.8g}"
        raise ValueError(f"{name}={short(value)} must be ≤ {told}")
    return value


def short(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 200:
        return f"(an integer of {value.bit_length()} bits)"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
