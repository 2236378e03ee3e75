"""What the commands of `vrga train` share: their options, and the settings of a stage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from vrga.beforehand import check_folder, check_readable
from vrga.cli.options import console

Ablation = Annotated[
    str, typer.Argument(help="sft, rl, reflection, style, lambda, tag, mix or zoom.")
]
Folder = Annotated[Path, typer.Argument(help="Folder of the training.")]
Asked = Annotated[
    Path | None,
    typer.Argument(
        help="Questions as JSON lines (image, question, answer, choices); drawn ones if absent."
    ),
]
Seed = Annotated[int, typer.Option(help="Of what is drawn at random.")]
Parallel = Annotated[
    int | None, typer.Option(min=1, help="Questions under way on a server; 8 if absent.")
]
Config = Annotated[
    str | None,
    typer.Option(help="YAML with sft: and rl:, a path or embedded, chain, paper-7b; by the model."),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="field=value over the file's, again for more.")
]
Lora = Annotated[int | None, typer.Option(min=1, help="Train an adapter of this rank; merged.")]
Output = Annotated[Path | None, typer.Option(help="Of checkpoints, if not in the folder.")]


def stage_options(kind: str, folder: Path, output: Path | None, config, given, **fields):
    """The settings of a stage, said; after what needs no model is refused."""
    check_readable(folder, "training", folder=True)
    if output is not None:
        check_folder(output, "--output")
    from vrga.training import settings
    from vrga.training.rollouts import read_rollouts
    from vrga.training.stage import check_trl

    check_trl()
    _, held, _ = read_rollouts(folder / "rollouts")
    options, name = settings.read(getattr(settings, kind), config, held["model"], given, **fields)
    say(f"settings: {name}; {options}")
    return options


def say(text: str) -> None:
    """Say it once, of several processes."""
    if int(os.environ.get("RANK", 0)) == 0:
        console.print(text, style="dim", soft_wrap=True, markup=False, highlight=False)


def given_for(reader: str, read: bool, **options: Any) -> dict[str, Any]:
    """Options of `reader` that were given, by their names.

    Raises:
        ValueError: one was given, and nothing will read it.
    """
    found = {name: value for name, value in options.items() if value is not None}
    if found and not read:
        name, value = next(iter(found.items()))
        raise ValueError(
            f"--{name} {value}: read by {reader} alone, and there is none: leave it out"
        )
    return found


def bounds(text: str) -> tuple[float, float]:
    """Two shares, as --difficulty takes them.

    Raises:
        ValueError: anything else.
    """
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"--difficulty {text}: two shares such as .05,.95") from None
    return low, high
