"""Images of coloured letters on a grid, with questions, answers and the cell to look at."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vrga.annotations import BatchFeature
from vrga.lookback import last_box

CELL = 28  # pixels: one visual token of Qwen2.5-VL (patch 14, merge 2)
LETTERS = tuple("ABCEHKLMPRSTUXYZ")
COLORS: Mapping[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (20, 150, 50),
    "blue": (30, 70, 230),
    "orange": (250, 140, 10),
    "purple": (130, 40, 180),
    "cyan": (0, 190, 210),
    "pink": (255, 120, 200),
    "black": (25, 25, 25),
}
BACKGROUND = (245, 245, 240)

# Sample i of `make_samples(n, seed=s)` is drawn from s + i, so these ranges never meet.
TRAIN_SEEDS = range(0, 100_000_000)
VALIDATION_SEEDS = range(100_000_000, 101_000_000)
TEST_SEEDS = range(101_000_000, 102_000_000)

PROMPTS = {
    "direct": "{question}",
    "cot": "{question} think step by step.",
    "back": "{question} think step by step, then look back.",
}
CAPTION = "list every object."
# Harder questions than those of training: arguments of `make_samples`.
SPLITS: Mapping[str, dict] = {
    "clean": {},
    "noise": {"noise": 140.0},  # pixel noise; at most 60 in training
    "similar": {"fade": 0.5},  # colours half-way to their mean
    "crowded": {"objects": (10, 14)},  # more letters, and so longer chains, than the 4 to 8
    # Larger images than the 6 x 6 of training, over whose tokens attention thins out.
    "large": {"grid": (10, 10)},
    # Long chains before the answer, over a larger image that noise makes hard to read: reasoning
    # costs accuracy here that the direct prompt keeps.
    "long": {"grid": (8, 8), "objects": (12, 16), "noise": 120.0},
    "vast": {"grid": (12, 12), "objects": (12, 16)},  # four times the tokens of training
}


@dataclass(frozen=True)
class Sample:
    """One image with one question about one of its letters.

    Attributes:
        image: RGB, 28 pixels a cell.
        question: For example "what color is the K?".
        letter, color, cell: The object asked for; `cell` is (row, column).
        objects: Every (letter, color, cell) in the image, in reading order.
        grid: Rows and columns of the image in cells (= visual tokens).
    """

    image: Image.Image
    question: str
    letter: str
    color: str
    cell: tuple[int, int]
    objects: tuple[tuple[str, str, tuple[int, int]], ...]
    grid: tuple[int, int]

    @property
    def region(self) -> np.ndarray:
        """The true cell as a mask, bool [rows, columns]."""
        mask = np.zeros(self.grid, dtype=bool)
        mask[self.cell] = True
        return mask

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The true cell in pixels: left, top, right, bottom (exclusive)."""
        row, column = self.cell
        return column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL


def make_samples(
    n: int,
    *,
    seed: int,
    noise: float = 0.0,
    objects: tuple[int, int] = (4, 8),
    grid: tuple[int, int] = (6, 6),
    letters: Sequence[str] = LETTERS,
    colors: Mapping[str, tuple[int, int, int]] = COLORS,
    fade: float = 0.0,
) -> list[Sample]:
    """Draw samples; the same arguments give the same samples, and a larger `n` only adds some.

    Args:
        n: Number of samples.
        seed: Sample i is drawn from `seed + i`; start in one of the `*_SEEDS` ranges.
        noise: Standard deviation of Gaussian pixel noise, on the scale 0-255.
        objects: Fewest and most letters in an image, both included; no letter appears twice.
        grid: Rows and columns, in cells of 28 pixels.
        letters: The alphabet.
        colors: Name to RGB; colours may repeat within an image.
        fade: In [0, 1], how far every colour is moved toward the mean of all (1: all alike).

    Raises:
        ValueError: More objects asked for than there are letters or cells.
    """
    low, high = objects
    if not 1 <= low <= high <= min(len(letters), grid[0] * grid[1]):
        raise ValueError(
            f"objects is {objects}; {len(letters)} letters and a {grid} grid allow "
            f"1 to {min(len(letters), grid[0] * grid[1])}"
        )
    mean = np.mean(list(colors.values()), axis=0)
    palette = {
        name: tuple(np.rint((1 - fade) * np.array(rgb) + fade * mean).astype(int).tolist())
        for name, rgb in colors.items()
    }
    return [_draw_sample(seed + i, noise, objects, grid, letters, palette) for i in range(n)]


def split_options(split: str) -> dict:
    """Arguments of `make_samples` for a split of `SPLITS`.

    Raises:
        ValueError: no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: known are {', '.join(SPLITS)}")
    return dict(SPLITS[split])


def answer(sample: Sample, prompt: str) -> str:
    """The target, its colour in a box; each prompt adds to the one before.

    direct: "answer K red. \\boxed{red}"; cot: first "<think> see A blue, M green. </think>" with
    all other objects in the order of the alphabet; back: then "<back> see K red. </back>".
    """
    spoken = f"answer {sample.letter} {sample.color}."
    box = f"\\boxed{{{sample.color}}}"
    if prompt == "direct":
        return f"{spoken} {box}"
    others = _listing(o for o in sorted(sample.objects) if o[0] != sample.letter)
    chain = f"<think> {others} </think>"
    if prompt == "cot":
        return f"{chain} {spoken} {box}"
    look = _listing([(sample.letter, sample.color, sample.cell)])
    return f"{chain} <back> {look} </back> <think> {spoken} </think> {box}"


def caption(sample: Sample) -> str:
    """Every object by name: "see A blue, K red, M green."; the answer to `CAPTION`."""
    return _listing(sorted(sample.objects))


def parse_answer(text: str) -> str | None:
    """The colour in the last box of `text`, None where there is none."""
    box = last_box(text)
    return box if box in COLORS else None


def spoken_answer(text: str) -> tuple[str, str] | None:
    """Letter and colour of the last "answer K red" of `text`, None where there is none."""
    found = re.findall(rf"\banswer ([A-Z]) ({'|'.join(COLORS)})\b", text)
    return found[-1] if found else None


def asked_letter(question: str) -> str | None:
    """The letter of "what color is the K?", None where it is another question."""
    found = re.fullmatch(r"what color is the ([A-Z])\?", question)
    return found[1] if found else None


def messages(sample: Sample, prompt: str) -> list[dict]:
    """The chat for `processor.apply_chat_template`: the image, then a prompt of `PROMPTS`."""
    text = PROMPTS[prompt].format(question=sample.question)
    content = [{"type": "image", "image": sample.image}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def prepare(processor, samples: Sequence[Sample], prompt: str) -> BatchFeature:
    """Model inputs of a left-padded batch; `prompt` is a key of `PROMPTS`."""
    processor.tokenizer.padding_side = "left"
    chats = [
        processor.apply_chat_template(messages(s, prompt), add_generation_prompt=True)
        for s in samples
    ]
    images = [s.image for s in samples]
    return processor(text=chats, images=images, padding=True, return_tensors="pt")


def is_card(image: Image.Image) -> bool:
    """Whether a picture may be one of these: square, of whole cells, on their light ground."""
    width, height = image.size
    if width != height or width % CELL:
        return False
    ground = np.median(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
    return bool(np.abs(ground - BACKGROUND).max() <= 45)  # noise moves the median that far


def _listing(objects) -> str:
    return "see " + ", ".join(f"{letter} {color}" for letter, color, _ in objects) + "."


@lru_cache(maxsize=256)
def glyph(letter: str, size: int = 24) -> Image.Image:
    """The letter centred in one cell, as an 8-bit mask [28, 28]; size of its font in pixels."""
    mask = Image.new("L", (CELL, CELL))
    font = ImageFont.load_default(size=size)
    left, top, right, bottom = font.getbbox(letter, stroke_width=1)
    corner = ((CELL - left - right) / 2, (CELL - top - bottom) / 2)
    ImageDraw.Draw(mask).text(corner, letter, fill=255, font=font, stroke_width=1)
    return mask


def _draw_sample(seed, noise, objects, grid, letters, palette) -> Sample:
    rng = np.random.default_rng(seed)
    rows, columns = grid
    count = int(rng.integers(objects[0], objects[1], endpoint=True))
    cells = np.sort(rng.choice(rows * columns, size=count, replace=False))
    names = rng.choice(len(letters), size=count, replace=False)
    colors = rng.choice(list(palette), size=count)
    placed = tuple(
        (letters[name], str(color), divmod(int(cell), columns))
        for name, color, cell in zip(names, colors, cells, strict=True)
    )
    letter, color, cell = placed[rng.integers(count)]
    image = Image.new("RGB", (columns * CELL, rows * CELL), BACKGROUND)
    for name, ink, (row, column) in placed:
        image.paste(palette[ink], (column * CELL, row * CELL), glyph(name))
    if noise:
        pixels = np.asarray(image) + rng.normal(0.0, noise, (rows * CELL, columns * CELL, 3))
        image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    question = f"what color is the {letter}?"
    return Sample(image, question, letter, color, cell, placed, grid)
