"""Questions that one look cannot settle: a card's letter names the card that is asked for.

The pictures are those of `fine`: 672 x 672 pixels, which the model sees shrunk to 6 x 6 visual
tokens, so that cards can be found and no letter be read. Whoever reads the first card closer knows
which is the second, and not before. In small pictures of the same cards, of 168 x 168 pixels, all
letters can be read at once: on those the model is trained to look back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vrga.demo.data import CELL, LETTERS
from vrga.demo.fine.cards import CARDS, Card
from vrga.demo.fine.data import FineSample, make_fine_samples
from vrga.demo.fine.grounds import SIDE

NAMED: Mapping[str, str] = {"R": "red", "B": "blue", "C": "cyan", "P": "purple"}
QUESTION = "which letter is on the card that the {color} card names?"
# What the user says; each prompt asks for more than the one before.
PROMPTS = {
    "direct": "{question}",
    "cot": "{question} think step by step.",
    "back": "{question} think step by step, then look back.",
}
PATCH, ACROSS = 2 * CELL, 3  # pixels of a side of what a small picture shows of a field; fields
TRIES = 64  # pictures that are drawn for one question, at most

# Arguments of `make_chain_samples` by split.
_CARDS = {"noise": 20.0, "cards": (6, 7), "size": (36, 54), "clutter": (0, 4), "ground": "texture"}
CHAIN_SPLITS: Mapping[str, dict] = {
    "chain": _CARDS,
    "chain-small": _CARDS | {"small": True, "noise": 70.0},
}


@dataclass(frozen=True)
class ChainSample:
    """One picture with one question that takes two looks.

    Attributes:
        image: RGB, 672 x 672; or, of a small picture, 168 x 168.
        question: "which letter is on the card that the green card names?".
        first: the card that is named in the question; second: the one that its letter names.
        picture: the large picture, of which `image` may show the cards alone.
        small: whether it does.
    """

    image: Image.Image
    question: str
    first: Card
    second: Card
    picture: FineSample
    small: bool

    @property
    def answer(self) -> str:
        """The letter on the second card."""
        return self.second.letter

    @property
    def asked(self) -> tuple[Card, Card]:
        """The cards, in the order in which they are read."""
        return self.first, self.second


def chain_split_options(split: str) -> dict:
    """Arguments of `make_chain_samples` for a split of `CHAIN_SPLITS`.

    Raises:
        ValueError: no such split.
    """
    if split not in CHAIN_SPLITS:
        raise ValueError(f"split {split!r}: known are {', '.join(CHAIN_SPLITS)}")
    return dict(CHAIN_SPLITS[split])


def make_chain_samples(n: int, *, seed: int, small: bool = False, **options) -> list[ChainSample]:
    """Draw samples; the same arguments give the same samples, and a larger `n` only adds some.

    Args:
        n: number of samples.
        seed: sample i is drawn from `seed + i`; start in one of the `*_SEEDS` ranges of
            `vrga.demo.data`.
        small: show the cards alone, in a picture in which all of them can be read.
        options: of `make_fine_samples`.

    Raises:
        ValueError: as of `make_fine_samples`; or pictures in which hardly any card names another.
    """
    return [_drawn(seed + i, small, options) for i in range(n)]


def _drawn(seed: int, small: bool, options: Mapping) -> ChainSample:
    """One sample; which letters and colours there are hangs on neither ground nor noise, so that
    pictures without a question are told from bare ones."""
    bare = {**options, "ground": "plain", "noise": 0.0}
    for attempt in range(TRIES):
        own = TRIES * seed + attempt  # apart from all pictures of `fine`, whose seeds are smaller
        if not _named(make_fine_samples(1, seed=own, **bare)[0]):
            continue
        (picture,) = make_fine_samples(1, seed=own, **options)
        found = _named(picture)
        first, second = found[seed % len(found)]
        image = small_picture(picture, seed) if small else picture.image
        return ChainSample(image, QUESTION.format(color=first.color), first, second, picture, small)
    raise ValueError(f"no card names another in {TRIES} pictures of {dict(options)}: draw more")


def _named(picture: FineSample) -> list[tuple[Card, Card]]:
    """Cards whose letter names another one, with that; each the only one of its colour."""
    named = [(card.color, card) for card in picture.cards if card.color is not None]
    colors = [color for color, _ in named]
    single = {color: card for color, card in named if colors.count(color) == 1}
    found = []
    for color in (color for color in CARDS if color in single):  # in no order of theirs
        other = NAMED.get(single[color].letter)
        if other is not None and other in single and other != color:
            found.append((single[color], single[other]))
    return found


def small_cells(picture: FineSample, seed: int) -> list[tuple[int, int, int, int]]:
    """What a small picture shows of a large one: a box for each of its 3 x 3 fields, in pixels.

    Cards first, then other letters, then ground; shuffled by the seed.
    """
    cards = sorted(picture.cards, key=lambda card: card.color is None)
    boxes = []
    for card in cards[: ACROSS**2]:
        # On the raster of tokens, so that a letter stands in one token as in a crop.
        edges = []
        for middle, begin in zip(card.center, card.box[:2], strict=True):
            cell = middle // CELL * CELL
            low = cell - CELL if middle - begin > CELL // 2 + 4 else cell
            edges.append(min(max(low, 0), SIDE - PATCH))
        boxes.append((edges[0], edges[1], edges[0] + PATCH, edges[1] + PATCH))
    rng = np.random.default_rng(seed)
    while len(boxes) < ACROSS**2:
        x, y = (CELL * int(rng.integers(0, (SIDE - PATCH) // CELL + 1)) for _ in range(2))
        near = (x - CELL, y - CELL, x + PATCH + CELL, y + PATCH + CELL)
        if not any(
            near[0] <= card.center[0] < near[2] and near[1] <= card.center[1] < near[3]
            for card in picture.cards
        ):
            boxes.append((x, y, x + PATCH, y + PATCH))
    return [boxes[i] for i in rng.permutation(len(boxes))]


def small_picture(picture: FineSample, seed: int) -> Image.Image:
    """The cards of a large picture side by side, at their own size."""
    found = Image.new("RGB", (ACROSS * PATCH, ACROSS * PATCH))
    for number, box in enumerate(small_cells(picture, seed)):
        row, column = divmod(number, ACROSS)
        found.paste(picture.image.crop(box), (column * PATCH, row * PATCH))
    return found


def spoken(sample: ChainSample, prompt: str) -> str:
    r"""The target; each prompt adds to the one before.

    direct: "answer red K. \boxed{K}"; cot: first "<think> find green, it is R. find red, it is K.
    </think>"; back: with a look at each card before its letter is told.
    """
    told = f"answer {sample.second.color} {sample.second.letter}."
    box = f"\\boxed{{{sample.answer}}}"
    if prompt == "direct":
        return f"{told} {box}"
    chain = " ".join(f"find {card.color}, it is {card.letter}." for card in sample.asked)
    plain = f"<think> {chain} </think> {told} {box}"
    return plain if prompt == "cot" else looked_back(plain, "back")


_STEP = re.compile(rf"find ({'|'.join(CARDS)}), it is ([A-Z])\.")


def looked_back(chain: str, tag: str, *, last: bool = False) -> str:
    """A plain chain with a look at each card that it finds, before its letter is told; the chain
    itself where it is no such one.

    Args:
        last: look at the last card alone, which has the answer.
    """
    thought, closing, rest = chain.partition("</think>")
    box = rest[rest.find("\\boxed") :] if "\\boxed" in rest else ""
    steps = list(_STEP.finditer(thought))
    if not closing or not box or not steps:
        return chain
    look = rf"find \1, </think> <{tag}> see \1 \2. </{tag}> <think> it is \2."
    said = rest[: -len(box)].strip()
    begin = steps[-1].start() if last else 0
    thought = thought[:begin] + _STEP.sub(look, thought[begin:])
    return f"{thought.rstrip()} {said} </think> {box}"


def checked_again(chain: str, tag: str) -> str:
    """A plain chain with one look at the answer's card behind it; the chain itself where it tells
    of none."""
    told = re.search(rf"answer ((?:{'|'.join(CARDS)}) [A-Z])\.", chain)
    box = chain[chain.rfind("\\boxed") :]
    if told is None or not box.startswith("\\boxed"):
        return chain
    return f"{chain} <{tag}> see {told[1]}. </{tag}> <think> {told[0]} </think> {box}"


def first_color(question: str) -> str | None:
    """The colour that a question names, None where it is another question."""
    found = re.fullmatch(QUESTION.replace("{color}", "([a-z]+)").replace("?", r"\?"), question)
    return found[1] if found else None


def sentences() -> list[str]:
    """What the tokenizer learns its words from, beside those of `fine`."""
    told = ["<think> find red, it is K. </think> <back> see red K. </back>"] * 64
    asked = [PROMPTS["back"].format(question=QUESTION.format(color=color)) for color in CARDS] * 8
    steps = [f"find {color}, it is {letter}." for color in CARDS for letter in LETTERS]
    return told + asked + steps
