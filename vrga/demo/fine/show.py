"""The first part of `vrga demo`: one picture found, cropped and read, then a small table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from vrga.annotations import Model, Processor
from vrga.closer.look import look_closer
from vrga.demo.data import TEST_SEEDS
from vrga.demo.fine.arms import FOUND, LARGER, LONGEST, ONCE, TOLD, TRUE, run_fine_arms
from vrga.demo.fine.data import FINE_SPLITS, FineSample, is_right, make_fine_samples
from vrga.demo.fine.settings import CLOSER, FINDING
from vrga.evaluation.wording import Table, percent
from vrga.hf.checkpoints import load
from vrga.intervals import Interval, paired_difference, wilson

SHOWN = ("fine-easy", "fine-hard")  # the photographs' split needs a package that may be absent
ARMS = (ONCE, LARGER, FOUND, TRUE)
PICTURED = "fine-hard"


def show_closer(output: Path, questions: int, console: Console) -> dict:
    """Run this part; what it measured, with 95 % intervals as [value, low, high].

    Args:
        output: folder for the picture.
        questions: held-out questions of each split.
        console: where to print.
    """
    loaded = load("fine", dtype=torch.float32)
    samples = {
        split: make_fine_samples(questions, seed=TEST_SEEDS.start + 1, **options)
        for split, options in FINE_SPLITS.items()
        if split in SHOWN
    }
    right = {}
    for split in track(SHOWN, "looking closer", console=console, transient=True):
        right[split] = _right(loaded, samples[split])
    console.print("[bold]A closer look[/bold]")
    place, why = picked(right[PICTURED][ONCE], right[PICTURED][FOUND])
    _one_picture(loaded, samples[PICTURED][place], why, output, console)
    found = {split: _figures(own) for split, own in right.items()}
    console.print(_table(found, questions))
    console.print(
        "The model sees 6 x 6 tokens of a picture of 672 x 672 pixels. A larger picture: as many "
        "tokens as picture and crops have together. Brackets: 95 % intervals. More: vrga analyze "
        "closer.\n"
    )
    return {"questions": questions, "splits": found}


def picked(once: Sequence[bool], closer: Sequence[bool]) -> tuple[int, str]:
    """The question to show, one in which something visibly changes, and how it was picked.

    Args:
        once, closer: whether each question's answer is right.
    """
    changed = [i for i, (a, b) in enumerate(zip(once, closer, strict=True)) if b and not a]
    lost = sum(a and not b for a, b in zip(once, closer, strict=True))
    count = f"{len(changed)} of {len(once)} are like this, {lost} the other way round"
    if changed:
        return changed[0], f"picked: the first that is wrong at first, then right; {count}"
    return 0, f"the first question, as a closer look mends none: {count}"


def _one_picture(
    loaded: tuple[Model, Processor], sample: FineSample, why: str, output: Path, console: Console
) -> None:
    """Ask once and with a closer look, and draw what was seen, found, cropped and read."""
    from vrga.closer.plots import closer_figure
    from vrga.plots import save

    straight = run_fine_arms(loaded, [sample], (ONCE,), FINDING, CLOSER)[1][ONCE].texts[0]
    found = look_closer(
        *loaded, sample.image, sample.question, FINDING, CLOSER, max_new_tokens=LONGEST
    )
    answers = {"asked once": straight, "after a closer look": found.text}
    console.print(f"[bold]{sample.question}[/bold] (the answer is {sample.answer})")
    for name, text in answers.items():
        console.print(f"  {name}: {text}", markup=False)
    told = "looked closer" if found.zoomed else "not looked closer"
    console.print(f"  {told}: {found.decision.reason}", markup=False)
    console.print(f"  {why}", markup=False)
    figure = closer_figure([sample.image], found, title=sample.question, answers=answers)
    path = save(figure, output / "closer.png")
    console.print(f"  Picture: {path.resolve()}\n", soft_wrap=True)


def _right(
    loaded: tuple[Model, Processor], samples: list[FineSample], batch: int = 50
) -> dict[str, list[bool]]:
    """Whether each question's answer is right, for each arm."""
    right: dict[str, list[bool]] = {arm: [] for arm in ARMS}
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        answers = run_fine_arms(loaded, part, ARMS, FINDING, CLOSER, start)[1]
        for arm in ARMS:
            pairs = zip(answers[arm].texts, part, strict=True)
            right[arm] += [is_right(text, sample) for text, sample in pairs]
    return right


def _figures(right: Mapping[str, list[bool]]) -> dict[str, Interval]:
    """Right answers of each arm, and what a closer look wins."""
    found: dict[str, Interval] = {arm: wilson(hits) for arm, hits in right.items()}
    return found | {"difference": paired_difference(right[FOUND], right[ONCE])}


def _table(found: Mapping[str, Mapping], questions: int) -> Table:
    title = f"{questions} held-out questions of each split, embedded model 'fine'"
    table = Table("split", *(TOLD[arm] for arm in ARMS), "won by looking closer", title=title)
    for split, own in found.items():
        cells = [percent(own[arm]) for arm in ARMS]
        table.add_row(split, *cells, percent(own["difference"], "+"))
    return table
