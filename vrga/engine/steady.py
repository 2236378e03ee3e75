"""Passes in which the same requests answer on, one token of each: nothing is made anew for them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from vrga.engine.answer_rows import Piece
from vrga.engine.compiled_rows import CompiledRows
from vrga.engine.steered import Steered


class Steady:
    """A pass of which the next one may be like: a row of each request, all steered ones answering.

    Args:
        states: of all requests in it, None where one is not steered.
        starts: the first row of each, and the end of the last.
        pieces: of the steered ones.
        rows: of all of them.
    """

    def __init__(
        self,
        states: Sequence[Steered | None],
        starts: list[int],
        pieces: Sequence[Piece],
        rows: CompiledRows,
    ):
        # By references that end with the requests, which nothing here may keep.
        self._known: list[Callable[[], Any]] = [
            (lambda: None) if state is None else weakref.ref(state) for state in states
        ]
        self._prompts = [0 if state is None else state.plan.prompt for state in states]
        self._starts, self._rows = starts, rows
        self._steered = [(piece.place, piece.name, piece.state.plan.prompt) for piece in pieces]

    @staticmethod
    def may_be(pieces: Sequence[Piece]) -> bool:
        """Whether a pass can be one: else there are prompts, or rows that are steered or not."""
        return all(
            piece.rows == 1
            and piece.answer == 0
            and not piece.state.follows
            and piece.state.fault is None
            for piece in pieces
        )

    def goes_on(
        self, states: Sequence[Any], starts: list[int], lengths: Sequence[int]
    ) -> tuple[list[tuple[str, Steered]], CompiledRows] | None:
        """The steered requests and their rows, where a pass is like this one; else None.

        Args:
            states: of all requests in it; starts, lengths: as of `runner.run`.
        """
        if starts != self._starts or len(states) != len(self._known):
            return None
        for state, known, length, prompt in zip(
            states, self._known, lengths, self._prompts, strict=True
        ):
            if state is not known() or length <= prompt:
                return None
        ends, steps, members = list[int](), list[int](), list[tuple[str, Steered]]()
        for place, name, prompt in self._steered:
            end = lengths[place]
            ends.append(end)
            steps.append(end - prompt - 1)
            members.append((name, states[place]))
        self._rows.go_on(ends, steps)
        return members, self._rows
