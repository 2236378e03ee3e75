"""Generations that take turns token by token, so that what is compared ran side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import torch
from torch import nn

from benchmarks.timing import synchronize


def now() -> float:
    """Seconds: on a GPU the clock on the wall, when its work is done; on a CPU of this process."""
    if torch.cuda.is_available():
        synchronize()
        return time.perf_counter()
    return time.process_time()


def generate(model: nn.Module, inputs: dict, tokens: int, *stops, **more) -> None:
    """A greedy answer of so many tokens."""
    model.generate(
        **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
        stopping_criteria=list(stops), **more,
    )  # fmt: skip


class Turn:
    """A generation in a thread of its own, which stops before every token until it is told to go.

    Args:
        call: takes a stopping criterion; calls generate() with it.

    Attributes:
        times: seconds of each token, the prefill's first.
    """

    def __init__(self, call):
        self.times: list[float] = []
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._call, self._error = call, None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._go.acquire()
        self._start = now()
        try:
            self._call(self._stop)
        except BaseException as error:
            self._error = error
        self._done.release()

    def _stop(self, ids, scores, **kwargs):
        self.times.append(now() - self._start)
        self._done.release()
        self._go.acquire()
        self._start = now()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    def go(self) -> None:
        """Let it make one token."""
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Let it return."""
        self._go.release()
        self._thread.join()
        if self._error is not None:
            raise self._error


def take_turns(turns: Mapping[str, Turn], tokens: int) -> None:
    """Let each make all its tokens, and return."""
    names = list(turns)
    for i in range(tokens):
        # Every arm comes first equally often, and always follows another one.
        for name in names[i % len(names) :] + names[: i % len(names)]:
            turns[name].go()
    for turn in turns.values():
        turn.end()
