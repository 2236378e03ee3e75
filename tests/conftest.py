"""Shared by all tests: the interpreter for kernels, few threads, poisoned memory.

On a GPU the kernel tests run on it with: VRGA_TEST_DEVICE=cuda pytest tests/kernels/test_kernel.py
"""

import logging
import os
import re
import traceback

import pytest
import torch

if os.environ.get("VRGA_TEST_DEVICE", "cpu") == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported anywhere
os.environ.setdefault("HF_HUB_OFFLINE", "1")
BROWSERS = {"open_page", "open_tab", "browsers", "page", "driver"}  # fixtures that start one
torch.set_num_threads(1)  # several test processes share the cores


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out by mark
def pytest_collection_modifyitems(items):
    """What runs in Triton's interpreter is slow, and so are compiled steps and a browser."""
    for item in items:
        given = getattr(item, "callspec", None)
        given = given.params if given else {}
        impl = getattr(given.get("impl"), "__name__", given.get("impl"))
        slow = impl in ("triton", "decode_attention", "probe_scores") or given.get("compiled")
        if slow or "compiled" in item.name or BROWSERS & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def poisoned(monkeypatch):
    """Fill every float tensor that torch.empty returns with NaN: unwritten output shows."""
    empty = torch.empty

    def filled(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", filled)


class _Told(logging.Handler):
    """What transformers logs of names and ways that will go."""

    ENDING = re.compile(
        r"deprecat|\b(be|is|are) removed|no longer (be )?supported|\b(from|in|as of) v\d+\.\d+",
        re.I,
    )

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record):
        text = record.getMessage()
        if self.ENDING.search(text) and not self._own_call():
            self.messages.append(text)

    @staticmethod
    def _own_call():
        """Whether transformers itself calls in the way that will go: an assistant's generate()."""
        calls = traceback.walk_stack(None)
        return any(f.f_code.co_filename.endswith("candidate_generator.py") for f, _ in calls)


@pytest.fixture(autouse=True)
def deprecations():
    """Fails a test in which transformers logs that something it was given will go.

    What it raises as a warning is an error by pyproject.toml; some of its deprecations are logged
    instead, and once per process: each test hears them anew. A test that means to pass an old name
    asks for this fixture, which is the list of what was told, and empties it.
    """
    logger, told = logging.getLogger("transformers"), _Told()
    once = getattr(logging.Logger, "warning_once", None)  # transformers' own, when it is imported
    if once is not None:
        once.cache_clear()
    logger.addHandler(told)
    yield told.messages
    logger.removeHandler(told)
    if told.messages:
        pytest.fail("transformers tells of an end: " + "; ".join(dict.fromkeys(told.messages)))
