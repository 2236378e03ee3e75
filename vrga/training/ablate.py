"""`vrga train ablate`: the paper's ablations and our own, on a small model, over several seeds."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from vrga.evaluation.json_text import read_object
from vrga.evaluation.store import SAMPLES, differences, fingerprint, write_json
from vrga.evaluation.wording import Table, percent
from vrga.intervals import mean_interval, paired_difference
from vrga.recording.package_versions import versions_and_device
from vrga.training.arms import ABLATIONS, Arm, arms_of, compared_with
from vrga.training.checkpoints import MODEL
from vrga.training.data import SUMMARY, make
from vrga.training.evaluate import by_question
from vrga.training.questions import SEEDS, Questions
from vrga.training.rewards import told
from vrga.training.rl import rl
from vrga.training.rollouts import ask, check_sampling, read_rollouts
from vrga.training.settings import RL, SFT, read
from vrga.training.sft import sft
from vrga.training.zoomed import ZOOM, zoomed

TRAININGS = "trainings.json"  # what decides the trainings of a folder


def ablate(
    name: str,
    output: Path,
    *,
    seeds: int = 4,
    questions: int = 300,
    samples: int = 8,
    rows: int = 80,
    limit: int = 500,
    answers: int = 4,
    split: str = "similar",
    config: str | None = None,
    model: str | None = None,
    console: Console,
) -> dict:
    """Train every arm of an ablation with every seed, and ask all the same held-out questions.

    What is in `output` already is not done again, also where another ablation did it: the arms
    share rollouts, rows and SFT.

    Args:
        name: of `ABLATIONS`; arms are compared with the first trained one.
        questions, samples: of rollouts; rows: of SFT in each arm.
        limit, answers: held-out questions, and answers to each.
        config: settings, see `settings.read`.
        model: that training begins with; None is the embedded one.

    Returns:
        What results-NAME.json holds.

    Raises:
        ValueError: no such ablation; as of the commands that it runs.
    """
    _check(name, seeds, samples, answers, split, max(questions, limit))
    _check_same(output, rows, config, model)
    trained = _trainings(
        name, output, seeds, Questions(split=split, limit=questions), samples, rows, config, model,
        console,
    )  # fmt: skip
    if name == ZOOM:
        return zoomed(output, trained, model, limit=limit, console=console)
    arms = arms_of(name, split)
    found: dict[str, list[list[dict]]] = {arm: [] for arm in arms}
    for seed, arm_name, folder in trained:
        arm = arms[arm_name]
        held_out = Questions(
            split=arm.asked or split, seed=seed, part="test", limit=limit, tag=arm.tag
        )
        own = output / f"seed-{seed}" / "answers" / arm.answers
        steps = None if folder is None else fingerprint(folder.parent / SAMPLES)
        asked = model if folder is None else str(folder)
        found[arm_name].append(_answers(held_out, asked, own, answers, steps))
    results = {
        "ablation": name, "seeds": seeds, "questions": limit, "answers": answers, "split": split,
        "rollouts": {"questions": questions, "samples": samples}, "rows": rows,
        "versions": versions_and_device(),
        "arms": {
            arm_name: _figures(found, arm_name, compared_with(arms, arm_name), arms[arm_name].tag)
            for arm_name in found
        },
    }  # fmt: skip
    write_json(output / f"results-{name}.json", results)
    console.print(table(results))
    return results


def _check(name: str, seeds: int, samples: int, answers: int, split: str, drawn: int) -> None:
    """Refuse, before anything is trained, what would be refused after it."""
    if name not in ABLATIONS:
        raise ValueError(f"ablation {name!r}: known are {', '.join(ABLATIONS)}")
    if not 1 <= seeds <= SEEDS:
        raise ValueError(f"--seeds {seeds}: at least 1, at most {SEEDS}")
    check_sampling(samples, 1.0)
    if answers < 1:
        raise ValueError(f"--answers {answers}: at least 1")
    for arm in arms_of(name, split).values():
        Questions(split=arm.split or split, limit=drawn)


def _check_same(output: Path, rows: int, config: str | None, model: str | None) -> None:
    """Keep what decides the trainings of a folder, which are not done again; or compare with it.

    Raises:
        OSError, ValueError: as of `settings.read`; other rows, settings or model than those there.
    """
    path = output / TRAININGS
    own = {kind.__name__.lower(): dataclasses.asdict(read(kind, config, None)[0])
           for kind in (SFT, RL)}  # fmt: skip
    now = {"rows": rows, "model": model, **own}
    if not path.exists():
        output.mkdir(parents=True, exist_ok=True)
        write_json(path, now)
        return
    held = read_object(path, "remove it to go on with the options that are given")
    told = differences(held, now)
    if told:
        raise ValueError(
            f"the trainings in {output} are of other --rows, --config or --model ({told}): give "
            "the same ones, or another --output"
        )


def _trainings(
    name: str,
    output: Path,
    seeds: int,
    asked: Questions,
    samples: int,
    rows: int,
    config: str | None,
    model: str | None,
    console: Console,
) -> Iterator[tuple[int, str, Path | None]]:
    """Seed, arm and folder of every model of an ablation as it is trained; of the base without.

    Seed by seed; of `ZOOM`, whose results are written as they come, arm by arm.
    """
    arms = arms_of(name, asked.split)
    order = [(seed, arm) for seed in range(seeds) for arm in arms]
    if name == ZOOM:
        order.sort(key=lambda one: list(arms).index(one[1]))
    for seed, arm_name in order:
        base, arm = output / f"seed-{seed}", arms[arm_name]
        if not arm.model:
            yield seed, arm_name, None
            continue
        own = replace(asked, seed=seed, split=arm.split or asked.split, tag=arm.tag)
        _answers(own, model, base / arm.rollouts, samples)
        console.print(f"seed {seed}, {arm_name}", style="bold")
        folder = base / arm.rows
        _train(base, folder, arm, seed, rows, config, console)
        yield seed, arm_name, folder / arm.model / MODEL


def table(results: Mapping) -> Table:
    """A row for each arm."""
    shape = f"{results['seeds']} seeds x {results['questions']} questions x {results['answers']}"
    columns = ("arm", "accuracy", "against the first", "looks back", "valid", "empty", "by seed")
    made = Table(*columns, title=f"{results['ablation']}: {shape} answers; 95 % intervals")
    for name, one in results["arms"].items():
        change = "" if name == one["compared_with"] else percent(one["against"], "+")
        made.add_row(
            name, percent(one["accuracy"]), change,
            *(f"{100 * one[key]:.1f} %" for key in ("trigger", "valid", "empty")),
            " ".join(f"{100 * share:.1f}" for share in one["by_seed"]),
        )  # fmt: skip
    return made


def _train(
    base: Path, folder: Path, arm: Arm, seed: int, rows: int, config: str | None, console: Console
) -> None:
    """Whatever of an arm is not there yet."""
    shutil.copytree(base / arm.rollouts, folder / "rollouts", dirs_exist_ok=True)
    if not (folder / "data" / SUMMARY).exists():
        make(
            folder, style=arm.style, reflection=arm.reflection, teacher=arm.teacher, size=rows,
            seed=seed, resume=(folder / "data" / "run.json").exists(), console=console,
        )  # fmt: skip
    quiet = Console(quiet=True)
    if arm.sft and not _trained(folder / "sft"):
        cold, _ = read(SFT, config, None, seed=seed)
        sft(folder, cold, resume=_begun(folder / "sft"), console=quiet)
    target = folder / arm.model
    if arm.rl and not _trained(target):
        options, _ = read(RL, config, None, seed=seed, weight=arm.weight)
        rl(
            folder, options, from_base=not arm.sft, output=target, resume=_begun(target),
            console=quiet,
        )  # fmt: skip


def _figures(found: Mapping[str, Sequence[list[dict]]], arm: str, against: str, tag: str) -> dict:
    """Figures of one arm, its questions of all seeds pooled, and less those of another."""
    right, others = _pooled(found[arm]), _pooled(found[against])
    said = [told(one["text"] or "", tag) for run in found[arm] for one in run]
    shares = {key: float(np.mean([getattr(one, key) for one in said]))
              for key in ("trigger", "valid", "empty", "copied")}  # fmt: skip
    return {
        "accuracy": mean_interval(np.concatenate(right)),
        "compared_with": against,
        "against": paired_difference(np.concatenate(right), np.concatenate(others)),
        "by_seed": [float(own.mean()) for own in right],
        **shares,
    }


def _pooled(runs: Sequence[Sequence[dict]]) -> list[np.ndarray]:
    return [by_question(run, [one["score"] or 0.0 for one in run]) for run in runs]


def _answers(
    asked: Questions, model: str | None, there: Path, samples: int, trained: str | None = None
) -> list[dict]:
    """Answers of a model, those that are there already among them; `trained` as of `ask`."""
    ask(
        asked, model, there, samples=samples, trained=trained, resume=_begun(there),
        console=Console(quiet=True),
    )  # fmt: skip
    return read_rollouts(there)[2]


def _trained(folder: Path) -> bool:
    return (folder / MODEL / "config.json").exists()


def _begun(folder: Path) -> bool:
    return (folder / "run.json").exists()
