"""`vrga lookback`: does asking for <back> help without training, and what does VRGA add?

The first experiment of the Look-Back paper (arXiv 2507.03019): the prompts direct, cot and back,
each without VRGA, with VRGA at every step, inside <back> spans alone, and with the region found
anew at each <back>.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from vrga import lookback
from vrga.config import VRGAConfig
from vrga.demo.data import TEST_SEEDS, make_samples
from vrga.evaluation.arms import Arm, accuracy, compared, mean_look, right, run_arms, versions
from vrga.evaluation.items import PROMPTS, drawn_items, read_items
from vrga.evaluation.store import Store, write_json
from vrga.evaluation.wording import percent, share
from vrga.models import load

# Every config follows the spans, so that attention inside and outside them can be told apart.
STEERINGS = {
    "off": {"gain": 1.0, "when": "back"},
    "always": {"relocate": "question"},
    "back": {"when": "back"},
    "back+relocate": {"when": "back", "relocate": "back"},
}


def arms(config: VRGAConfig, prompts: Sequence[str], steerings: Sequence[str]) -> list[Arm]:
    """The arms of the experiment; `config` gives gain, gate and thresholds.

    Raises:
        ValueError: a prompt or steering that is not known, or none.
    """
    for kind, given, known in (("prompts", prompts, PROMPTS), ("steering", steerings, STEERINGS)):
        other = [name for name in given if name not in known]
        if other or not given:
            raise ValueError(
                f"--{kind} {', '.join(other) or '(none)'}: known are {', '.join(known)}"
            )
    return [
        Arm(name, dataclasses.replace(config, **STEERINGS[name]), prompt)
        for prompt in prompts
        for name in steerings
    ]


def experiment(
    data: Path | None,
    model: str | None,
    output: Path,
    *,
    config: VRGAConfig,
    prompts: Sequence[str],
    steerings: Sequence[str],
    limit: int | None,
    noise: float,
    style: str,
    batch: int,
    max_new_tokens: int,
    resume: bool,
    console: Console,
) -> dict:
    """Run it, print its table, and write samples.jsonl and results.json.

    Args:
        data: questions, see `read_items`; None draws them for the embedded model.
        noise: of the drawn images, on the scale 0-255.

    Returns:
        What results.json holds.
    """
    chosen = arms(config, prompts, steerings)
    if data is None:
        samples = make_samples(limit or 500, seed=TEST_SEEDS.start + 10_000, noise=noise)
        items = drawn_items(samples)
    else:
        items = read_items(data, style)[:limit]
    settings = {
        "command": "lookback",
        "data": None if data is None else str(data),
        "model": model,
        "questions": len(items),
        "noise": noise,
        "style": style,
        "max_new_tokens": max_new_tokens,
        "arms": {arm.name: dataclasses.asdict(arm.config) for arm in chosen},
    }
    store = Store(output, settings, resume=resume)
    loaded, processor = load(model, **({"dtype": torch.float32} if model is None else {}))
    found = run_arms(
        loaded, processor, items, chosen, store,
        batch=batch, max_new_tokens=max_new_tokens, console=console,
    )  # fmt: skip
    summary = {name: _summary(found, name) for name in found}
    console.print(_table(summary, len(items)))
    failed = sum(one["error"] is not None for samples in found.values() for one in samples)
    results = {"settings": settings, "versions": versions(), "failed": failed, "arms": summary}
    write_json(output / "results.json", results)
    return results


def _summary(found: dict[str, list[dict]], name: str) -> dict:
    samples, texts = found[name], [one["text"] or "" for one in found[name]]
    prompt = name.split("/")[0]
    base = found.get(f"{prompt}/off")
    spoken = lookback.stats(texts)
    return {
        "accuracy": accuracy(samples),
        "rrar": mean_look(samples, "rrar"),
        "image_inside": mean_look(samples, "image_inside"),
        "image_outside": mean_look(samples, "image_outside"),
        "stats": dataclasses.asdict(spoken),
        "reward": float(np.mean([lookback.reward(text) for text in texts])),
        "tokens": float(np.mean([one["tokens"] for one in samples])),
        "failed": int(sum(one["error"] is not None for one in samples)),
        "right": int(right(samples).sum()),
        "against_off": None if base is None or base is samples else compared(samples, base),
    }


def _table(summary: dict[str, dict], questions: int) -> Table:
    table = Table(title=f"{questions} questions; brackets: 95 % intervals")
    for column in ("prompt", "VRGA", "accuracy", "against off", "p", "looks back", "RRAR",
                   "image inside", "outside <back>"):  # fmt: skip
        table.add_column(column)
    for name, one in summary.items():
        change = one["against_off"]
        table.add_row(
            *name.split("/"),
            percent(one["accuracy"]),
            "" if change is None else percent(change["accuracy"], "+"),
            "" if change is None else f"{change['p']:.2g}",
            _rate(one["stats"]["trigger_rate"]),
            share(one["rrar"]),
            share(one["image_inside"]),
            share(one["image_outside"]),
        )
    return table


def _rate(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"
