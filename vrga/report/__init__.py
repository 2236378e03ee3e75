"""One self-contained page of one or two traces, or of what a server told (extra `report`)."""

from vrga.report.looked import write_looked
from vrga.report.page import render, write_report

__all__ = ["render", "write_looked", "write_report"]
