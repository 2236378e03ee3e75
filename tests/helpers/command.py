"""The command, run within the process."""

from typer.testing import CliRunner

from vrga.cli import app

RUNNER = CliRunner()


def run(*arguments):
    return RUNNER.invoke(app, [str(a) for a in arguments])


def status(*arguments):
    """The exit status of a command; what it refuses is raised."""
    return app([str(a) for a in arguments], standalone_mode=False)
