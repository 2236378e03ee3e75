"""Pictures to begin with: what the small models inside the package were trained to read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vrga.demo.data import TEST_SEEDS, make_samples, split_options
from vrga.demo.fine.data import FINE_SPLITS, make_fine_samples

SHOWN = ("clean", "noise", "similar", "crowded", "large")  # splits of `vrga.demo.data`
FINE_SHOWN = ("fine-easy", "fine-easy", "fine-hard", "fine-hard")


@dataclass(frozen=True)
class Example:
    """A picture in a file, and a question about it."""

    path: Path
    question: str


def write_examples(folder: Path, name: str | None) -> list[Example]:
    """Draw the examples of a small model into a folder.

    Args:
        name: None or "fine", the models inside this package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for place, split in enumerate(SHOWN if name is None else FINE_SHOWN):
        seed = TEST_SEEDS.start + place
        if name is None:
            (sample,) = make_samples(1, seed=seed, **split_options(split))
        else:
            (sample,) = make_fine_samples(1, seed=seed, **FINE_SPLITS[split])
        samples.append((f"{split}-{place + 1}.png", sample))
    for file, sample in samples:
        sample.image.save(folder / file)
    return [Example(folder / file, sample.question) for file, sample in samples]
