"""The version of transformers, and the newest that was tested."""

from __future__ import annotations

import functools
import warnings

import transformers

VERSION = transformers.__version__
NEWEST_TESTED = "5.24"  # of transformers


@functools.cache
def warn_if_untested() -> None:
    """Say once that this version of transformers is newer than the newest that was tested."""
    found = transformers.__version__
    release = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if release > tuple(int(part) for part in NEWEST_TESTED.split(".")):
        warnings.warn(
            f"transformers {found} is newer than the newest that vrga was tested on "
            f"({NEWEST_TESTED}); its checks decide: run `vrga doctor` to see what holds here",
            stacklevel=4,
        )
