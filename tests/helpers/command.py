"""The command, run within the process."""

import pytest
from typer.testing import CliRunner

from vrga.cli import app, main

RUNNER = CliRunner()


def run(*arguments):
    return RUNNER.invoke(app, [str(a) for a in arguments])


def worked(*arguments):
    """A command that ends with exit status 0."""
    done = run(*arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def ended(*arguments):
    """The exit status of a command, as a shell sees it: what it refuses is one line."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return stop.value.code


def status(*arguments):
    """The exit status of a command; what it refuses is raised."""
    return app([str(a) for a in arguments], standalone_mode=False)
