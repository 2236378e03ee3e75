"""What a call will do in its budget, said before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gpu.case import Stage
from benchmarks.gpu.runner import MARGIN, Run


@dataclass(frozen=True)
class Forecast:
    """What is expected of a stage.

    Args:
        done, fits, later: how many cases have a line, should get one now, wait for another call.
        begins, ends: seconds from the start of this call.
    """

    stage: Stage
    done: int
    fits: int
    later: int
    begins: float
    ends: float


def forecast(stages: Sequence[Stage], run: Run, budget: float, spent: float) -> list[Forecast]:
    """Walk through the stages as the run will, by the estimates alone.

    Args:
        spent: seconds of the budget that are gone already.
    """
    found, now, end = [], spent, budget - MARGIN
    for stage in stages:
        todo, began, fits = run.todo(stage), now, 0
        count = max(1, min(stage.lanes, len(todo)))
        free: list[tuple[float, str | None]] = [(now, None)] * count
        for case in todo:
            free.sort(key=lambda lane: lane[0])
            time, ready = free[0]
            cost = case.estimate + (stage.setup if case.worker != ready else 0)
            if time + cost <= end:
                free[0] = (time + cost, case.worker)
                fits += 1
        now = max(time for time, _ in free)
        done = len(stage.cases) - len(todo)
        found.append(Forecast(stage, done, fits, len(todo) - fits, began, now))
    return found


def told(stages: Sequence[Stage], run: Run, budget: float, spent: float) -> str:
    """The plan as a table."""
    here = run.here
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    lines = [
        f"{here['device']} ({here['kind']}), {versions}, commit {here['commit']}",
        f"In {budget:.0f} s, by estimates ({spent:.0f} s are gone):",
        f"{'stage':<28}{'cases':>6}{'done':>6}{'now':>6}{'later':>6}{'from, s':>9}{'to, s':>7}",
    ]
    for one in forecast(stages, run, budget, spent):
        lines.append(
            f"{one.stage.name:<28}{len(one.stage.cases):>6}{one.done:>6}{one.fits:>6}{one.later:>6}"
            f"{one.begins:>9.0f}{one.ends:>7.0f}"
        )
    return "\n".join(lines)
