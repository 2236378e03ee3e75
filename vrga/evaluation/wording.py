"""Figures with their intervals, as text for tables; None, as read from JSON, is no figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box, table
from rich.console import Console

if TYPE_CHECKING:
    from vrga.intervals import Interval


def percent(interval: Interval, sign: str = "") -> str:
    """ "61.2 % (58.0, 64.3)"; "-" where there is no figure."""
    return _worded([None if x is None else 100 * x for x in interval], f"{sign}.1f", " %")


def share(interval: Interval, sign: str = "") -> str:
    """ "0.386 (0.370, 0.403)"; "-" where there is no figure."""
    return _worded(list(interval), f"{sign}.3f", "")


def markdown(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A table as Markdown: a line for the columns, one of dashes, and one for each row."""
    lines = [[str(cell).replace("|", "\\|") for cell in line] for line in (columns, *rows)]
    lines.insert(1, ["---"] * len(columns))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class Table(table.Table):
    """A table that fits 80 columns: no rules between columns, intervals below their figures."""

    def __init__(self, *headers, rows: Iterable[Iterable[object]] = (), **options):
        own = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)}
        super().__init__(*headers, **{**own, **options})
        for cells in rows:
            self.add_row(*cells)

    def add_row(self, *cells, **options) -> None:
        super().add_row(*(_Cell(x) if isinstance(x, str) else x for x in cells), **options)

    def markdown(self) -> str:
        """The same table for a page, without title and caption; <back> is no tag there."""
        columns = (column.cells for column in self.columns)
        lines = [[column.header for column in self.columns], *zip(*columns, strict=True)]
        told = [[str(x).replace("\n", "").replace("<", "\\<") for x in line] for line in lines]
        return markdown(told[0], told[1:])


class _Cell(str):
    """A cell's text, which is drawn with its interval on a line of its own."""

    def __rich__(self) -> str:
        return self.replace(" (", "\n(")


def say_config(console: Console, told: object) -> None:
    """Say which configuration a command steers by."""
    console.print(f"config: {told}", style="dim", soft_wrap=True, markup=False, highlight=False)


def _worded(interval: list[float], form: str, unit: str) -> str:
    value, low, high = interval
    if value is None or math.isnan(value):
        return "-"
    ends = "" if low is None or math.isnan(low) else f" ({low:{form}}, {high:{form}})"
    return f"{value:{form}}{unit}{ends}"
