"""The `vrga` command: a file for each command or group of commands, and one line in `commands`."""

from vrga.cli.commands import app as app
from vrga.cli.commands import main as main
