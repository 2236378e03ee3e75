"""`vrga analyze closer`: what a closer look wins, and what it would win at the true place.

Every question is asked once, about the picture as the processor shrinks it, and again with crops
of the original: at the place that was found, at the true box, and at random. The fair baseline is
one larger picture of as many pixels as picture and crops have together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from vrga.analysis.figures import bars_figure
from vrga.analysis.study import APART, FIRST, Study, paired_table, verdict
from vrga.closer.zoom import Zoom
from vrga.config import VRGAConfig
from vrga.demo.data import VALIDATION_SEEDS
from vrga.demo.fine.arms import ANEW, FOUND, LARGER, ONCE, PLACE, TOLD, TRUE, Asked, run_fine_arms
from vrga.demo.fine.data import FineSample, fine_split_options, is_right, make_fine_samples
from vrga.demo.fine.settings import CLOSER, FINDING
from vrga.demo.fine.timing import seconds_of_ways
from vrga.evaluation.json_text import read_object
from vrga.evaluation.store import write_json
from vrga.evaluation.wording import Table, percent, say_config
from vrga.hf.checkpoints import load
from vrga.intervals import paired_difference, wilson

DRAWN = 250
COLUMNS = ("", "right", "less asked once", "visual tokens")


def analyze(
    study: Study,
    *,
    models: Sequence[str] = ("fine",),
    arms: Sequence[str] = tuple(TOLD),
    config: VRGAConfig = FINDING,
    zoom: Zoom = CLOSER,
    timed: int = 0,
    validation: bool = False,
) -> dict:
    """Ask every question in every arm; print, write, draw.

    Args:
        study: its split is one of `FINE_SPLITS`; its limit counts questions of each model.
        models: checkpoints, each asked questions of its own.
        arms: names of `TOLD`; "once" and "found" are always among them.
        config: how the place is found, and steered to in the arms that steer.
        zoom: how it is cropped.
        timed: questions of each model that are also asked one by one, to take the time.
        validation: choose numbers on these questions; those that are reported are others.

    Returns:
        What results.json holds.

    Raises:
        ValueError: an unknown arm or split.
    """
    for arm in arms:
        if arm not in TOLD:
            raise ValueError(f"arm {arm!r}: known are {'; '.join(TOLD)}")
    chosen = [arm for arm in TOLD if arm in {*arms, ONCE, FOUND}]
    settings = study.settings(
        "closer",
        range(study.limit or DRAWN),
        arms=chosen,
        validation=validation,
        zoom=zoom.settings(),
        finding=asdict(config),
    )
    say_config(study.console, config.name)
    own: dict[str, dict] = {}
    for number, name in enumerate(models):
        path = study.output / "models" / f"{number}.json"
        known = _known(path, settings | {"model": name}) if study.resume else None
        if known is None:
            samples = _samples(study, number, validation)
            loaded = load(name, dtype=torch.float32)
            known = _one_model(study, loaded, samples, chosen, config, zoom, timed)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"settings": settings | {"model": name}, "found": known})
        own[name] = known
    settings["models"] = list(models)
    found = {"models": own, "pooled": pooled(list(own.values()), chosen)}
    told = [table(found["pooled"], study.split)]
    return study.finish(settings, found, told, closer_figure(found["pooled"], study.split))


def _known(path: Path, settings: dict) -> dict | None:
    """What an earlier run found of a model; None where there is none.

    Raises:
        ValueError: it was of other settings.
    """
    if not path.exists():
        return None
    told = read_object(path, "give another --output, or leave out --resume")
    for key, value in json.loads(json.dumps(settings)).items():
        if told["settings"].get(key) != value:
            raise ValueError(
                f"{path} is of a run with {key}={told['settings'].get(key)!r}, not {value!r}: give "
                "another --output, or leave out --resume"
            )
    return told["found"]


def _samples(study: Study, number: int, validation: bool) -> list[FineSample]:
    """Each model's own questions."""
    first = VALIDATION_SEEDS.start if validation else FIRST
    seed = first + APART * (study.seed * 10 + number)
    options = fine_split_options(study.split)
    return make_fine_samples(study.limit or DRAWN, seed=seed, **options)


def _one_model(study, loaded, samples, arms, config, zoom, timed) -> dict:
    """Right answers of each arm, and how the place was found."""
    texts: dict[str, list[str]] = {arm: [] for arm in arms}
    tokens: dict[str, list[int]] = {arm: [] for arm in arms}
    asked: list[Asked] = []
    for start in range(0, len(samples), study.batch):
        part = samples[start : start + study.batch]
        told, answers = run_fine_arms(loaded, part, arms, config, zoom, start)
        asked += told
        for arm in arms:
            texts[arm] += answers[arm].texts
            tokens[arm] += answers[arm].tokens
        study.console.print(f"{start + len(part)} of {len(samples)} questions", style="dim")
    right = {
        arm: [is_right(text, one) for text, one in zip(texts[arm], samples, strict=True)]
        for arm in arms
    }
    return {
        "right": {arm: "".join(str(int(x)) for x in own) for arm, own in right.items()},
        "two": "".join(str(len(one.asked) - 1) for one in samples),
        "peak": "".join(str(int(one.peak)) for one in asked),
        "held": "".join(str(int(one.held)) for one in asked),
        "zooms": "".join(str(int(one.zooms)) for one in asked),
        "crops": float(np.mean([len(one.crops) for one in asked])),
        "visual_tokens": {arm: float(np.mean(own)) for arm, own in tokens.items()},
        "seconds": seconds_of_ways(loaded, samples[:timed], config, zoom) if timed else None,
    }


def _bits(own: Sequence[Mapping], name: str, arm: str | None = None) -> np.ndarray:
    texts = [one[name] if arm is None else one[name][arm] for one in own]
    return np.array([int(x) for x in "".join(texts)])


def pooled(own: Sequence[Mapping], arms: Sequence[str]) -> dict:
    """Figures over all models' questions, paired by question.

    Args:
        own: what `_one_model` gives, of each model.
    """
    right = {arm: _bits(own, "right", arm) for arm in arms}
    two = _bits(own, "two") > 0
    found: dict[str, Any] = {
        "questions": len(two),
        "accuracy": {arm: wilson(hits) for arm, hits in right.items()},
        "less_once": {arm: paired_difference(hits, right[ONCE]) for arm, hits in right.items()},
        "peak": wilson(_bits(own, "peak")),
        "held": wilson(_bits(own, "held")),
        "zooms": wilson(_bits(own, "zooms")),
        "visual_tokens": {
            arm: float(np.mean([one["visual_tokens"][arm] for one in own])) for arm in arms
        },
    }
    differences = {
        "less_larger": (FOUND, LARGER),
        "less_true": (FOUND, TRUE),
        "place": (PLACE, FOUND),
        "anew": (ANEW, FOUND),
    }
    for name, (arm, base) in differences.items():
        if arm in right and base in right:
            found[name] = paired_difference(right[arm], right[base])
    if TRUE in right and right[TRUE].any():
        found["of_true"] = float(right[FOUND].mean() / right[TRUE].mean())
        lost = (right[TRUE] > 0) & (right[FOUND] == 0)
        outside = int((lost & (_bits(own, "held") == 0)).sum())
        found["lost"] = {"questions": int(lost.sum()), "outside_the_crops": outside}
    if two.any():
        found["two_cards"] = {
            "accuracy": {arm: wilson(hits[two]) for arm, hits in right.items()},
            "held": wilson(_bits(own, "held")[two]),
        }
    times = [one["seconds"] for one in own if one["seconds"]]
    if times:
        found |= _times(times)
    found["verdict"] = verdict(found["less_once"][FOUND])
    return found


def _times(own: Sequence[Mapping]) -> dict:
    """Medians over questions of what each way takes, by itself and as a multiple of asking once:
    the unpatched model ("plain") and the patched one ("once"), in wall and in CPU time.

    Args:
        own: what `seconds_of_ways` gives, of each model.
    """
    whole = {
        clock: {name: np.array(sum((one[clock][name] for one in own), [])) for name in ways}
        for clock, ways in own[0].items()
    }
    return {
        "questions_timed": len(whole["wall"]["plain"]),
        "seconds": {
            clock: {name: float(np.median(taken)) for name, taken in ways.items()}
            for clock, ways in whole.items()
        },
        **{
            f"times_{base}": {
                clock: {name: float(np.median(taken / ways[base])) for name, taken in ways.items()}
                for clock, ways in whole.items()
            }
            for base in ("plain", "once")
        },
    }


def rows(found: Mapping) -> Iterator[tuple[str, ...]]:
    """A row of `COLUMNS` for each arm."""
    for arm in (arm for arm in TOLD if arm in found["accuracy"]):
        hits = found["accuracy"][arm]
        change = "" if arm == ONCE else percent(found["less_once"][arm], "+")
        yield TOLD[arm], percent(hits), change, f"{found['visual_tokens'][arm]:.0f}"


def table(found: Mapping, split: str) -> Table:
    """One line per arm."""
    made = paired_table(split, found["questions"], COLUMNS, rows(found))
    told = [
        f"map's peak on an asked card: {percent(found['peak'])}",
        f"all asked letters in the crops: {percent(found['held'])}",
        f"looked closer: {percent(found['zooms'])}",
    ]
    if "of_true" in found:
        lost = found["lost"]
        told.append(
            f"{100 * found['of_true']:.1f} % of what the true box gives; {lost['questions']} "
            f"questions lost, {lost['outside_the_crops']} with a letter outside the crops"
        )
    if "less_larger" in found:
        told.append(f"against one larger picture: {percent(found['less_larger'], '+')}")
    if "times_once" in found:
        plain, once = (found[f"times_{base}"]["wall"]["closer"] for base in ("plain", "once"))
        told.append(
            f"{plain:.2f} times the time of asking the unpatched model once, {once:.2f} times of "
            f"the patched one (medians of {found['questions_timed']} questions)"
        )
    made.caption = "\n".join(told)
    return made


def closer_figure(found: Mapping, split: str) -> Figure:
    """Right answers of every arm as bars with their intervals."""
    bars = {TOLD[name]: values for name, values in found["accuracy"].items()}
    told = f"right, % of {found['questions']} questions"
    return bars_figure(bars, [TOLD[FOUND]], split, told)
