"""The processes of one training, as torchrun and accelerate launch tell of them."""

from __future__ import annotations

import os

import torch


def rank() -> int:
    """The number of this process; the first one, 0, writes."""
    return int(os.environ.get("RANK", 0))


def processes() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def together() -> None:
    """Wait for the other processes."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
