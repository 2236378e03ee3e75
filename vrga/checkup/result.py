"""What a check-up found, as an object and as a table that can be pasted."""

from __future__ import annotations

import io
import math
import textwrap
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

Status = Literal["holds", "fails", "skipped"]
WIDTH = 80  # columns, so that the table survives being pasted
_STYLES = {"holds": "green", "fails": "bold red", "skipped": "dim"}


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Args:
        name: what ought to hold.
        status: "holds", "fails" or "skipped".
        figure: largest absolute difference that was found; None where nothing was compared. 0 is
            bit for bit.
        why: why it fails or was skipped, and what to do then; else what it was checked on.
        seconds: what it took.
    """

    name: str
    status: Status
    figure: float | None
    why: str
    seconds: float


@dataclass(frozen=True, repr=False)
class Checkup:
    """What `vrga.doctor()` found; as text, a table of 80 columns.

    Args:
        checks: in the order in which they were made.
        versions: of what is installed, and the device, by name.
        subject: the model that was examined.
        seconds: what it took in all.
    """

    checks: tuple[Check, ...]
    versions: dict[str, str]
    subject: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing fails, and something holds."""
        states = {check.status for check in self.checks}
        return "fails" not in states and "holds" in states

    def __str__(self) -> str:
        file = io.StringIO()
        Console(file=file, width=WIDTH, force_terminal=False, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())

    __repr__ = __str__

    def __rich__(self) -> Group:
        versions = textwrap.fill(
            ", ".join(f"{name} {version}" for name, version in self.versions.items()), WIDTH
        )
        table = Table(box=box.ASCII, width=WIDTH, pad_edge=False, highlight=False)
        table.add_column("check", ratio=1)
        table.add_column("status", no_wrap=True)
        table.add_column("max diff", justify="right", no_wrap=True)
        table.add_column("s", justify="right", no_wrap=True)
        for check in self.checks:
            table.add_row(
                Text(check.name),
                Text(check.status, style=_STYLES[check.status]),
                _figure(check.figure),
                f"{check.seconds:.1f}",
            )
        told: list[RenderableType] = [Text(versions), Text(self.subject), table]
        notes: dict[tuple[Status, str], list[str]] = {}  # one for all checks with the same one
        for check in self.checks:
            if check.status != "holds":
                notes.setdefault((check.status, check.why), []).append(check.name)
        for (status, why), names in sorted(notes.items(), key=lambda one: one[0][0] != "fails"):
            lines = textwrap.fill(
                f"{status}: {', '.join(names)}: {why}", WIDTH, subsequent_indent="  ",
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
            told.append(Text(lines, style=_STYLES[status]))
        return Group(*told, Text(self._summary(), style=_STYLES["holds" if self.ok else "fails"]))

    def _summary(self) -> str:
        count = {status: sum(check.status == status for check in self.checks) for status in _STYLES}
        told = ", ".join(f"{number} {status}" for status, number in count.items() if number)
        end = "" if self.ok else "\nTo report this, paste all of the above."
        return f"{told}; {self.seconds:.1f} s{end}"


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return "0" if value == 0 else "nan" if math.isnan(value) else f"{value:.1e}"
