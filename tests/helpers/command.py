"""The command, run within the process."""

from typer.testing import CliRunner

from vrga.cli import app

RUNNER = CliRunner()


def run(*arguments):
    return RUNNER.invoke(app, [str(a) for a in arguments])
