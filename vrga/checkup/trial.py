"""A check before it is made, and what comes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vrga.checkup.result import Check, Status


class Skipped(Exception):
    """A check that cannot be made here; says why."""


class Fault(Exception):
    """Something does not hold.

    Args:
        why: what; figure: largest absolute difference, or None.
    """

    def __init__(self, why: str, figure: float | None = None):
        super().__init__(why)
        self.figure = figure


# What a check returns: the largest absolute difference, and a remark.
Found = tuple[float | None, str]


@dataclass(frozen=True)
class Trial:
    """A check that is still to be made.

    Args:
        name: what ought to hold; make: finds out; advice: what to do where it does not.
    """

    name: str
    make: Callable[[], Found]
    advice: str

    def run(self) -> Check:
        """Make it; whatever is raised becomes part of the result."""
        start = time.perf_counter()
        status: Status
        try:
            figure, why = self.make()
            status = "holds"
        except Skipped as skipped:
            status, figure, why = "skipped", None, str(skipped)
        except Fault as fault:
            status, figure, why = "fails", fault.figure, f"{fault}. {self.advice}"
        except Exception as error:  # of any kind: an installation may break in any way
            told = f"{type(error).__name__}: {first_line(error)}"
            status, figure, why = "fails", None, f"{told}. {self.advice}"
        return Check(self.name, status, figure, why, time.perf_counter() - start)


def first_line(error: BaseException) -> str:
    """What an error says, cut to the first sentence of its first line."""
    line = (str(error).strip().splitlines() or ["(no message)"])[0]
    return line.split(". ")[0][:200]


def run(trials: Iterable[Trial]) -> list[Check]:
    """Make checks one after the other."""
    return [trial.run() for trial in trials]
