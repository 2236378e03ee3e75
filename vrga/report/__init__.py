"""One self-contained page of one or two traces (extra `report`: Jinja2)."""

from vrga.report.page import render, write_report

__all__ = ["render", "write_report"]
