"""Values with intervals: the bars are the interval's ends, and few questions say so."""

import math

import numpy as np
import pytest

from vrga.analysis.figures import ablate_figure, change_figure, recovery_figure, rrar_figure
from vrga.plots.marks import TOO_FEW

CLEAR, NONE = (0.02, 0.01, 0.04), (0.0, math.nan, math.nan)


def bars(axis):
    """(value, low, high) of each error bar along x, in the order drawn."""
    found = []
    for container in axis.containers:
        (value,) = container[0].get_xdata()
        ((low, _), (high, _)) = container[2][0].get_segments()[0]
        found.append((value, low, high))
    return found


@pytest.mark.parametrize("kind", ["tuning", "recovery"])
def test_differences_have_their_intervals_and_an_axis_of_a_point_at_least(kind):
    small = (0.0, -0.0002, 0.0003)
    if kind == "tuning":
        (axis,) = change_figure({"a": small}, {"held out: a": small}).axes
    else:
        (axis,) = recovery_figure({"a": {"change": small, "bound": small}}).axes
    assert np.allclose(bars(axis), [(0, -0.02, 0.03)] * 2)
    low, high = axis.get_xlim()
    assert low <= -1 and high >= 1
    assert [text.get_text() for text in axis.texts] == []
    wide = (0.2, 0.1, 0.3)
    (axis,) = change_figure({"a": wide}, {"b": wide}).axes
    low, high = axis.get_xlim()
    assert low <= -1 and high > 30


@pytest.mark.parametrize("none", [NONE, (0.0, None, None)], ids=["nan", "from json"])
def test_without_an_interval_a_figure_says_too_few_questions(none):
    for figure, count in (
        (change_figure({"a": none, "b": CLEAR}, {"c": none}), 2),
        (recovery_figure({"a": {"change": none, "bound": CLEAR}}), 1),
        (recovery_figure({"a": {"change": (None,) * 3, "bound": CLEAR}}), 1),
        (ablate_figure({"none": {"accuracy": CLEAR, "heads": 0},
                        "visual": {"accuracy": none, "heads": 2}}), 1),
        (rrar_figure({"cot": {"rrar": CLEAR, "right": none, "wrong": (math.nan,) * 3}}), 1),
    ):  # fmt: skip
        (axis,) = figure.axes
        assert [text.get_text() for text in axis.texts] == [TOO_FEW] * count
