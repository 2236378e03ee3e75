"""Intervals against values known from elsewhere, and against simulation."""

import math

import numpy as np
import pytest

from vrga.analysis.study import verdict
from vrga.intervals import mcnemar, mean_interval, paired_difference, pearson, wilson

RNG = np.random.default_rng(0)


def test_wilson_is_that_of_the_textbook():
    # 81 of 263: 0.2553 to 0.3662 (Newcombe 1998, table I, method 3).
    value, low, high = wilson(np.arange(263) < 81)
    assert (value, low, high) == pytest.approx((81 / 263, 0.2553, 0.3662), abs=5e-5)


def test_wilson_stays_inside_zero_and_one():
    assert wilson(np.ones(5, dtype=bool))[2] == pytest.approx(1.0)
    assert wilson(np.zeros(5, dtype=bool))[1] == pytest.approx(0.0, abs=1e-12)


def test_a_mean_leaves_out_what_is_missing():
    value, low, high = mean_interval(np.array([1.0, np.nan, 3.0]))
    assert value == 2 and high - value == pytest.approx(1.959964 * math.sqrt(2) / math.sqrt(2))
    assert low == pytest.approx(2 * value - high)


@pytest.mark.parametrize("figure", [wilson, mean_interval])
def test_nothing_has_no_figure(figure):
    assert all(math.isnan(x) for x in figure(np.array([])))


def test_the_paired_interval_covers_what_it_should():
    """In about 95 of 100 repetitions the true difference lies inside."""
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        base = rng.random(300) < 0.7
        steered = np.where(rng.random(300) < 0.2, rng.random(300) < 0.9, base)
        # E[steered - base] = 0.2 * (0.9 - 0.7)
        _, low, high = paired_difference(steered, base, resamples=500)
        covered += low <= 0.04 <= high
    assert 180 <= covered <= 199


def test_the_paired_interval_is_narrower_than_that_of_unrelated_arms():
    base = RNG.random(500)
    steered = base + 0.01
    value, low, high = paired_difference(steered, base)
    assert (value, low, high) == pytest.approx((0.01, 0.01, 0.01))


@pytest.mark.parametrize(
    ("differences", "bounded"),
    [([0.1], False), ([0.1, 0.2, 0.3, 0.4, 0.5], False), ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], True),
     ([0.0] * 99, False), ([0.1] * 99, False), ([0.0] * 100, True),
     ([0.1 + 1e-12, *[0.1] * 50], False), ([1.0, *[0.0] * 50], True)],
    ids=["one", "five", "six", "zeros", "equal", "many zeros", "rounding", "one of 51"],
)  # fmt: skip
def test_few_or_equal_differences_have_no_interval(differences, bounded):
    differences = np.array(differences)
    value, low, high = paired_difference(differences + 0.2, np.full(len(differences), 0.2))
    assert value == pytest.approx(differences.mean())
    assert math.isnan(low) == math.isnan(high) == (not bounded)
    assert not bounded or low <= value + 1e-12 <= high + 2e-12
    assert (verdict((value, low, high)) == "cannot tell") == (not bounded)


def test_pairs_that_miss_a_side_are_left_out():
    assert paired_difference(np.array([1.0, np.nan]), np.array([0.0, 1.0]))[0] == 1.0


@pytest.mark.parametrize(
    "gained, lost, p", [(0, 0, 1.0), (5, 0, 0.0625), (6, 2, 0.2890625), (1, 1, 1.0)], ids=str
)
def test_mcnemar_is_the_binomial_test_of_discordant_pairs(gained, lost, p):
    steered = np.array([True] * gained + [False] * lost + [True] * 7)
    base = np.array([False] * gained + [True] * lost + [True] * 7)
    assert mcnemar(steered, base) == pytest.approx(p)


def test_pearson_with_fishers_interval():
    x = np.arange(10.0)
    y = x + np.array([1, -1] * 5)
    r, low, high = pearson(x, y)
    assert r == pytest.approx(np.corrcoef(x, y)[0, 1])
    # artanh(r) +- 1.96 / sqrt(7)
    assert math.atanh(high) - math.atanh(r) == pytest.approx(1.959964 / math.sqrt(7))
    assert math.atanh(r) - math.atanh(low) == pytest.approx(1.959964 / math.sqrt(7))
    assert math.isnan(pearson(x, np.ones(10))[0])
