"""The `vrga` command: which commands there are, and how errors of users are told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from vrga import __version__
from vrga.cli.analyze import analyze
from vrga.cli.app import page
from vrga.cli.compare import compare
from vrga.cli.demo import demo
from vrga.cli.doctor import doctor
from vrga.cli.eval import evaluate
from vrga.cli.generate import generate
from vrga.cli.lookback import lookback
from vrga.cli.options import errors
from vrga.cli.report import report
from vrga.cli.serve import serve
from vrga.cli.status import WRONG
from vrga.cli.train import train
from vrga.cli.tune import tune

# In the order of the help: a function, or a typer app with commands of its own.
COMMANDS: dict[str, Callable[..., None] | typer.Typer] = {
    "demo": demo,
    "generate": generate,
    "app": page,
    "serve": serve,
    "report": report,
    "doctor": doctor,
    "eval": evaluate,
    "compare": compare,
    "tune": tune,
    "lookback": lookback,
    "analyze": analyze,
    "train": train,
}

app = typer.Typer(
    help="Make a vision-language model look at the region its question is about.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
for name, command in COMMANDS.items():
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    else:
        app.command(name)(command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vrga {__version__}")
        raise typer.Exit


@app.callback()
def _commands(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Say the version and leave.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Make a vision-language model look at the region its question is about."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; user errors are one line on standard error, exit status 2.

    Args:
        arguments: those of the process if absent.
    """
    try:
        # Named after its own file, another script would call itself the command.
        app(arguments, prog_name=None if arguments is None else "vrga")
    except (ValueError, OSError, ImportError) as error:
        told = str(error)
        if isinstance(error, OSError) and error.strerror and not error.filename:
            told = error.strerror  # without the number
        errors.print(f"vrga: {told}", style="red", markup=False, soft_wrap=True)
        sys.exit(WRONG)
