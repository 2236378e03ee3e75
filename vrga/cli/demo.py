"""`vrga demo`: what the small model inside this package answers, with VRGA and without."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vrga.beforehand import check_file, check_folder, check_split, drawn_split
from vrga.cli.options import Split, console


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("out"),
    questions: Annotated[int, typer.Option(min=2, help="Held-out questions per prompt.")] = 200,
    split: Split = None,
    save: Annotated[Path | None, typer.Option(help="Also write the table here, as JSON.")] = None,
) -> None:
    """Answer questions about images with and without VRGA, on the model inside this package."""
    split = drawn_split(split, None)
    check_split(split)
    check_folder(output, "--output")
    if save is not None:
        check_file(save, "--save")
    from vrga.demo.show import show
    from vrga.evaluation.store import write_json

    found = show(output, questions, console, split)
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        write_json(save, found)
