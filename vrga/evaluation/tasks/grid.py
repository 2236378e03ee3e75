"""The embedded model's task: which colour has a letter? Rows are seeds; images are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from vrga.demo.data import TEST_SEEDS, make_samples
from vrga.evaluation.scoring import final_answer


@dataclass(frozen=True)
class Grid:
    """Which samples to ask about.

    Args:
        samples: how many.
        seed: seed of the first; the default starts the held-out ones.
        noise: standard deviation of pixel noise, on the scale 0-255.
        objects: fewest and most letters in an image.
        grid: rows and columns of an image, in cells.
        fade: in [0, 1], how far colours are moved toward their mean.
    """

    samples: int = 1000
    seed: int = TEST_SEEDS.start
    noise: float = 0.0
    objects: tuple[int, int] = (4, 8)
    grid: tuple[int, int] = (6, 6)
    fade: float = 0.0


def rows(grid: Grid) -> list[dict]:
    """One row per sample: how to draw it, its question and its answer."""
    drawn = make_samples(
        grid.samples,
        seed=grid.seed,
        noise=grid.noise,
        objects=grid.objects,
        grid=grid.grid,
        fade=grid.fade,
    )
    return [
        {
            "seed": grid.seed + i,
            "noise": float(grid.noise),
            "fewest": grid.objects[0],
            "most": grid.objects[1],
            "rows": grid.grid[0],
            "columns": grid.grid[1],
            "fade": float(grid.fade),
            "question": sample.question,
            "answer": sample.color,
        }
        for i, sample in enumerate(drawn)
    ]


def images(doc: dict) -> list[Image.Image]:
    """The image of a row, drawn."""
    (sample,) = make_samples(
        1,
        seed=doc["seed"],
        noise=doc["noise"],
        objects=(doc["fewest"], doc["most"]),
        grid=(doc["rows"], doc["columns"]),
        fade=doc["fade"],
    )
    return [sample.image]


def process(doc: dict, results: list[str]) -> dict:
    """The item of `accuracy`: the boxed colour, whatever the prompt."""
    said = final_answer(results[0])
    right = said is not None and said.casefold() == doc["answer"]
    return {"accuracy": {"score": float(right), "prediction": said, "target": doc["answer"]}}
