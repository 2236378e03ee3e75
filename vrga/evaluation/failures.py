"""What may go wrong with one sample, and leaves the others alone."""

from __future__ import annotations

import torch

SAMPLE_ERRORS = (OSError, ValueError, TypeError, KeyError, IndexError)


def told_of(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {error}"


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; on a CPU torch raises a plain RuntimeError."""
    told = str(error)
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "out of memory" in told
        or "can't allocate memory" in told
        or "CUBLAS_STATUS_ALLOC_FAILED" in told
    )
