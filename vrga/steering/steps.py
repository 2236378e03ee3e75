"""Accounting: what became of every step of an answer, for every row."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

# Why a step is left alone.
GAIN = "gain 1"
OFF = "switched off"
SINGLE = "this preset steers passes of one token alone"
OUTSIDE = "outside <back>"
OPENS = "opens <back>"
CERTAIN = "certain"
RISES = "turns uncertain"
CHOICE = "not chosen by `when`"
IMAGELESS = "no image"
EMPTY = "an empty region"
UNSURE = "no clear region"
SHALLOW = "no layer from first_layer on"


@dataclass(frozen=True)
class Steps:
    """The steps of one row's answer.

    Args:
        generated: tokens of the answer, those of padding behind its end left out.
        steered: steps that were steered; step s is the forward pass of generated token s, and the
            last token has none.
        left_alone: steps that were not, by reason.
    """

    generated: int
    steered: int
    left_alone: dict[str, int] = field(default_factory=dict)

    @property
    def passed(self) -> int:
        """Steps in all: `generated` - 1 where everything is accounted for."""
        return self.steered + sum(self.left_alone.values())

    def all_left_alone(self, reason: str) -> Steps:
        """The same steps, none of them steered."""
        return Steps(self.generated, 0, {reason: self.passed} if self.passed else {})

    def __str__(self) -> str:
        left = "".join(f", {count} left alone ({why})" for why, count in self.left_alone.items())
        return f"{self.steered} of {self.passed} steps steered{left}"


class Ledger:
    """Notes of every step of one prompt's answer, by the position of its token.

    Host integers, and masks that stay on their device until somebody asks.

    Args:
        rows: of the batch; start: position of the answer's first token.
        opens: why a row is left alone from which a region is found anew.
    """

    def __init__(self, rows: int, start: int, opens: str = OPENS):
        self.rows, self.start, self._opens = rows, start, opens
        # By position: why all rows are left alone, or None; with rows that differ, bool [B] each:
        # which are steered, and at which of the others a region is found anew.
        self._notes: dict[int, tuple[str | None, Tensor | None, Tensor | None]] = {}
        self._compiled: dict[str, Tensor] = {}
        self._compiled_steps = 0

    def note(
        self,
        past: int,
        count: int,
        reason: str | None,
        chosen: Tensor | None = None,
        opened: Tensor | None = None,
    ) -> None:
        """A pass of `count` tokens behind `past` keys; notes of drafts that were rejected go.

        Args:
            reason: why rows are left alone, all of them or those not chosen; None with all steered.
            chosen: which tokens of which rows are steered, bool [B, Q]; None for all or none.
            opened: those left alone because a region is found anew at them, likewise, or None.
        """
        self.forget_from(past)
        for i in range(count):
            self._notes[past + i] = (
                reason,
                None if chosen is None else chosen[:, i],
                None if opened is None else opened[:, i],
            )

    def begin(self, start: int) -> None:
        """The answer begins anew, at this position."""
        self.forget_from(start)
        self.start = start

    def forget_from(self, position: int) -> None:
        """Drop the notes of positions from `position` on: their tokens are not the answer's."""
        while self._notes and next(reversed(self._notes)) >= position:
            self._notes.popitem()

    def note_compiled(self, steps: int, left: dict[str, Tensor]) -> None:
        """Compiled steps ran, by their own count.

        Args:
            left: steps of each row left alone, by reason, int64 [B].
        """
        self._compiled_steps, self._compiled = steps, left

    @property
    def passed(self) -> int:
        """Steps that came."""
        return len(self._notes) + self._compiled_steps

    def of_rows(self, ends: list[int] | None = None) -> list[Steps]:
        """The steps of each row; reads the device.

        Args:
            ends: tokens of each row's answer; None: as many as there were steps, and one more.
        """
        found = []
        for row in range(self.rows):
            generated = self.passed + 1 if ends is None else ends[row]
            found.append(self._of_row(row, generated))
        return found

    def _of_row(self, row: int, generated: int) -> Steps:
        steered = 0
        left: dict[str, int] = {}
        last = self.start + generated - 1
        for position, (reason, chosen, opened) in self._notes.items():
            if position >= last:
                continue
            why = reason
            if chosen is not None and bool(chosen[row]):
                why = None
            elif opened is not None and bool(opened[row]):
                why = self._opens
            if why is None:
                steered += 1
            else:
                left[why] = left.get(why, 0) + 1
        compiled = min(self._compiled_steps, max(generated - 1 - steered - sum(left.values()), 0))
        for why, count in self._compiled.items():
            number = min(int(count[row]), compiled)
            if number:
                left[why] = left.get(why, 0) + number
                compiled -= number
        return Steps(generated, steered + compiled, left)


def answer_ends(ids: Tensor, end_tokens: set[int]) -> list[int]:
    """Tokens of each row's answer, its end token counted; ids int64 [B, T]."""
    ids = ids.cpu()
    found = torch.isin(ids, torch.tensor(sorted(end_tokens), dtype=ids.dtype))
    place = torch.where(found, torch.arange(ids.shape[1]), ids.shape[1] - 1)
    return (place.amin(1) + 1).tolist() if ids.shape[1] else [0] * len(ids)
