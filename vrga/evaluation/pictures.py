"""Pictures of what runs found."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from vrga.intervals import Interval
from vrga.plots.marks import mark, points


def change_figure(tuning: Mapping[str, Interval], held_out: Mapping[str, Interval]) -> Figure:
    """Differences of accuracy from the unpatched model, with their 95 % intervals.

    Args:
        tuning, held_out: config's name -> interval; drawn with hollow and with filled marks.
    """
    rows = [
        *((n, i, False) for n, i in tuning.items()),
        *((n, i, True) for n, i in held_out.items()),
    ]
    figure = Figure(figsize=(7, 0.9 + 0.3 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for place, (_, interval, filled) in enumerate(rows):
        mark(axis, interval, place, factor=100, across=True, fill="black" if filled else "white")
    points(axis, "accuracy against the unpatched model")
    axis.set(yticks=range(len(rows)), yticklabels=[name for name, _, _ in rows])
    axis.tick_params(labelsize=8)
    axis.invert_yaxis()
    return figure
