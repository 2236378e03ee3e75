"""Figures with their intervals, as text for tables."""

from __future__ import annotations

import math

from vrga.intervals import Interval


def percent(interval: Interval, sign: str = "") -> str:
    """ "61.2 % (58.0, 64.3)"; "-" where there is no figure."""
    return _worded([100 * x for x in interval], f"{sign}.1f", " %")


def share(interval: Interval, sign: str = "") -> str:
    """ "0.386 (0.370, 0.403)"; "-" where there is no figure."""
    return _worded(list(interval), f"{sign}.3f", "")


def _worded(interval: list[float], form: str, unit: str) -> str:
    value, low, high = interval
    if math.isnan(value):
        return "-"
    ends = "" if math.isnan(low) else f" ({low:{form}}, {high:{form}})"
    return f"{value:{form}}{unit}{ends}"
