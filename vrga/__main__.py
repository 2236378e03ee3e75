"""`python -m vrga`."""

from vrga.cli import main

main()
