"""`vrga analyze recovery`: what steering wins back, beside what it could win.

Every configuration is run twice: steering to the region it finds, and to the true one (the box).
The difference between the two is what localisation loses; the true region's own gain over the
unsteered model is the upper bound of what looking there can do.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from rich.table import Table

from vrga.analysis.figures import recovery_figure
from vrga.analysis.study import Study, failures, verdict
from vrga.config import VRGAConfig
from vrga.evaluation.arms import Arm, accuracy, compared, look, right
from vrga.evaluation.wording import percent, share
from vrga.intervals import paired_difference, wilson

DRAWN = 300
OFF = "off"
_TIGHT = {"region_min": 1, "dilation": 0, "sink_fraction": 0.0}  # for images of few tokens
CONFIGS: dict[str, VRGAConfig] = {
    "default": VRGAConfig(),
    "paper": VRGAConfig.paper(),
    "gain 3": VRGAConfig(gain=3.0),
    "tight": VRGAConfig(**_TIGHT),
    "tight, gain 3": VRGAConfig(gain=3.0, **_TIGHT),
    "tight, gain 3, R > 1.3": VRGAConfig(gain=3.0, gate_focus=1.3, **_TIGHT),
    "tight, gain 3, low EFR": VRGAConfig(
        gain=3.0, gate="static", efr_percentile=15.0, focus_percentile=70.0, **_TIGHT
    ),
}


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
    arms += [Arm(_name(n, t), c, prompt, given=t) for n, c in configs.items() for t in (0, 1)]
    settings = study.settings("recovery", items, prompt=prompt, configs=list(configs))
    samples = study.run(study.load(), items, arms, settings)
    found = figures({arm.steering: samples[arm.name] for arm in arms}, list(configs))
    study.console.print(table(found, prompt, len(items)))
    return study.finish(settings, found, recovery_figure(found["configs"]))


def _name(config: str, true: bool) -> str:
    return f"{config} (true region)" if true else config


def figures(samples: Mapping[str, list[dict]], configs: list[str]) -> dict:
    """Accuracy and its differences, paired by question.

    Args:
        samples: of the arms "off", each config, and each config with the true region.
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
            "hit": wilson(_known(look(own, "hit"))),
            "coverage": float(np.nanmean(look(own, "coverage"))),
            "verdict": verdict(change["accuracy"]),
        }
    return {"failed": failures(samples), "off": accuracy(base), "configs": told}


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def table(found: dict, prompt: str, questions: int) -> Table:
    """One line per config; differences are from the unsteered model."""
    made = Table(
        title=f"{prompt}, {questions} questions: {percent(found['off'])} without VRGA; "
        "differences from that, brackets: 95 % intervals"
    )
    columns = ("config", "steered", "to the true region", "true cell in T", "T covers", "RRAR",
               "recovers")  # fmt: skip
    for column in columns:
        made.add_column(column)
    for name, one in found["configs"].items():
        made.add_row(
            name,
            percent(one["change"], "+"),
            percent(one["bound"], "+"),
            percent(one["hit"]),
            f"{100 * one['coverage']:.0f} %",
            share(one["rrar"], "+"),
            one["verdict"],
        )
    return made
