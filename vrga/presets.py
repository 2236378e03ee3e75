"""The presets: names of whole configurations, and their numbers."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vrga.config import VRGAConfig

# Names of whole configurations; "default" is what a checkpoint brings, else the paper's.
PRESETS = ("default", "sparing", "published", "paper", "released", "released_mask")

PUBLISHED: dict[str, object] = {
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
SPARING: dict[str, object] = {
    "gain": 3.0,
    "gate": "static",
    "efr_percentile": 15.0,
    "focus_percentile": 70.0,
    "sink_border": "background",
    "region_std": 2.0,
    "region_min": 1,
    "dilation": 0,
}
METHOD_DEFAULTS: dict[str, dict] = {
    "released": {**PUBLISHED, "dilation": 2},
    "released_mask": {**PUBLISHED, "dilation": 3},
    "ablation": PUBLISHED,
}


def changes(config: VRGAConfig, preset: VRGAConfig) -> list[str]:
    """Fields of a config that differ from a preset's, with their values."""
    return [
        f"{field.name} {_shown(getattr(config, field.name))}"
        for field in fields(config)
        if getattr(config, field.name) != getattr(preset, field.name)
    ]


def _shown(value: object) -> str:
    if callable(value):
        return getattr(value, "__name__", "callable")
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)
