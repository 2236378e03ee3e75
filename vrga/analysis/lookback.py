"""`vrga lookback`: does asking for <back> help without training, and what does VRGA add?

The first experiment of the Look-Back paper (arXiv 2507.03019): the prompts direct, cot and back,
each without VRGA, with VRGA at every step, inside <back> spans alone, and with the region found
anew at each <back>. And, asked for: with VRGA where the model is uncertain alone, and with the
region found anew there; with a closer look before the answer, and with one at each <back>.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vrga import lookback
from vrga.analysis.study import APART, Study, failures
from vrga.beforehand import check_known
from vrga.closer.zoom import Zoom
from vrga.config import VRGAConfig
from vrga.demo.data import TEST_SEEDS
from vrga.evaluation.arms import Arm
from vrga.evaluation.items import PROMPTS
from vrga.evaluation.samples import accuracy, compared, mean_look, right
from vrga.evaluation.wording import Table, percent, share

DRAWN = 500
FIRST = TEST_SEEDS.start + 10_000  # seed of the first drawn question
STEERINGS: dict[str, dict[str, Any] | None] = {
    "off": None,  # the unpatched model
    "always": {"when": "always"},
    "back": {"when": "back"},
    "back+relocate": {"when": "back", "relocate": "back"},
    "uncertain": {"when": "uncertain"},
    "uncertain+relocate": {"when": "uncertain", "relocate": "uncertain"},
    "zoom": {"when": "always"},
    "back+zoom": {"when": "back", "relocate": "back"},
    "back+zoom-by-question": {"when": "back", "relocate": "back"},
}
# What the arms that look closer change of `Zoom`.
CLOSER: dict[str, dict[str, Any]] = {
    "zoom": {"when": "question", "seek": Zoom.seek, "looks": Zoom.looks},
    "back+zoom": {"when": "back", "seek": "back"},
    "back+zoom-by-question": {"when": "back", "seek": "question"},
}


def arms(
    config: VRGAConfig,
    prompts: Sequence[str],
    steerings: Sequence[str],
    uncertainty: float | None = None,
    zoom: Zoom | None = None,
) -> list[Arm]:
    """The arms of the experiment; `config` gives gain, gate and thresholds.

    Args:
        uncertainty: nats from which a distribution is uncertain; None is the config's own.
        zoom: how the arms that look closer do; None is `Zoom()`.

    Raises:
        ValueError: a prompt or steering that is not known, or none.
    """
    if config.method != "vrga":
        raise ValueError(
            f"--preset of method {config.method!r} knows nothing of <back>: take "
            "paper, published or sparing"
        )
    check_known("--prompts", prompts, PROMPTS)
    check_known("--steering", steerings, tuple(STEERINGS))
    nats = config.uncertainty if uncertainty is None else uncertainty
    plain: dict[str, Any] = {
        "when": "always",
        "relocate": "question",
        "uncertainty": VRGAConfig.uncertainty,
    }
    configs: dict[str, VRGAConfig | None] = {}
    for name, fields in STEERINGS.items():
        own = plain | (fields or {})
        if "uncertain" in own.values():
            own["uncertainty"] = nats
        configs[name] = None if fields is None else dataclasses.replace(config, **own)
    zooms = {
        name: dataclasses.replace(zoom or Zoom(), **CLOSER[name])
        for name in steerings
        if name in CLOSER
    }
    return [
        Arm(name, configs[name], prompt, zoom=zooms.get(name))
        for prompt in prompts
        for name in steerings
    ]


def experiment(
    study: Study,
    *,
    config: VRGAConfig,
    prompts: Sequence[str],
    steerings: Sequence[str],
    uncertainty: float | None = None,
    zoom: Zoom | None = None,
    measure: bool = True,
) -> dict:
    """Ask in every arm; print two tables, write samples.jsonl, results.json and table.md.

    Args:
        config, prompts, steerings, uncertainty, zoom: as of `arms`.
        measure: record where the heads look, which takes as long as answering.

    Returns:
        What results.json holds.
    """
    chosen = arms(config, prompts, steerings, uncertainty, zoom)
    items = study.questions(DRAWN, FIRST + APART * study.seed)
    settings = {
        "command": "lookback",
        **study.common(len(items)),
        "arms": {arm.name: arm.config and dataclasses.asdict(arm.config) for arm in chosen},
    }
    # Runs of before these options hold none of them, and go on where they are as they were.
    zooms = {arm.name: arm.zoom.settings() for arm in chosen if arm.zoom is not None}
    later = {"seed": (study.seed, 0), "measure": (measure, True), "zooms": (zooms, {})}
    settings |= {name: own for name, (own, former) in later.items() if own != former}
    store = study.store(settings)
    samples = study.ask(study.load(), items, chosen, store, measure=measure)
    told = {name: _summary(samples, name) for name in samples}
    found = {"failed": failures(samples), "arms": told}
    return study.finish(settings, found, _tables(told, len(items)))


def _summary(found: dict[str, list[dict]], name: str) -> dict:
    samples, texts = found[name], [one["text"] or "" for one in found[name]]
    prompt, _ = name.split("/")
    base, always = (found.get(f"{prompt}/{other}") for other in ("off", "always"))
    return {
        "accuracy": accuracy(samples),
        "rrar": mean_look(samples, "rrar"),
        "image_inside": mean_look(samples, "image_inside"),
        "image_outside": mean_look(samples, "image_outside"),
        "stats": dataclasses.asdict(lookback.stats(texts)),
        "reward": float(np.mean([lookback.reward(text) for text in texts])),
        "tokens": float(np.mean([one["tokens"] for one in samples])),
        "failed": failures({name: samples}),
        "right": int(np.nansum(right(samples))),
        "each": "".join("-" if np.isnan(x) else str(int(x)) for x in right(samples)),
        "closer": _closer(samples),
        "against_off": None if base is None or base is samples else compared(samples, base),
        "against_always": None if always in (None, samples, base) else compared(samples, always),
        "steered": _steered(samples),
    }


def _closer(samples: Sequence[dict]) -> dict | None:
    """Closer looks of an answer in the mean, and visual tokens; None where none could be taken."""
    told = [one["zoom"] for one in samples if one.get("zoom")]
    if not told:
        return None
    asked = [one for one in told if "cost" in one]  # of a question without a picture there is none
    taken = [sum(look["decision"]["zooms"] for look in one["looks"] or [one]) for one in asked]
    tokens = [one["cost"]["seen"] + one["cost"]["crops"] for one in asked]
    return {
        "looks": sum(taken) / len(told),
        "looked": sum(count > 0 for count in taken) / len(told),
        "visual_tokens": sum(tokens) / len(told),
    }


def _steered(samples: Sequence[dict]) -> float | None:
    """The share of steps that were steered; None where the model was not patched."""
    told = [one["steps"] for one in samples if one.get("steps")]
    passed = sum(one["steered"] + sum(one["left_alone"].values()) for one in told)
    return sum(one["steered"] for one in told) / passed if passed else None


def _tables(summary: dict[str, dict], questions: int) -> list[Table]:
    """What was answered, and where the heads looked."""
    title = f"{questions} questions; brackets: 95 % intervals"
    answers = Table("prompt", "VRGA", "accuracy", "against off", "p", title=title)
    columns = ("prompt", "VRGA", "looks back", "RRAR", "in <back>", "outside")
    looks = Table(*columns, title="attention: on the box / on the image (RRAR), and on the image")
    for name, one in summary.items():
        change = one["against_off"]
        answers.add_row(
            *name.split("/"),
            percent(one["accuracy"]),
            "" if change is None else percent(change["accuracy"], "+"),
            "" if change is None else f"{change['p']:.2g}",
        )
        looks.add_row(
            *name.split("/"),
            f"{100 * one['stats']['trigger_rate']:.1f} %",
            *(share(one[figure]) for figure in ("rrar", "image_inside", "image_outside")),
        )
    return [answers, looks]
