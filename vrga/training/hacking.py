"""Whether a reward is earned: rising while spans are empty or repeat what was said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vrga.intervals import difference

WINDOW = 5  # steps at either end, at least; a quarter of all where that is more
SHARE = 0.1  # of answers with such a span, from which on it is told


def hacking(steps: Sequence[Mapping[str, float]]) -> str | None:
    """What is wrong with a rising reward, in words; None where nothing is.

    Told when the reward of the last steps is above that of the first ones, by its 95 % interval,
    and at least `SHARE` of the last answers have an empty span, or one that only repeats words
    before it.

    Args:
        steps: of a run of RL in order, with "reward", "empty" and "copied".
    """
    window = max(WINDOW, len(steps) // 4)
    if len(steps) < 2 * window:
        return None
    first, last = steps[:window], steps[-window:]
    before, after = (_values(part, "reward") for part in (first, last))
    rise, low, _ = difference(after, before)
    if not low > 0:
        return None
    found = {name: float(_values(last, name).mean()) for name in ("empty", "copied")}
    bad = [f"{100 * share:.0f} % {name}" for name, share in found.items() if share >= SHARE]
    if not bad:
        return None
    return (
        f"reward hacking: the reward rose by {rise:.3f} over {len(steps)} steps, and of the last "
        f"{window} steps' answers {' and '.join(bad)} spans: what is rewarded is not a look at the "
        "image; lower the form's weight, or reward what the span says"
    )


def _values(steps: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
    return np.array([step[name] for step in steps], dtype=float)
