"""`vrga analyze recovery`: what steering wins back, beside what it could win.

Every configuration is run twice: steering to the region it finds, and to the true one (the box).
The difference between the two is what localisation loses; the true region's own gain over the
unsteered model is the upper bound of what looking there can do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vrga.analysis.figures import recovery_figure
from vrga.analysis.study import Study, failures, verdict
from vrga.config import VRGAConfig
from vrga.demo.data import asked_letter, parse_answer, spoken_answer
from vrga.evaluation.arms import Arm
from vrga.evaluation.samples import accuracy, compared, look, right
from vrga.evaluation.wording import Table, percent
from vrga.hf.chosen_config import chosen_for
from vrga.intervals import paired_difference, wilson

DRAWN = 200
OFF = "off"
WRONG = "wrong color, letter, none"
# Of the published method the region alone made narrow: tokens that stand out by two standard
# deviations, at least one.
_TIGHT = {"region_std": 2.0, "region_min": 1, "dilation": 0, "sink_fraction": 0.0}
CONFIGS: dict[str, VRGAConfig] = {
    "published": VRGAConfig.published(),
    "paper": VRGAConfig.paper(),
    "tight": VRGAConfig.published(**_TIGHT),
    "tight, gain 3": VRGAConfig.published(gain=3.0, **_TIGHT),
    "sparing": VRGAConfig.sparing(),
    "sparing, gain 6": VRGAConfig.sparing(gain=6.0),
}
# Names in stored runs, which are of the embedded model.
FORMER = {"default": "sparing", "gain 6": "sparing, gain 6"}


def named(names: Sequence[str] | None, model: str | None) -> dict[str, VRGAConfig]:
    """Configs by their names; None is all of `CONFIGS`.

    Args:
        names: of `CONFIGS`, or "default": what the checkpoint brings, else the paper's.
        model: checkpoint folder or hub id; None is the embedded model.

    Raises:
        ValueError: another name.
    """
    found = {}
    for name in names or CONFIGS:
        if name not in (*CONFIGS, "default"):
            raise ValueError(f"--config {name}: known are {'; '.join(CONFIGS)}; default")
        found[name] = CONFIGS[name] if name in CONFIGS else chosen_for(model).config
    return found


def analyze(
    study: Study, *, prompt: str = "cot", configs: Mapping[str, VRGAConfig] = CONFIGS
) -> dict:
    """Run every config with the region found and with the true one; print, write, draw.

    Args:
        configs: name -> config; `vrga tune` chooses among others, on other questions.

    Returns:
        What results.json holds.

    Raises:
        ValueError: a question without a box.
    """
    items = study.items(DRAWN, boxes=True)
    arms = [Arm(OFF, None, prompt)]
    for name, config in configs.items():
        arms += [Arm(_name(name, true), config, prompt, given=true) for true in (False, True)]
    settings = study.settings("recovery", items, prompt=prompt, configs=list(configs))
    samples = study.run(items, arms, settings)
    letters = None
    if study.data is None:
        letters = {item.id: asked_letter(item.question) for item in items}
    found = figures({arm.steering: samples[arm.name] for arm in arms}, list(configs), letters)
    told = [table(found, prompt, len(items))]
    return study.finish(settings, found, told, recovery_figure(found["configs"]))


def _name(config: str, true: bool) -> str:
    return f"{config} (true region)" if true else config


def figures(
    samples: Mapping[str, list[dict]],
    configs: Sequence[str],
    letters: Mapping[str, str | None] | None = None,
) -> dict:
    """Accuracy and its differences, paired by question.

    Args:
        samples: of the arms "off", each config, and each config with the true region.
        letters: id -> the letter asked for, of drawn questions; None leaves the outcomes out.
    """
    base, told = samples[OFF], {}
    for name in configs:
        own, true = samples[name], samples[_name(name, True)]
        change = compared(own, base)
        told[name] = {
            "accuracy": accuracy(own),
            "change": change["accuracy"],
            "p": change["p"],
            "rrar": change["rrar"],
            "bound": paired_difference(right(true), right(base)),
            "lost_by_localisation": paired_difference(right(true), right(own)),
            "flips": _flips(own, base),
            "flips_of_bound": _flips(true, base),
            "hit": wilson(look(own, "hit")),
            "coverage": float(np.nanmean(look(own, "coverage"))),
            "verdict": verdict(change["accuracy"]),
        }
        if letters is not None:
            told[name]["outcomes"] = outcomes(own, letters)
            told[name]["outcomes_of_bound"] = outcomes(true, letters)
    found = {"failed": failures(samples), "off": accuracy(base), "configs": told}
    if letters is not None:
        found["outcomes"] = outcomes(base, letters)
    return found


def outcomes(samples: Sequence[dict], letters: Mapping[str, str | None]) -> dict:
    """What answers to drawn questions are, the letter scored apart from its colour.

    Args:
        letters: id -> the letter asked for.

    Returns:
        "letter": the asked letter is named with a colour; "color_given_letter": of those, the
        answer is right. "wrong": shares of all answers, exclusive: the letter is right ("color"),
        it is another one ("letter"), or there is no letter or no colour in a box ("none"). All
        with intervals.
    """
    texts = [one["text"] or "" for one in samples]
    spoken = [spoken_answer(text) for text in texts]
    named = np.array([
        said is not None and said[0] == letters[one["id"]]
        for said, one in zip(spoken, samples, strict=True)
    ])  # fmt: skip
    pairs = zip(spoken, texts, strict=True)
    broken = np.array([said is None or parse_answer(text) is None for said, text in pairs])
    good = right(samples) > 0
    wrong = {"color": ~broken & named, "letter": ~broken & ~named, "none": broken}
    return {
        "letter": wilson(named),
        "color_given_letter": wilson(good[named]),
        "wrong": {name: wilson(those & ~good) for name, those in wrong.items()},
    }


def _flips(samples: list[dict], base: list[dict]) -> dict[str, int]:
    """Answers that became right and wrong, and all: what pooling several runs needs."""
    change = right(samples) - right(base)
    return {"gained": int((change > 0).sum()), "lost": int((change < 0).sum()), "of": len(change)}


def table(found: dict, prompt: str, questions: int) -> Table:
    """One line per config; differences are from the unsteered model."""
    made = Table(
        "config", "steered", "to the true region", "true cell in T", "T covers",
        *([WRONG] if "outcomes" in found else []), "recovers",
        title=f"{prompt}, {questions} questions: {percent(found['off'])} without VRGA; "
        "differences from that, brackets: 95 % intervals",
    )  # fmt: skip
    for name, one in found["configs"].items():
        made.add_row(
            name,
            percent(one["change"], "+"),
            percent(one["bound"], "+"),
            percent(one["hit"]),
            f"{100 * one['coverage']:.0f} %",
            *([wrong_of(one["outcomes"])] if "outcomes" in found else []),
            one["verdict"],
        )
    if "outcomes" in found:
        made.caption = f"without VRGA: {WRONG}: {wrong_of(found['outcomes'])}"
    return made


def wrong_of(outcome: Mapping) -> str:
    """The shares of `WRONG`: "28.0, 0.5, 0.0 %"."""
    return ", ".join(f"{100 * part[0]:.1f}" for part in outcome["wrong"].values()) + " %"
