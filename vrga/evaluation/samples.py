"""What the samples of an arm add up to, and how those of two arms compare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vrga.intervals import Interval, mcnemar, mean_interval, paired_difference, wilson


def right(samples: Sequence[dict]) -> np.ndarray:
    """Score of each sample, float [N]; NaN where no right answer is known.

    An answer that failed is wrong, as it would be at a test.
    """
    unknown = [one["score"] is None and one.get("target", "") is None for one in samples]
    found = np.array([one["score"] or 0.0 for one in samples], dtype=float)
    return np.where(unknown, np.nan, found)


def look(samples: Sequence[dict], name: str) -> np.ndarray:
    """A figure of `Looks` for each sample, float [N]; NaN where there is none."""
    found = [(one["looks"] or {}).get(name) for one in samples]
    return np.array([np.nan if x is None else float(x) for x in found])


def accuracy(samples: Sequence[dict]) -> Interval:
    return wilson(right(samples))


def compared(samples: Sequence[dict], base: Sequence[dict]) -> dict:
    """The difference of two arms on the same questions: accuracy and RRAR, paired."""
    ours, theirs = right(samples), right(base)
    return {
        "accuracy": paired_difference(ours, theirs),
        "p": mcnemar(ours, theirs),
        "rrar": paired_difference(look(samples, "rrar"), look(base, "rrar")),
    }


def mean_look(samples: Sequence[dict], name: str) -> Interval:
    return mean_interval(look(samples, name))
