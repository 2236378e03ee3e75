"""`vrga train evaluate`: held-out questions, several answers each, before and after training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from vrga import lookback
from vrga.evaluation.items import Item
from vrga.evaluation.store import SAMPLES, fingerprint, write_json
from vrga.evaluation.wording import Table, percent
from vrga.intervals import mean_interval, paired_difference
from vrga.recording.package_versions import versions_and_device
from vrga.training.checkpoints import MODEL
from vrga.training.questions import Questions
from vrga.training.rewards import Said, told
from vrga.training.rollouts import ask, check_sampling, read_rollouts

RESULTS = "results.json"


def evaluate(
    folder: Path,
    data: Path | None = None,
    *,
    samples: int = 4,
    limit: int = 500,
    split: str | None = None,
    temperature: float = 1.0,
    resume: bool = False,
    console: Console,
) -> dict:
    """Ask the base, and the models of sft/ and rl/ where they are, the same questions.

    Args:
        folder: of the training.
        data: held-out questions, a file; None draws some, for a training on drawn ones.
        samples: answers to each question.
        limit: questions.
        split: of drawn questions; None is that of training.

    Returns:
        What results.json holds: figures of each model with 95 % intervals over questions.

    Raises:
        ValueError: no rollouts, the questions of training, or a run there.
    """
    check_sampling(samples, temperature)
    trained, held, _ = read_rollouts(folder / "rollouts")
    asked = _held_out(trained, data, limit, split)
    output = folder / "evaluation"
    known = {
        name: folder / name / MODEL
        for name in ("sft", "rl")
        if (folder / name / MODEL / "config.json").is_file()
    }
    found = {}
    for name, where in {"base": held["model"], **known}.items():
        console.print(name, style="dim")
        there = output / name
        ask(
            asked, None if where is None else str(where), there, samples=samples,
            temperature=temperature, max_new_tokens=held["max_new_tokens"],
            trained=fingerprint(folder / name / SAMPLES) if name in known else None,
            resume=resume and (there / "run.json").exists(), console=console,
        )  # fmt: skip
        found[name] = read_rollouts(there)[2]
    figures = {name: summary(asked, answers) for name, answers in found.items()}
    for name, answers in found.items():
        if name != "base":
            figures[name]["against_base"] = compared(answers, found["base"])
    results = {
        "settings": {**asked.settings(), "samples": samples, "temperature": temperature},
        "versions": versions_and_device(),
        "models": figures,
    }
    write_json(output / RESULTS, results)
    console.print(table(figures, len({one["id"] for one in found["base"]}), samples))
    return results


def summary(questions: Questions, answers: Sequence[dict]) -> dict:
    """Figures of one model: shares over all answers, their intervals over questions."""
    said = [told(one["text"] or "", questions.tag) for one in answers]
    figures = {
        "accuracy": by_question(answers, [one["score"] or 0.0 for one in answers]),
        "form": by_question(answers, [one["reward"] or 0.0 for one in answers]),
    }
    for name in Said.__dataclass_fields__:
        figures[name] = by_question(answers, [float(getattr(one, name)) for one in said])
    intervals = {name: mean_interval(values) for name, values in figures.items()}
    spoken = lookback.stats([one["text"] or "" for one in answers], questions.tag)
    tokens = [one["tokens"] for one in answers if one["tokens"] is not None]
    return {
        **intervals,
        "stats": dataclasses.asdict(spoken),
        "length": float(np.mean(tokens)) if tokens else None,
        "failed": sum(one["error"] is not None for one in answers),
    }


def compared(answers: Sequence[dict], base: Sequence[dict]) -> tuple[float, float, float]:
    """The change of accuracy on the same questions, with its interval."""
    first, second = (by_question(x, [one["score"] or 0.0 for one in x]) for x in (answers, base))
    return paired_difference(first, second)


def table(figures: Mapping[str, dict], questions: int, samples: int) -> Table:
    """What was found, a row for each model."""
    title = f"{questions} held-out questions, {samples} answers each; 95 % intervals"
    made = Table(
        "model", "accuracy", "against base", "looks back", "valid", "empty", "copied", title=title
    )
    for name, one in figures.items():
        change = one.get("against_base")
        made.add_row(
            name, percent(one["accuracy"]), "" if change is None else percent(change, "+"),
            *(f"{100 * one[key][0]:.1f} %" for key in ("trigger", "valid", "empty", "copied")),
        )  # fmt: skip
    return made


def _held_out(trained: Questions, data: Path | None, limit: int, split: str | None) -> Questions:
    """Other questions than those of training, asked in the same way."""
    if data is None and trained.data is not None:
        raise ValueError(
            f"this training asked the questions of {trained.data}: give a file of held-out ones"
        )
    if data is not None and trained.data is None:
        raise ValueError("this training asked drawn questions: leave out the file")
    if data is None:
        return dataclasses.replace(
            trained, part="test", limit=limit, split=split or trained.split, hash=None
        )
    if split is not None:
        raise ValueError("--split is for drawn questions: leave it out with a data file")
    asked = dataclasses.replace(trained, data=str(data.resolve()), hash=None, limit=limit)
    own = {_shown(item) for item in trained.items()}
    same = sum(_shown(item) in own for item in asked.items())
    if same:
        raise ValueError(
            f"{data}: {same} of its questions are those of training: give held-out ones"
        )
    return asked


def _shown(item: Item) -> tuple[str, ...]:
    """What makes a question the same as another, whatever its id and its place in a file."""
    return item.question, *map(str, item.images)


def by_question(answers: Sequence[dict], values: Sequence[float]) -> np.ndarray:
    """Means of values over the answers of each question, float [N] in the order of ids."""
    own: dict[str, list[float]] = {}
    for one, value in zip(answers, values, strict=True):
        own.setdefault(one["id"], []).append(value)
    return np.array([np.mean(own[id]) for id in sorted(own)])
