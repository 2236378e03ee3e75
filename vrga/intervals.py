"""Figures with 95 % intervals, and paired comparisons of two arms on the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Values = np.ndarray | Sequence[float]  # numbers or bools
Interval = tuple[float, float, float]  # value, lower and upper end of the 95 % interval
Z = 1.959964  # 97.5th percentile of the normal distribution
# Fewer pairs decide nothing at 95 %: were all five to differ one way, a sign test's p were 0.06.
FEWEST_PAIRS = 6
# Equal differences show no spread. Of n questions that agree, 3/n of all may yet differ.
FEWEST_EQUAL = 100


def wilson(hits: Values) -> Interval:
    """A proportion with its Wilson score interval; NaN without entries. NaN entries are left out.

    Args:
        hits: bool or 0/1, [N].
    """
    hits = np.asarray(hits, dtype=float)
    hits = hits[~np.isnan(hits)]
    n = len(hits)
    if not n:
        return math.nan, math.nan, math.nan
    p = float(np.mean(hits))
    centre, half = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    low, high = (centre - half) / (1 + Z * Z / n), (centre + half) / (1 + Z * Z / n)
    return p, min(max(low, 0.0), p), max(min(high, 1.0), p)  # rounding leaves [0, 1]


def mean_interval(values: Values) -> Interval:
    """A mean with its normal interval; NaN entries are left out.

    The ends are NaN for fewer than two entries, and all three for none.
    """
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return (float(values[0]) if len(values) else math.nan), math.nan, math.nan
    half = Z * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(values.mean()), float(values.mean()) - half, float(values.mean()) + half


def paired_difference(
    steered: Values, base: Values, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean difference of two arms on the same questions, with its bootstrap interval.

    Pairs with a NaN are left out. Percentiles of `resamples` means of pairs drawn with
    replacement. All three are NaN without pairs; the ends are NaN for fewer than `FEWEST_PAIRS`,
    and where all differences are equal for fewer than `FEWEST_EQUAL`: a bootstrap of few or equal
    differences is too narrow.

    Args:
        steered, base: scores per question, [N] each, in the same order.
    """
    change = np.asarray(steered, dtype=float) - np.asarray(base, dtype=float)
    change = change[~np.isnan(change)]
    if not len(change):
        return math.nan, math.nan, math.nan
    if len(change) < (FEWEST_EQUAL if np.allclose(change, change[0]) else FEWEST_PAIRS):
        return float(change.mean()), math.nan, math.nan
    rng = np.random.default_rng(seed)
    # Equal differences are interchangeable, so counting them is enough.
    values, counts = np.unique(change, return_counts=True)
    means = [rng.multinomial(len(change), counts / len(change)) @ values for _ in range(resamples)]
    low, high = np.percentile(means, (2.5, 97.5)) / len(change)
    return float(change.mean()), float(low), float(high)


def difference(first: Values, second: Values) -> Interval:
    """The difference of two means over unrelated entries, with its normal interval (Welch).

    NaN entries are left out; the ends are NaN where a side has fewer than two entries.
    """
    (a, low_a, _), (b, low_b, _) = mean_interval(first), mean_interval(second)
    half = math.hypot(a - low_a, b - low_b)
    return a - b, a - b - half, a - b + half


def mcnemar(steered: Values, base: Values) -> float:
    """Exact two-sided p-value of McNemar's test: do two arms differ in right answers?

    Pairs with a NaN are left out.

    Args:
        steered, base: right or not, bool or 0/1 [N] each, in the same order.
    """
    steered, base = np.asarray(steered, dtype=float), np.asarray(base, dtype=float)
    known = ~(np.isnan(steered) | np.isnan(base))
    steered, base = steered[known] > 0, base[known] > 0
    gained, lost = int((steered & ~base).sum()), int((base & ~steered).sum())
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**n) if n else 1.0


def pearson(x: Values, y: Values) -> Interval:
    """Pearson's correlation with its interval by Fisher's transformation.

    NaN where either side does not vary; the ends are NaN for fewer than four pairs.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) < 2 or np.std(x) == 0 or np.std(y) == 0:
        return math.nan, math.nan, math.nan
    r = float(np.corrcoef(x, y)[0, 1])
    if len(x) < 4:
        return r, math.nan, math.nan
    centre = math.atanh(max(-1 + 1e-15, min(1 - 1e-15, r)))
    half = Z / math.sqrt(len(x) - 3)
    return r, math.tanh(centre - half), math.tanh(centre + half)
