"""Which region each row is steered to, step by step of an answer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from vrga.method.region import Region


@dataclass(frozen=True)
class Relocation:
    """From a step on, a row of the batch is steered to another region.

    Args:
        row: of the batch.
        step: the first one that is steered to it.
        region: what is steered to.
        opened: step of the token at which it was found, which opened a <back> or was uncertain;
            None where a search moved another beam into the row, and in a trace that was loaded.
    """

    row: int
    step: int
    region: Region
    opened: int | None = field(default=None, compare=False)

    @property
    def cause(self) -> int:
        """The step without which it would not be."""
        return self.step - 1 if self.opened is None else self.opened


@dataclass(frozen=True)
class Episode:
    """One token at which the region was found anew: it opened a <back>, or was uncertain.

    Args:
        row: of the batch; position: of the token, in the padded row.
        region: what it looks at, steered to from here on; before: what was steered to before.
    """

    row: int
    position: int
    region: Region
    before: Region


class Timeline:
    """The regions of one answer's rows.

    Args:
        first: what is steered to at first, one region per row.
        start: position of the answer's first token, whose step is 0.
        relocated: what came later, in the order of steps.

    Attributes:
        now: what the rows are steered to from the newest position on.
    """

    def __init__(
        self, first: list[Region], start: int = 0, relocated: list[Relocation] | None = None
    ):
        self.first, self.start = list(first), start
        self.relocated: list[Relocation] = []
        self._set(list(relocated or ()))

    def at(self, row: int, position: int) -> Region:
        """What a row is steered to at a position."""
        return self._last(row, position - self.start)

    @property
    def episodes(self) -> list[Episode]:
        """Each token at which a region was found anew, in order."""
        found, before = [], list(self.first)
        for later in self.relocated:
            row = later.row
            if later.opened is not None:
                found.append(Episode(row, self.start + later.opened, later.region, before[row]))
            before[row] = later.region
        return found

    def turn(self, row: int, region: Region, *, opened: int, position: int) -> None:
        """A row turns to the region that it found anew.

        Args:
            opened: position of the token at which it was found.
            position: the first one that is steered to the region: drafts that came in one pass
                with that token were not.
        """
        turned = Relocation(row, position - self.start, region, opened - self.start)
        self._set([*self.relocated, turned])

    def reorder(self, beams: list[int], position: int) -> bool:
        """Row i goes on from `position` as row beams[i]; whether any row looks elsewhere now."""
        now = self.now
        turned = [
            Relocation(row, position - self.start, now[beam])
            for row, beam in enumerate(beams)
            if now[beam] is not now[row]
        ]
        if turned:
            self._set([*self.relocated, *turned])
        return bool(turned)

    def forget_from(self, position: int) -> bool:
        """Tokens from `position` on were drafts that were rejected, or come again.

        Returns:
            Whether some row looks elsewhere now.
        """
        step, before = position - self.start, self.relocated
        kept = [later for later in before if later.cause < step]
        gone = len(kept) < len(before)
        if gone or any(later.step > step for later in kept):
            # What was found before is in force for all tokens that come again.
            self._set([replace(later, step=min(later.step, step)) for later in kept])
        return gone

    def _set(self, relocated: list[Relocation]) -> None:
        self.relocated = relocated
        self.now = [self._last(row) for row in range(len(self.first))]

    def _last(self, row: int, step: int | None = None) -> Region:
        for later in reversed(self.relocated):
            if later.row == row and (step is None or later.step <= step):
                return later.region
        return self.first[row]
