"""`vrga doctor`: does VRGA do on this installation what it says?."""

from __future__ import annotations

from typing import Annotated

import typer

from vrga.cli.options import console


def doctor(
    model: Annotated[
        str | None, typer.Option(help="Checkpoint to examine; a tiny random model if absent.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Of the tiny model: qwen2_5_vl, llava, ...")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
) -> None:
    """Check that VRGA does on this installation what it says; status 1 where it does not."""
    from vrga.checkup.run import doctor

    found = doctor(model, family=family, device=device)
    console.print(found)
    raise typer.Exit(0 if found.ok else 1)
