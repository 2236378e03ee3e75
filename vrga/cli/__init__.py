"""The `vrga` command."""

from vrga.cli.commands import app as app
from vrga.cli.commands import main as main
