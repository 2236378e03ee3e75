"""Cards with a letter each, and how they and what lies between them are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from PIL import Image, ImageDraw

from vrga.demo.data import CELL, COLORS, glyph
from vrga.demo.fine.grounds import FIELD, GRID

FONT = 22  # pixels; capitals are 16 high
INK = (25, 25, 25)
CARDS: Mapping[str, tuple[int, int, int]] = {n: c for n, c in COLORS.items() if n != "black"}


@dataclass(frozen=True)
class Card:
    """A letter, and the card it stands on.

    Attributes:
        letter: one of `LETTERS`.
        color: a name of `CARDS`; None for a letter without a card, or on one of a colour between
            two names.
        box: left, top, right, bottom in pixels of the picture, of the card, or of the letter where
            there is no card.
        center: of the letter, (x, y) in pixels.
    """

    letter: str
    color: str | None
    box: tuple[int, int, int, int]
    center: tuple[int, int]


class Drawing:
    """A picture that cards are drawn on, each in a field of its own."""

    def __init__(self, rng, image: Image.Image, fields: Iterator[int], size: tuple[int, int]):
        self._rng, self._image, self._fields, self._size = rng, image, fields, size
        self.pen = ImageDraw.Draw(image)

    def field(self) -> tuple[int, int]:
        """The corner of the next field."""
        row, column = divmod(next(self._fields), GRID[1])
        return column * FIELD, row * FIELD

    def free_cell(self) -> tuple[int, int]:
        """A cell of a field, away from its edge."""
        column, row = self._rng.integers(1, 3, size=2).tolist()
        return column, row

    def write(self, letter: str, color, corner: tuple[int, int], cell: tuple[int, int], fill):
        """Write a letter into a cell of the field at this corner; on a card, where `fill` says of
        which colour."""
        jitter = self._rng.integers(-4, 5, size=2)
        x, y = (corner[i] + cell[i] * CELL + CELL // 2 + int(jitter[i]) for i in (0, 1))
        box = (x - CELL // 2, y - CELL // 2, x + CELL // 2, y + CELL // 2)
        if fill is not None:
            half = self._rng.integers(self._size[0], self._size[1], size=4, endpoint=True) // 2
            box = (
                max(x - int(half[0]), corner[0] + 2), max(y - int(half[1]), corner[1] + 2),
                min(x + int(half[2]), corner[0] + FIELD - 2),
                min(y + int(half[3]), corner[1] + FIELD - 2),
            )  # fmt: skip
            self.pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=fill)
        self._image.paste(INK, (x - CELL // 2, y - CELL // 2), glyph(letter, FONT))
        return Card(letter, color, box, (x, y))

    def clutter(self, color) -> None:
        """Draw a disc, or a bar, somewhere in the next field."""
        rng, (x, y) = self._rng, self.field()
        if rng.random() < 0.5:
            radius = int(rng.integers(14, 30))
            x, y = (v + int(rng.integers(radius, FIELD - radius)) for v in (x, y))
            self.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
            return
        length, width = int(rng.integers(60, 100)), int(rng.integers(6, 14))
        across, along = int(rng.integers(0, FIELD - width)), int(rng.integers(0, FIELD - length))
        if rng.random() < 0.5:
            box = (x + along, y + across, x + along + length, y + across + width)
        else:
            box = (x + across, y + along, x + across + width, y + along + length)
        self.pen.rectangle(box, fill=color)


def between(first: str, second: str) -> tuple[int, ...]:
    """The colour half-way between two."""
    return tuple((a + b) // 2 for a, b in zip(CARDS[first], CARDS[second], strict=True))
