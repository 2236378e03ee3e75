"""A folder that one process writes at a time."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path


def locked(folder: Path, alone: bool) -> int:
    """A descriptor by which a folder is locked, where that can be and it is to be `alone`.

    Raises:
        ValueError: another process writes into the folder.
    """
    if not alone or sys.platform == "win32":  # which opens no folder
        return os.open(os.devnull, os.O_RDONLY)
    import fcntl

    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return held  # a file system without locks
        os.close(held)
        raise ValueError(
            f"another process writes into {folder}: wait until it has ended, or give another "
            "--output"
        ) from error
    return held
