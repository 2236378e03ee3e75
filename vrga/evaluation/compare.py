"""`vrga compare A B`: two runs of `vrga eval`, sample by sample."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from vrga.evaluation.store import ANSWERED, merge, read_samples, read_settings
from vrga.evaluation.tables import difference
from vrga.evaluation.wording import percent


def compare(first: Path, second: Path, console: Console) -> dict[str, dict]:
    """Print how the second run differs from the first, and return it: "task arm" -> difference.

    Arms of the same name are compared; where each run has a single arm, these.

    Raises:
        ValueError: a folder without a run, or runs without a common sample.
    """
    (ours, mine), (theirs, other) = _read(second), _read(first)
    for name in sorted(mine | other):
        if mine.get(name) != other.get(name):
            console.print(f"{name}: {other.get(name)!r} against {mine.get(name)!r}", markup=False)
    found = {}
    for task in dict.fromkeys(one["task"] for one in theirs):
        before, after = (_by_arm(samples, task) for samples in (theirs, ours))
        if len(before) == len(after) == 1:
            pairs = [(*before, *after)]
        else:
            pairs = [(arm, arm) for arm in before if arm in after]
        for a, b in pairs:
            change = difference(after[b], before[a])
            if change["pairs"]:
                found[f"{task} {b}" if a == b else f"{task} {a} -> {b}"] = change
    if not found:
        raise ValueError(f"{first} and {second} have no task, arm and scored sample in common")
    console.print(_table(found))
    return found


def _read(folder: Path) -> tuple[list[dict], dict]:
    """Samples and settings of a finished or an unfinished run."""
    settings = read_settings(folder)
    samples: dict[str, dict] = {}
    for path in sorted(folder.glob("samples*.jsonl")):
        # A line may be cut off, if the run was stopped.
        found, _ = read_samples(path, settings["hash"], ANSWERED)
        merge(samples, [one for one in found if isinstance(one.get("task"), str)])
    return list(samples.values()), settings["settings"]


def _by_arm(samples: list[dict], task: str) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for one in samples:
        if one["task"] == task:
            found.setdefault(one["arm"], []).append(one)
    return found


def _table(found: dict[str, dict]) -> Table:
    table = Table(title="second run less the first; brackets: 95 % intervals")
    for column in ("task", "pairs", "difference", "p", "gained", "lost"):
        table.add_column(column)
    for name, one in found.items():
        p = "" if one["p"] is None else f"{one['p']:.2g}"
        table.add_row(
            name, str(one["pairs"]), percent(one["score"], "+"), p, str(one["gained"]),
            str(one["lost"]),
        )  # fmt: skip
    return table
