"""The ablation `zoom`: is a trained <back> worth more with a closer look at its place?

Models before training, after SFT (half of the rows with a span, or every row; a look at each card,
or one) and after RL, each asked the same questions of two looks: without VRGA, with VRGA inside
<back>, and with a closer look before the answer or at each <back>.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from vrga.beforehand import check_chain
from vrga.demo.chain.arms import (
    BACK,
    BEFORE,
    BY_QUESTION,
    INSIDE,
    LARGER,
    OFF,
    TOLD,
    TRUE,
    ChainArms,
)
from vrga.demo.chain.data import ChainSample, chain_split_options, make_chain_samples
from vrga.demo.fine.settings import AT_BACK, FINDING
from vrga.evaluation.json_text import read_object
from vrga.evaluation.store import SAMPLES, fingerprint, write_json
from vrga.evaluation.wording import Table, percent
from vrga.hf.checkpoints import load
from vrga.intervals import mcnemar, paired_difference, wilson
from vrga.lookback import last_box
from vrga.recording.package_versions import versions_and_device
from vrga.training.questions import APART, FIRST

ZOOM, SPLIT, BATCH = "zoom", "chain", 200
ASKED, ONE = "base, asked to look back", "SFT, every row, one look"
# Ways in which each model is asked.
WAYS: Mapping[str, tuple[str, ...]] = {
    "base": (OFF, INSIDE, BEFORE, BACK, LARGER, TRUE),
    ASKED: (OFF, BACK),
    "SFT": (OFF, INSIDE, BEFORE, BACK),
    "SFT, every row": (OFF, INSIDE, BEFORE, BACK),
    "SFT and RL": (OFF, INSIDE, BEFORE, BACK),
    ONE: (OFF, BACK),
}
# What each trained model with a closer look at its <back> is compared with: itself without one, the
# closer look that needs no training, and what needs neither.
ALONE = {
    "trained alone": (None, OFF),
    "trained, VRGA inside `<back>`": (None, INSIDE),
    "trained, closer look before the answer": (None, BEFORE),
    "closer look alone, before the answer": ("base", BEFORE),
    "asked to look back, not trained, closer look": (ASKED, BACK),
    "trained on one look, closer look at it": (ONE, BACK),
}
TRAINED = tuple(WAYS)[2:]
DIFFERENCE = ("model", "less", "right", "p", "by seed", "largest p of a seed")
FIGURES = ("right", "back", "looks", "first", "second")  # of each question
COLUMNS = (
    "model",
    "",
    "right",
    "seeds",
    "looks back",
    "looks closer",
    "first card shown",
    "second",
)


def zoomed(
    output: Path,
    trained: Iterable[tuple[int, str, Path | None]],
    base: str | None,
    *,
    limit: int,
    console: Console,
) -> dict:
    """Ask every model in its ways, as it is trained; what is in `output` is not asked again.

    What was found so far is written after each model.

    Args:
        trained: seed, name and folder of each model, None of the base.
        base: the model that training begins with.
        limit: held-out questions of each seed.

    Returns:
        What results-zoom.json holds.

    Raises:
        ValueError: no base: the embedded model knows no such questions.
    """
    check_chain(SPLIT, base)
    results: dict[str, Any] = {
        "ablation": ZOOM, "questions": limit, "split": SPLIT, "versions": versions_and_device(),
        "models": {name: [] for name in WAYS},
    }  # fmt: skip
    for seed, name, folder in trained:
        there = output / f"seed-{seed}" / "answers"
        for model in (name,) if folder is not None else ("base", ASKED):
            named = f"zoom-{model.replace(' ', '-').replace(',', '')}-{limit}"
            # What was trained anew is asked anew.
            named += "" if folder is None else f"-{fingerprint(folder.parent / SAMPLES)}"
            path = there / f"{named}.json"
            if not path.exists():
                samples = make_chain_samples(
                    limit, seed=FIRST["test"] + APART * seed, **chain_split_options(SPLIT)
                )
                console.print(f"seed {seed}, asking {model}", style="dim")
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, _asked(folder or str(base), samples, model))
            results["models"][model].append(read_object(path, "remove it, and it is asked again"))
            write_json(output / f"results-{ZOOM}.json", results)
    console.print(table(results))
    console.print(compared(results))
    return results


def _asked(folder: str | Path, samples: Sequence[ChainSample], model: str) -> dict:
    """What a model answers in each of its ways, a digit for each question."""
    loaded = load(folder, dtype=torch.float32)
    prompt = "back" if model == ASKED else "cot"
    found: dict[str, dict[str, str]] = {}
    for way in WAYS[model]:
        told: dict[str, list[int]] = {name: [] for name in FIGURES}
        for start in range(0, len(samples), BATCH):
            part = samples[start : start + BATCH]
            texts, rows = ChainArms(loaded, part, FINDING, AT_BACK, prompt).ask(way)
            for text, row in zip(texts, rows, strict=True):
                told["right"].append(last_box(text) == row.sample.answer)
                told["back"].append("<back>" in text)
                told["looks"].append(min(9, sum(bool(crops) for crops in row.looks)))
                told["first"].append(row.held(0, row.sample.first))
                told["second"].append(row.held(len(row.looks) - 1, row.sample.second))
        found[way] = {name: "".join(str(int(x)) for x in own) for name, own in told.items()}
    return found


def bits(results: Mapping, model: str, way: str, name: str = "right") -> np.ndarray:
    """One figure of every question [seeds, questions] of the seeds that were run."""
    return np.array([[int(x) for x in run[way][name]] for run in results["models"][model]])


def rows(results: Mapping) -> Iterator[tuple[str, ...]]:
    """A row of `COLUMNS` for each model and way that was run."""
    for model, way in ((m, w) for m, ways in WAYS.items() for w in ways if results["models"][m]):
        own = [f"{100 * bits(results, model, way, name).mean():.1f} %"
               for name in ("back", "first", "second")]  # fmt: skip
        looks = f"{bits(results, model, way, 'looks').mean():.2f}"
        right = bits(results, model, way)
        none = way not in (BEFORE, BACK, BY_QUESTION)
        shown = ["-"] * 3 if none else [looks, *own[1:]]
        yield model, TOLD[way], percent(wilson(right.flatten())), str(len(right)), own[0], *shown


def differences(results: Mapping) -> Iterator[tuple[str, ...]]:
    """What a trained model with a closer look at each <back> wins over each of `ALONE`: paired by
    question, with its exact p, of all seeds and of the seed in which it is largest."""
    for trained in (name for name in TRAINED if results["models"][name]):
        joint = bits(results, trained, BACK)
        for name, (model, way) in ALONE.items():
            model = model or trained
            same = (model, way) == (trained, BACK)
            if same or way not in WAYS[model] or not results["models"][model]:
                continue
            # Those that both were asked, should a run have been ended early.
            seeds = list(zip(joint, bits(results, model, way), strict=False))
            by_seed = " ".join(f"{100 * (a.mean() - b.mean()):+.1f}" for a, b in seeds)
            worst = max(mcnemar(a, b) for a, b in seeds)
            own, others = (np.concatenate(x) for x in zip(*seeds, strict=True))
            change, p = percent(paired_difference(own, others), "+"), f"{mcnemar(own, others):.2g}"
            yield trained, name, change, p, by_seed, f"{worst:.2g}"


def table(results: Mapping) -> Table:
    """A line for each model and way."""
    shape = f"{results['questions']} questions of each seed"
    title = f"{results['split']}: {shape}; 95 % intervals"
    return Table(*COLUMNS, rows=rows(results), title=title)


def compared(results: Mapping) -> Table:
    """A line for each of `ALONE`."""
    title = "with a closer look at each <back>, less"
    return Table(*DIFFERENCE, rows=differences(results), title=title)
