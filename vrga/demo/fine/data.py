"""Pictures of coloured cards, each with a letter that only a closer look can read.

A question names what is coarse, a card's colour, and asks for what is fine, the letter on it. The
pictures are 672 x 672 pixels; the processor of the model for this split shrinks them four times,
to 6 x 6 visual tokens, and a letter to four pixels in height.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vrga.demo.data import CELL, COLORS, LETTERS
from vrga.demo.fine.grounds import FIELD, GRID, GROUNDS, SIDE
from vrga.demo.fine.grounds import SHRINK as SHRINK
from vrga.lookback import last_box

FONT = 22  # pixels; capitals are 16 high
INK = (25, 25, 25)
CARDS: Mapping[str, tuple[int, int, int]] = {n: c for n, c in COLORS.items() if n != "black"}
ONE = "which letter is on the {color} card?"
TWO = "which letters are on the {color} cards?"

ON_PHOTOS = {"noise": 10.0, "cards": (6, 10), "size": (40, 64), "alike": 1, "strays": (1, 3)}
# Arguments of `make_fine_samples` by split.
FINE_SPLITS: Mapping[str, dict] = {
    "fine-easy": {"noise": 10.0},
    "fine-hard": {
        "noise": 40.0,
        "cards": (8, 14),
        "size": (36, 52),
        "two": 0.25,
        "alike": 3,
        "clutter": (4, 8),
        "strays": (3, 6),
        "ground": "texture",
    },
    "fine-photos": ON_PHOTOS | {"ground": "photos"},
    "fine-stamps": ON_PHOTOS | {"ground": "stamps"},
}


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


@dataclass(frozen=True)
class FineSample:
    """One picture with one question about the letter on a card, or on two of one colour.

    Attributes:
        image: RGB, 672 x 672.
        question: for example "which letter is on the red card?".
        color: asked for.
        asked: its cards, one or two, in reading order.
        cards: every letter in the picture, with a card or without.
    """

    image: Image.Image
    question: str
    color: str
    asked: tuple[Card, ...]
    cards: tuple[Card, ...]

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """The true boxes in pixels."""
        return [card.box for card in self.asked]

    @property
    def answer(self) -> str:
        """What stands in the box of a right answer: "K", or "K M"."""
        return " ".join(card.letter for card in self.asked)


def is_right(text: str, sample: FineSample) -> bool:
    r"""Whether the last \boxed{} of a text holds the asked letters, in any order."""
    box = last_box(text)
    return box is not None and sorted(box.split()) == sorted(sample.answer.split())


def fine_split_options(split: str) -> dict:
    """Arguments of `make_fine_samples` for a split of `FINE_SPLITS`.

    Raises:
        ValueError: no such split.
    """
    if split not in FINE_SPLITS:
        raise ValueError(f"split {split!r}: known are {', '.join(FINE_SPLITS)}")
    return dict(FINE_SPLITS[split])


def make_fine_samples(
    n: int,
    *,
    seed: int,
    noise: float = 0.0,
    cards: tuple[int, int] = (3, 6),
    size: tuple[int, int] = (56, 108),
    two: float = 0.0,
    alike: int = 0,
    clutter: tuple[int, int] = (0, 0),
    strays: tuple[int, int] = (0, 0),
    ground: str = "plain",
) -> list[FineSample]:
    """Draw samples; the same arguments give the same samples, and a larger `n` only adds some.

    Args:
        n: number of samples.
        seed: sample i is drawn from `seed + i`; start in one of the `*_SEEDS` ranges of
            `vrga.demo.data`.
        noise: standard deviation of Gaussian pixel noise, on the scale 0-255.
        cards: fewest and most cards, both included; up to 7, each has a colour of its own.
        size: smallest and largest side of a card, in pixels.
        two: share of the questions that ask for two cards of one colour.
        alike: how many cards more have a colour half-way from the asked one to another.
        clutter: fewest and most discs and bars in the cards' colours, without letters.
        strays: fewest and most letters without a card; half of the asked cards of small size have
            another beside them.
        ground: "plain"; "texture", drawn; "photos", those that scikit-image ships; or "stamps",
            these with the cut-outs of tuxpaint-stamps-default on them.

    Raises:
        ValueError: an argument out of range, or more things than the 36 fields hold.
        ImportError: photographs without scikit-image, or stamps without their package.
    """
    if ground not in GROUNDS:
        raise ValueError(f"ground={ground!r}: known are {', '.join(GROUNDS)}")
    for name, (low, high) in (("clutter", clutter), ("strays", strays)):
        if not 0 <= low <= high:
            raise ValueError(f"{name}={(low, high)}: fewest and most, from 0")
    if not 2 <= cards[0] <= cards[1]:
        raise ValueError(f"cards={cards}: fewest and most, from 2")
    if not 32 <= size[0] <= size[1] <= FIELD:
        raise ValueError(f"size={size}: smallest and largest side in pixels, in [32, {FIELD}]")
    if not 0 <= two <= 1:
        raise ValueError(f"two={two}: a share, in [0, 1]")
    things = cards[1] + alike + clutter[1] + strays[1]
    if alike < 0 or things > GRID[0] * GRID[1]:
        raise ValueError(
            f"up to {things} cards, bars, discs and letters; there are {GRID[0] * GRID[1]} fields"
        )
    options = (noise, cards, size, two, alike, clutter, strays, ground)
    return [_draw(np.random.default_rng(seed + i), *options) for i in range(n)]


def overview(image: Image.Image, side: int = SIDE // SHRINK) -> Image.Image:
    """A picture as the processor shrinks it."""
    return image.resize((side, side), Image.Resampling.BICUBIC)


def spoken(sample: FineSample) -> str:
    r"""The target: "answer red K. \boxed{K}", or "answer red K. answer red M. \boxed{K M}"."""
    said = " ".join(f"answer {card.color} {card.letter}." for card in sample.asked)
    return f"{said} \\boxed{{{sample.answer}}}"


def sentences() -> list[str]:
    """What the tokenizer learns its words from."""
    pairs = [(letter, color) for letter in LETTERS for color in CARDS]
    told = [f"answer {color} {letter}. \\boxed{{{letter} {letter}}}" for letter, color in pairs]
    asked = [form.format(color=color) for color in CARDS for form in (ONE, TWO)] * 4
    return told + asked + ["user\nassistant\nsystem\n"] * 64


@lru_cache(maxsize=64)
def _glyph(letter: str) -> Image.Image:
    """The letter centred in one cell of 28 pixels, as an 8-bit mask."""
    mask = Image.new("L", (CELL, CELL))
    font = ImageFont.load_default(size=FONT)
    left, top, right, bottom = font.getbbox(letter, stroke_width=1)
    corner = ((CELL - left - right) / 2, (CELL - top - bottom) / 2)
    ImageDraw.Draw(mask).text(corner, letter, fill=255, font=font, stroke_width=1)
    return mask


class _Drawing:
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
        self._image.paste(INK, (x - CELL // 2, y - CELL // 2), _glyph(letter))
        return Card(letter, color, box, (x, y))


def _draw(rng, noise, cards, size, two, alike, clutter, strays, ground) -> FineSample:
    """One sample, from its own generator."""
    counts = [int(rng.integers(low, high, endpoint=True)) for low, high in (cards, clutter, strays)]
    double = rng.random() < two
    names = list(CARDS)
    asked = str(rng.choice(names))
    others = [name for name in names if name != asked]
    number = 1 + int(double)  # cards of the asked colour
    rest = counts[0] - number
    colors = rng.permutation(others)[:rest].tolist()
    colors += rng.choice(others, size=rest - len(colors)).tolist()
    colors = [asked] * number + colors
    mixed = rng.choice(others, size=alike).tolist()
    letters = rng.permutation(len(LETTERS)).tolist()
    letters += rng.integers(len(LETTERS), size=64).tolist()
    fields = iter(rng.permutation(GRID[0] * GRID[1]).tolist())

    image = GROUNDS[ground](rng)
    drawing = _Drawing(rng, image, fields, size)
    found: list[Card] = []
    for index, color in enumerate(colors + [None] * alike):
        fill = CARDS[color] if color else _between(asked, mixed[index - len(colors)])
        corner, cell = drawing.field(), drawing.free_cell()
        found.append(drawing.write(LETTERS[letters.pop(0)], color, corner, cell, fill))
        if strays[1] and index < number and size[1] <= 64 and rng.random() < 0.5:
            # Another letter in the same field, so that a crop of the field holds both.
            aside = 3 if cell[0] == 1 else 0, 3 if cell[1] == 1 else 0
            found.append(drawing.write(LETTERS[letters.pop()], None, corner, aside, None))
    for _ in range(counts[2]):
        cell = drawing.free_cell()
        found.append(drawing.write(LETTERS[letters.pop()], None, drawing.field(), cell, None))
    for _ in range(counts[1]):
        _clutter(rng, drawing.pen, drawing.field(), CARDS[str(rng.choice(names))])
    if noise:
        pixels = np.asarray(image, dtype=np.float32)
        pixels = pixels + noise * rng.standard_normal(pixels.shape, dtype=np.float32)
        image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))

    def reading(card: Card) -> tuple[int, int]:
        return card.center[1] // FIELD, card.center[0] // FIELD

    wanted = tuple(sorted((c for c in found if c.color == asked), key=reading))
    question = (TWO if double else ONE).format(color=asked)
    return FineSample(image, question, asked, wanted, tuple(sorted(found, key=reading)))


def _between(first: str, second: str) -> tuple[int, ...]:
    """The colour half-way between two."""
    return tuple((a + b) // 2 for a, b in zip(CARDS[first], CARDS[second], strict=True))


def _clutter(rng, pen: ImageDraw.ImageDraw, corner: tuple[int, int], color) -> None:
    """A disc, or a bar, somewhere in a field."""
    x, y = corner
    if rng.random() < 0.5:
        radius = int(rng.integers(14, 30))
        x, y = (v + int(rng.integers(radius, FIELD - radius)) for v in (x, y))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
        return
    length, width = int(rng.integers(60, 100)), int(rng.integers(6, 14))
    across, along = int(rng.integers(0, FIELD - width)), int(rng.integers(0, FIELD - length))
    if rng.random() < 0.5:
        box = (x + along, y + across, x + along + length, y + across + width)
    else:
        box = (x + across, y + along, x + across + width, y + along + length)
    pen.rectangle(box, fill=color)
