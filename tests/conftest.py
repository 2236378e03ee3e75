"""Shared by all tests: the interpreter for kernels, few threads, poisoned memory.

On a GPU the kernel tests run on it with: VRGA_TEST_DEVICE=cuda pytest tests/test_kernel.py
"""

import os

import pytest
import torch

if os.environ.get("VRGA_TEST_DEVICE", "cpu") == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported anywhere
os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)  # several test processes share the cores


@pytest.fixture
def poisoned(monkeypatch):
    """Fill every float tensor that torch.empty returns with NaN: unwritten output shows."""
    empty = torch.empty

    def filled(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", filled)
