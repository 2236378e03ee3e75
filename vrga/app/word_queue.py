"""An answer's words on their way from the model's thread to the page's."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from vrga.recording.token_texts import Streamed

MOMENT = 0.05  # seconds between two updates of the words: each one costs the model's time


class Stopped(Exception):
    """The answer is not wanted any more."""


@dataclass(frozen=True)
class Said:
    """How far both answers have come; None for one that has not begun."""

    base: str | None
    steered: str | None


class Words:
    """The words of both answers so far.

    Args:
        decode: as of `Streamed`; stop: set when they are not wanted any more.
        say: is told of them at each new piece.
    """

    def __init__(
        self, decode: Callable[..., str], stop: threading.Event, say: Callable[[Said], object]
    ):
        self._decode, self._stop, self._say = decode, stop, say
        self._texts: dict[str, str | None] = {"base": None, "steered": None}

    def of(self, run: str) -> Streamed:
        """What `generate` takes as the streamer of one answer."""
        return Stoppable(
            self._decode, partial(self._add, run), self._stop, partial(self._begin, run)
        )

    def _begin(self, run: str) -> None:
        self._texts[run] = ""
        self._say(Said(**self._texts))

    def _add(self, run: str, piece: str) -> None:
        self._texts[run] = (self._texts[run] or "") + piece
        self._say(Said(**self._texts))


class Stoppable(Streamed):
    """A streamer that raises where the answer is not wanted any more, and tells of its beginning.

    A closer look begins twice: what its first look said is forgotten then.
    """

    def __init__(self, decode, say, stop: threading.Event, begin: Callable[[], None]):
        super().__init__(decode, say)
        self._stop, self._begin, self._begun = stop, begin, False

    def put(self, value: torch.Tensor) -> None:
        if self._stop.is_set():
            raise Stopped
        if not self._begun:
            self._begun = True
            self._begin()
        super().put(value)

    def end(self) -> None:
        super().end()
        self._begun = False


def newest(told: queue.SimpleQueue) -> object:
    """What is told next; of words that come within a moment the last, which hold all others."""
    item, end = told.get(), time.monotonic() + MOMENT
    while isinstance(item, Said):
        try:
            item = told.get(timeout=max(end - time.monotonic(), 0))
        except queue.Empty:
            break
    return item
