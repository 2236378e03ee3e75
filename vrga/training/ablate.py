"""`vrga train ablate`: the paper's ablations on the embedded model, over several seeds."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from vrga.evaluation.json_text import read_object
from vrga.evaluation.store import differences, write_json
from vrga.evaluation.wording import Table, percent
from vrga.intervals import mean_interval, paired_difference
from vrga.recording.package_versions import versions_and_device
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


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Args:
        style, reflection: of the rows.
        sft, rl: which stages there are.
        weight: lambda.
    """

    style: str = "semantic"
    reflection: float = 0.5
    sft: bool = True
    rl: bool = True
    weight: float = 0.1

    @property
    def rows(self) -> str:
        """The folder of its rows, shared by arms that differ in RL alone."""
        return f"{self.style}-{self.reflection:g}"

    @property
    def model(self) -> str:
        """The folder of its last stage, within that of its rows."""
        if not self.rl:
            return "sft"
        return f"rl-{self.weight:g}" + ("" if self.sft else "-from-base")


FULL = Arm()
TRAININGS = "trainings.json"  # what decides the trainings of a folder
ABLATIONS: Mapping[str, Mapping[str, Arm]] = {
    "sft": {"SFT and RL": FULL, "without SFT": Arm(sft=False)},
    "rl": {"SFT and RL": FULL, "without RL": Arm(rl=False)},
    "reflection": {f"{100 * r:g} %": Arm(reflection=r) for r in (0.5, 0.0, 0.1, 0.3, 0.7, 0.9)},
    "style": {"semantic": FULL, "solution": Arm(style="solution")},
    "lambda": {f"lambda {w:g}": Arm(weight=w) for w in (0.1, 0.0, 0.5, 2.0)},
    ZOOM: {
        "SFT, every row": Arm(reflection=1.0, rl=False),
        "SFT": Arm(rl=False),
        "SFT and RL": FULL,
        "SFT, every row, and RL": Arm(reflection=1.0),
    },
}


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
        name: of `ABLATIONS`, whose first arm the others are compared with.
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
    _check_same(output, rows, config)
    trained = _trainings(
        name, output, seeds, Questions(split=split, limit=questions), samples, rows, config, model,
        console,
    )  # fmt: skip
    if name == ZOOM:
        return zoomed(output, trained, model, limit=limit, console=console)
    found: dict[str, list[list[dict]]] = {arm: [] for arm in ["base", *ABLATIONS[name]]}
    for seed, arm_name, folder in trained:
        held_out = Questions(split=split, seed=seed, part="test", limit=limit)
        there = output / f"seed-{seed}" / "answers"
        arm = ABLATIONS[name].get(arm_name)  # None of the base
        own = there / ("base" if arm is None else f"{arm.rows}-{arm.model}")
        asked = model if folder is None else str(folder)
        found[arm_name].append(_answers(held_out, asked, own, answers))
    first = next(iter(ABLATIONS[name]))
    results = {
        "ablation": name, "seeds": seeds, "questions": limit, "answers": answers, "split": split,
        "rollouts": {"questions": questions, "samples": samples}, "rows": rows, "against": first,
        "versions": versions_and_device(),
        "arms": {arm: _figures(runs, found[first]) for arm, runs in found.items()},
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
    Questions(split=split, limit=drawn)


def _check_same(output: Path, rows: int, config: str | None) -> None:
    """Keep what decides the trainings of a folder, which are not done again; or compare with it.

    Raises:
        OSError, ValueError: as of `settings.read`; other rows or settings than those there.
    """
    path = output / TRAININGS
    own = {kind.__name__.lower(): dataclasses.asdict(read(kind, config, None)[0])
           for kind in (SFT, RL)}  # fmt: skip
    now = {"rows": rows, **own}
    if not path.exists():
        output.mkdir(parents=True, exist_ok=True)
        write_json(path, now)
        return
    held = read_object(path, "remove it to go on with the options that are given")
    told = differences(held, now)
    if told:
        raise ValueError(
            f"the trainings in {output} are of other --rows or --config ({told}): give the same "
            "ones, or another --output"
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
    arms: dict[str, Arm | None] = {"base": None, **ABLATIONS[name]}
    order = [(seed, arm) for seed in range(seeds) for arm in arms]
    if name == ZOOM:
        order.sort(key=lambda one: list(arms).index(one[1]))
    for seed, arm_name in order:
        base, arm = output / f"seed-{seed}", arms[arm_name]
        if arm is None:
            yield seed, arm_name, None
            continue
        _answers(dataclasses.replace(asked, seed=seed), model, base / "rollouts", samples)
        console.print(f"seed {seed}, {arm_name}", style="bold")
        folder = base / arm.rows
        _train(base, folder, arm, seed, rows, config, console)
        yield seed, arm_name, folder / arm.model / MODEL


def table(results: Mapping) -> Table:
    """A row for each arm."""
    shape = f"{results['seeds']} seeds x {results['questions']} questions x {results['answers']}"
    against = f"against {results['against']}"
    columns = ("arm", "accuracy", against, "looks back", "valid", "empty", "by seed")
    made = Table(*columns, title=f"{results['ablation']}: {shape} answers; 95 % intervals")
    for name, one in results["arms"].items():
        change = "" if name == results["against"] else percent(one["against"], "+")
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
    shutil.copytree(base / "rollouts", folder / "rollouts", dirs_exist_ok=True)
    if not (folder / "data" / SUMMARY).exists():
        make(
            folder, style=arm.style, reflection=arm.reflection, size=rows, seed=seed,
            resume=(folder / "data" / "run.json").exists(), console=console,
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


def _figures(runs: Sequence[Sequence[dict]], first: Sequence[Sequence[dict]]) -> dict:
    """Figures of one arm, its questions of all seeds pooled."""
    right, against = _pooled(runs), _pooled(first)
    said = [told(one["text"] or "") for run in runs for one in run]
    shares = {key: float(np.mean([getattr(one, key) for one in said]))
              for key in ("trigger", "valid", "empty", "copied")}  # fmt: skip
    return {
        "accuracy": mean_interval(np.concatenate(right)),
        "against": paired_difference(np.concatenate(right), np.concatenate(against)),
        "by_seed": [float(own.mean()) for own in right],
        **shares,
    }


def _pooled(runs: Sequence[Sequence[dict]]) -> list[np.ndarray]:
    return [by_question(run, [one["score"] or 0.0 for one in run]) for run in runs]


def _answers(asked: Questions, model: str | None, there: Path, samples: int) -> list[dict]:
    """Answers of a model, those that are there already among them."""
    quiet = Console(quiet=True)
    ask(asked, model, there, samples=samples, resume=_begun(there), console=quiet)
    return read_rollouts(there)[2]


def _trained(folder: Path) -> bool:
    return (folder / MODEL / "config.json").exists()


def _begun(folder: Path) -> bool:
    return (folder / "run.json").exists()
