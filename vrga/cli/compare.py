"""`vrga compare`: two runs of `vrga eval`, sample by sample."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vrga.beforehand import check_file, check_readable
from vrga.cli.options import console


def compare(
    first: Annotated[Path, typer.Argument(help="Folder of a run of vrga eval.")],
    second: Annotated[
        Path | None, typer.Argument(help="Folder of another; both arms of the first one if absent.")
    ] = None,
    most: Annotated[
        int, typer.Option(min=0, help="Samples listed that became right, and that became wrong.")
    ] = 10,
    html: Annotated[
        Path | None,
        typer.Option(help="Write a page here: all of these samples, with images and answers."),
    ] = None,
) -> None:
    """Compare two runs of vrga eval, or the two arms of one, sample by sample."""
    check_readable(first, "run", folder=True)
    check_readable(second, "run", folder=True)
    if html is not None:
        check_file(html, "--html")
    from vrga.evaluation.compare import compare

    compare(first, second, console, most=most, html=html)
