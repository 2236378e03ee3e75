"""The first part of `vrga demo`: one picture found, cropped and read, then a small table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from vrga.closer.look import look_closer
from vrga.demo.data import TEST_SEEDS
from vrga.demo.fine.arms import FOUND, LARGER, ONCE, TOLD, TRUE, run_fine_arms
from vrga.demo.fine.data import FINE_SPLITS, FineSample, is_right, make_fine_samples
from vrga.demo.fine.settings import CLOSER, FINDING
from vrga.evaluation.wording import percent
from vrga.foreign import Model, Processor
from vrga.hf.checkpoints import load
from vrga.intervals import Interval, paired_difference, wilson

SHOWN = ("fine-easy", "fine-hard")  # the photographs' split needs a package that may be absent
ARMS = (ONCE, LARGER, FOUND, TRUE)


def show_closer(output: Path, questions: int, console: Console) -> dict:
    """Run this part; what it measured, with 95 % intervals as [value, low, high].

    Args:
        output: folder for the picture.
        questions: held-out questions of each split.
        console: where to print.
    """
    loaded = load("fine", dtype=torch.float32)
    samples = {
        split: make_fine_samples(questions + 1, seed=TEST_SEEDS.start, **options)
        for split, options in FINE_SPLITS.items()
        if split in SHOWN
    }
    _one_picture(loaded, samples["fine-hard"][0], output, console)
    found = {split: _measure(loaded, own[1:]) for split, own in samples.items()}
    console.print(_table(found, questions))
    console.print(
        "The model sees 6 x 6 tokens of a picture of 672 x 672 pixels. A larger picture: as many "
        "tokens as picture and crops have together. Brackets: 95 % intervals. More: vrga analyze "
        "closer.\n"
    )
    return {"questions": questions, "splits": found}


def _one_picture(
    loaded: tuple[Model, Processor], sample: FineSample, output: Path, console: Console
) -> None:
    """Ask once and with a closer look, and draw what was seen, found, cropped and read."""
    from vrga.closer.plots import closer_figure
    from vrga.plots import save

    straight = run_fine_arms(loaded, [sample], (ONCE,), FINDING, CLOSER)[1][ONCE].texts[0]
    found = look_closer(*loaded, sample.image, sample.question, FINDING, CLOSER, max_new_tokens=28)
    answers = {"asked once": straight, "after a closer look": found.text}
    console.print(f"[bold]{sample.question}[/bold] (the answer is {sample.answer})")
    for name, text in answers.items():
        console.print(f"  {name}: {text}", markup=False)
    told = "looked closer" if found.zoomed else "not looked closer"
    console.print(f"  {told}: {found.decision.reason}", markup=False)
    figure = closer_figure([sample.image], found, title=sample.question, answers=answers)
    path = save(figure, output / "closer.png")
    console.print(f"  Picture: {path.resolve()}\n", soft_wrap=True)


def _measure(loaded: tuple[Model, Processor], samples: list[FineSample], batch: int = 50) -> dict:
    """Right answers of each arm, and what a closer look wins."""
    right: dict[str, list[bool]] = {arm: [] for arm in ARMS}
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        answers = run_fine_arms(loaded, part, ARMS, FINDING, CLOSER, start)[1]
        for arm in ARMS:
            pairs = zip(answers[arm].texts, part, strict=True)
            right[arm] += [is_right(text, sample) for text, sample in pairs]
    found: dict[str, Interval] = {arm: wilson(hits) for arm, hits in right.items()}
    return found | {"difference": paired_difference(right[FOUND], right[ONCE])}


def _table(found: Mapping[str, Mapping], questions: int) -> Table:
    table = Table(title=f"{questions} held-out questions of each split, embedded model 'fine'")
    for column in ("split", *(TOLD[arm] for arm in ARMS), "won by looking closer"):
        table.add_column(column)
    for split, own in found.items():
        cells = [percent(own[arm]) for arm in ARMS]
        table.add_row(split, *cells, percent(own["difference"], "+"))
    return table
