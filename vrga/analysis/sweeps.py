"""The configurations of `vrga tune`: every combination of the values given."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from vrga.config import VRGAConfig


def swept(base: VRGAConfig, sweeps: Sequence[str]) -> dict[str, VRGAConfig]:
    """The configs of a sweep: every combination of the values given.

    Args:
        base: fields that are not swept.
        sweeps: "field=value,value,...", each for another field.

    Returns:
        A name such as "gain=1.5 gate=static" -> its config.

    Raises:
        ValueError: no sweep, an unknown field, or a value it does not take.
    """
    if not sweeps:
        raise ValueError("nothing to tune: give --sweep field=value,value,...")
    kinds = {field.name for field in dataclasses.fields(VRGAConfig)}
    fields: dict[str, list] = {}
    for sweep in sweeps:
        name, _, values = sweep.partition("=")
        if name not in kinds or not values or name in fields:
            raise ValueError(
                f"--sweep {sweep!r}: give each field once, as field=value,value,...; fields are "
                f"{', '.join(sorted(kinds))}"
            )
        fields[name] = [_value(text) for text in values.split(",")]
    configs = {}
    for combination in itertools.product(*fields.values()):
        chosen: dict[str, Any] = dict(zip(fields, combination, strict=True))
        if chosen.get("gate") == "static":  # has no thresholds: other values are the same config
            chosen = {k: v for k, v in chosen.items() if k not in ("gate_focus", "gate_entropy")}
        name = " ".join(f"{field}={value}" for field, value in chosen.items())
        configs[name] = dataclasses.replace(base, **chosen)
    return configs


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
