"""What a run found, as figures with intervals and as tables."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from vrga.evaluation.wording import Table, markdown, percent, share
from vrga.intervals import Z, mcnemar, mean_interval, paired_difference, wilson

BASE = "base"  # the arm that others are compared with
COLUMNS = ("task", "arm", "samples", "score", "difference", "p", "samples/s", "failed")


def summary(samples: list[dict], metrics: dict[str, dict[str, dict]]) -> dict[str, dict]:
    """Figures of every task and arm.

    Args:
        samples: of all arms.
        metrics: arm -> task -> lmms-eval's metrics ("name,filter" -> value).

    Returns:
        task -> {arms: {arm: {...}}, difference: {...} or None}: each arm but "base" has its own
        difference from it, where both were asked; that of "vrga" stands beside the arms as well.
        Scores are means of the samples' own scores, a sample that failed counting 0; intervals are
        [value, low, high].
    """
    # A sample that a task asks repeatedly counts once; its copies stay in samples.jsonl.
    samples = [one for one in samples if not one["key"].endswith("+")]
    tasks = dict.fromkeys(one["task"] for one in samples)
    return {task: _task([s for s in samples if s["task"] == task], metrics) for task in tasks}


def _task(samples: list[dict], metrics: dict[str, dict[str, dict]]) -> dict:
    task, arms = samples[0]["task"], {}
    for arm in dict.fromkeys(one["arm"] for one in samples):
        own = [one for one in samples if one["arm"] == arm]
        seconds, scores = sum(one["seconds"] for one in own), _scores(own)
        known = scores[~np.isnan(scores)]
        binary = set(np.unique(known)) <= {0.0, 1.0}
        arms[arm] = {
            "samples": len(own),
            # Whether scores are shares, which are told in percent, and not points of a judge.
            "fractions": bool(len(known)) and 0 <= known.min() and known.max() <= 1,
            "failed": sum(one["error"] is not None for one in own),
            "score": wilson(known) if binary else mean_interval(known),
            "tokens": float(np.mean([one["tokens"] for one in own])),
            **_closer_looks(own),
            "samples_per_second": len(own) / seconds if seconds else None,
            "metrics": _metrics(metrics.get(arm, {}).get(task, {})),
        }
    base = [s for s in samples if s["arm"] == BASE]
    for arm, one in arms.items():
        own = [s for s in samples if s["arm"] == arm]
        one["difference"] = difference(own, base) if base and arm != BASE else None
    steered = arms.get("vrga", {"difference": None})
    return {"arms": arms, "difference": steered["difference"]}


def _closer_looks(own: list[dict]) -> dict:
    """Of an arm that looks closer: how often it did, and what that cost."""
    told = [one["zoom"] for one in own if one.get("zoom") is not None]
    costs = [one["cost"] for one in told if "cost" in one]
    if not told:
        return {}
    means = {
        name: float(np.mean([one[name] for one in costs]))
        for name in ("seen", "crops", "prompt", "second", "reused")
        if costs
    }
    looked = wilson([one["decision"]["zooms"] for one in told])
    return {"zoom": {"looked_closer": looked, "tokens": means}}


def difference(steered: Iterable[dict], base: Iterable[dict]) -> dict:
    """The paired difference of two arms over the samples that both were asked and scored.

    A sample that failed counts as wrong, as it does in the arm's own score.

    Args:
        steered, base: samples, told apart by their "id".

    Returns:
        pairs, score (mean difference with its bootstrap interval), p (exact McNemar; None where
        scores are not right or wrong), gained and lost samples.
    """
    by_id = {one["id"]: one for one in base}
    pairs = [(one, by_id[one["id"]]) for one in steered if one["id"] in by_id]
    ours, theirs = (_scores(side) for side in zip(*pairs, strict=True)) if pairs else ([], [])
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    known = ~(np.isnan(ours) | np.isnan(theirs))
    ours, theirs = ours[known], theirs[known]
    binary = bool(len(ours)) and set(np.unique([ours, theirs])) <= {0.0, 1.0}
    return {
        "pairs": int(known.sum()),
        "score": paired_difference(ours, theirs),
        "p": mcnemar(ours, theirs) if binary else None,
        "gained": int((ours > theirs).sum()),
        "lost": int((ours < theirs).sum()),
    }


def _scores(samples: Iterable[dict]) -> np.ndarray:
    """Score of each sample: 0 where it failed, NaN where nobody could score it."""
    return np.array(
        [
            0.0 if one["error"] is not None else math.nan if one["score"] is None else one["score"]
            for one in samples
        ],
        dtype=float,
    )


def _metrics(found: dict) -> dict[str, object]:
    """lmms-eval's metrics by name, with a 95 % interval where it gives a standard error."""
    metrics = {}
    for key, value in found.items():
        name, _, kind = key.partition(",")
        if not kind or "_stderr" in name or value in ("", None, "N/A"):
            continue
        error = found.get(f"{name}_stderr,{kind}")
        if isinstance(value, (int, float)) and isinstance(error, (int, float)):
            value = (value, value - Z * error, value + Z * error)
        metrics[name] = value
    return metrics


def _rows(tasks: dict[str, dict]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for task, found in tasks.items():
        for arm, one in found["arms"].items():
            change = one["difference"]
            speed = one["samples_per_second"]
            told = percent if one["fractions"] else share
            rows.append(
                (
                    task,
                    arm,
                    str(one["samples"]),
                    told(one["score"]),
                    "" if change is None else told(change["score"], "+"),
                    "" if change is None or change["p"] is None else f"{change['p']:.2g}",
                    "" if speed is None else f"{speed:.2f}",
                    str(one["failed"]),
                )
            )
    return rows


def rich_table(tasks: dict[str, dict]) -> Table:
    """For a terminal."""
    columns = (column.replace("/", "\n/") for column in COLUMNS)
    title = "mean scores of the samples; brackets: 95 % intervals"
    return Table(*columns, rows=_rows(tasks), title=title)


def page(tasks: dict[str, dict]) -> str:
    """For a paper, as Markdown: the same table, and every metric of the tasks' own code."""
    metrics = (
        (task, name, arm, _worded(value))
        for task, found in tasks.items()
        for arm, one in found["arms"].items()
        for name, value in one["metrics"].items()
    )
    own = markdown(("task", "metric", "arm", "value"), metrics)
    return f"{markdown(COLUMNS, _rows(tasks))}\n\n{own}\n"


def _worded(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return f"{value[0]:.4g} ({value[1]:.4g}, {value[2]:.4g})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
