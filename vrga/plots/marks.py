"""Values with their 95 % intervals, as marks on an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

TOO_FEW = "too few questions"
POINT = 1.0  # percentage points to both sides of 0 that an axis of differences shows at least


def mark(
    axis: Axes,
    interval: Sequence[float | None],
    place: float,
    *,
    factor: float = 1,
    across: bool = False,
    shape: str = "o",
    color: str = "black",
    fill: str = "black",
    label: str | None = None,
) -> None:
    """A value with its interval; one without an interval says why it has none.

    Args:
        interval: value, low, high; NaN, or None as read from JSON, is no figure. Without a value
            nothing is drawn but the words.
        place: on the other axis.
        factor: of all three.
        across: the value lies on the x axis.
        label: for the legend.
    """
    value, low, high = (math.nan if x is None else factor * x for x in interval)
    known = not math.isnan(low)
    # Rounding may put an end a hair inside its value.
    ends = [[max(value - low, 0)], [max(high - value, 0)]] if known else None
    x, y = (value, place) if across else (place, value)
    axis.errorbar(
        x, y, fmt=shape, color=color, markerfacecolor=fill, capsize=3, label=label,
        xerr=ends if across else None, yerr=None if across else ends,
    )  # fmt: skip
    if not known:
        shown = 0.0 if math.isnan(value) else value
        axis.annotate(
            TOO_FEW, (shown, place) if across else (place, shown), (8, 0) if across else (0, 8),
            textcoords="offset points", va="center" if across else "bottom",
            ha="left" if across else "center", fontsize=7, rotation=0 if across else 90,
        )  # fmt: skip


def points(axis: Axes, name: str = "accuracy against the unsteered model") -> None:
    """Make x an axis of differences in percentage points, around 0 and not narrower than ±1."""
    axis.axvline(0, color="0.6", linewidth=1, zorder=0)
    axis.margins(x=0.15)
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, -POINT), max(high, POINT))
    axis.set_xlabel(f"{name}, percentage points")
