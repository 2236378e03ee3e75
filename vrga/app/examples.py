"""Pictures to begin with: what the small models inside the package were trained to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vrga.demo.data import PROMPTS, TEST_SEEDS, make_samples, split_options
from vrga.demo.fine.data import FINE_SPLITS, make_fine_samples
from vrga.report.page import encoded

# (split of `vrga.demo.data`, which sample, prompt). With its own configuration the small model
# answers the third with the right colour and the fourth with a wrong one, without VRGA the other
# way round; the others the same either way.
SHOWN = (
    ("clean", 0, "direct"),
    ("noise", 1, "direct"),
    ("long", 112, "cot"),
    ("long", 91, "cot"),
    ("crowded", 3, "cot"),
    ("large", 4, "direct"),
)
FINE_SHOWN = (("fine-easy", 0), ("fine-easy", 1), ("fine-hard", 2), ("fine-hard", 3))
SMALL = 144  # pixels of a thumbnail


@dataclass(frozen=True)
class Example:
    """A picture in a file, and a question about it; its small copy is a data URI."""

    path: Path
    question: str
    thumbnail: str


def write_examples(folder: Path, name: str | None) -> list[Example]:
    """Draw the examples of a small model into a folder.

    Args:
        name: None or "fine", the models inside this package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for split, place, question, image in _fine() if name == "fine" else _cards():
        path, small = folder / f"{split}-{place}.png", image.copy()
        image.save(path)
        small.thumbnail((SMALL, SMALL))
        found.append(Example(path, question, encoded(small)))
    return found


def _cards() -> Iterator[tuple[str, int, str, Image.Image]]:
    for split, place, prompt in SHOWN:
        (one,) = make_samples(1, seed=TEST_SEEDS.start + place, **split_options(split))
        yield split, place, PROMPTS[prompt].format(question=one.question), one.image


def _fine() -> Iterator[tuple[str, int, str, Image.Image]]:
    for split, place in FINE_SHOWN:
        (one,) = make_fine_samples(1, seed=TEST_SEEDS.start + place, **FINE_SPLITS[split])
        yield split, place, one.question, one.image
