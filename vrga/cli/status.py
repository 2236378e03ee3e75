"""How a command ends that keeps its samples in a folder: exit statuses."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

WRONG, STOPPED, FAILED, INTERRUPTED = 2, 3, 4, 130  # exit statuses; 0 is a whole run


def guarded(
    run: Callable[[], dict | None], output: Path, console: Console, again: str = "--resume"
) -> int:
    """Run something that keeps its samples in a folder; returns the exit status.

    Args:
        run: returns its results, in which "failed" counts samples, where they can fail; None in
            other processes.
        again: what goes on with a run that was stopped.
    """
    try:
        results = run()
    except KeyboardInterrupt:
        return _stopped(console, "interrupted", output, again, INTERRUPTED)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _stopped(console, str(error), output, again, STOPPED)
    if results is None or "failed" not in results:
        return 0
    return whole(results, output, console)


def whole(results: dict, output: Path, console: Console) -> int:
    """Say how many samples failed, if some did; returns the exit status."""
    if not results["failed"]:
        return 0
    told = f"{results['failed']} samples failed and count as wrong: see {output}"
    console.print(told, style="yellow", soft_wrap=True)
    return FAILED


def _stopped(console: Console, why: str, output: Path, again: str, status: int) -> int:
    told = f"stopped ({why}): what is finished is in {output}; go on with {again}"
    console.print(told, style="red", soft_wrap=True)
    return status
