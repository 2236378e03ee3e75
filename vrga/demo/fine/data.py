"""Pictures of coloured cards, each with a letter that only a closer look can read.

A question names what is coarse, a card's colour, and asks for what is fine, the letter on it. The
pictures are 672 x 672 pixels; the processor of the model for this split shrinks them four times,
to 6 x 6 visual tokens, and a letter to four pixels in height.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vrga.demo.data import LETTERS
from vrga.demo.fine.cards import CARDS, Card, Drawing, between
from vrga.demo.fine.grounds import FIELD, GRID, GROUNDS
from vrga.lookback import last_box

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
    drawing = Drawing(rng, image, fields, size)
    found: list[Card] = []
    for index, color in enumerate(colors + [None] * alike):
        fill = CARDS[color] if color else between(asked, mixed[index - len(colors)])
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
        drawing.clutter(CARDS[str(rng.choice(names))])
    if noise:
        pixels = np.asarray(image, dtype=np.float32)
        pixels = pixels + noise * rng.standard_normal(pixels.shape, dtype=np.float32)
        image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))

    def reading(card: Card) -> tuple[int, int]:
        return card.center[1] // FIELD, card.center[0] // FIELD

    wanted = tuple(sorted((c for c in found if c.color == asked), key=reading))
    question = (TWO if double else ONE).format(color=asked)
    return FineSample(image, question, asked, wanted, tuple(sorted(found, key=reading)))
