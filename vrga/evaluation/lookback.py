"""`vrga lookback`: does asking for <back> help without training, and what does VRGA add?

The first experiment of the Look-Back paper (arXiv 2507.03019): the prompts direct, cot and back,
each without VRGA, with VRGA at every step, inside <back> spans alone, and with the region found
anew at each <back>.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from vrga import lookback
from vrga.config import VRGAConfig
from vrga.demo.data import TEST_SEEDS, make_samples, split_options
from vrga.evaluation.arms import Arm, accuracy, compared, mean_look, right, run_arms, versions
from vrga.evaluation.items import PROMPTS, drawn_items, read_items
from vrga.evaluation.store import ANSWERED, Store, fingerprint, write_json
from vrga.evaluation.wording import Table, percent, share
from vrga.hf.checkpoints import load

FIRST = TEST_SEEDS.start + 10_000  # seed of the first drawn question
STEERINGS = {
    "off": None,  # the unpatched model
    "always": {"when": "always"},
    "back": {"when": "back"},
    "back+relocate": {"when": "back", "relocate": "back"},
}


def arms(config: VRGAConfig, prompts: Sequence[str], steerings: Sequence[str]) -> list[Arm]:
    """The arms of the experiment; `config` gives gain, gate and thresholds.

    Raises:
        ValueError: a prompt or steering that is not known, or none.
    """
    if config.method != "vrga":
        raise ValueError(
            f"--preset of method {config.method!r} knows nothing of <back>: take "
            "paper, published or sparing"
        )
    for kind, given, known in (("prompts", prompts, PROMPTS), ("steering", steerings, STEERINGS)):
        other = [name for name in given if name not in known]
        if other or not given:
            raise ValueError(
                f"--{kind} {', '.join(other) or '(none)'}: known are {', '.join(known)}"
            )
    return [
        Arm(name, STEERINGS[name] and dataclasses.replace(config, **STEERINGS[name]), prompt)
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
    split: str,
    style: str,
    batch: int,
    max_new_tokens: int,
    resume: bool,
    console: Console,
) -> dict:
    """Run it, print its table, and write samples.jsonl and results.json.

    Args:
        data: questions, see `read_items`; None draws them for the embedded model.
        split: of the drawn questions, a key of `SPLITS`.

    Returns:
        What results.json holds.
    """
    chosen = arms(config, prompts, steerings)
    if data is None:
        samples = make_samples(limit or 500, seed=FIRST, **split_options(split))
        items = drawn_items(samples)
    else:
        items = read_items(data, style)[:limit]
    settings = {
        "command": "lookback",
        "data": None if data is None else str(data),
        "data_hash": fingerprint(data),
        "model": model,
        "questions": len(items),
        "split": split if data is None else None,
        "style": style,
        "max_new_tokens": max_new_tokens,
        "arms": {arm.name: arm.config and dataclasses.asdict(arm.config) for arm in chosen},
    }
    store = Store(output, settings, resume=resume, fields=ANSWERED)
    loaded, processor = load(model, **({"dtype": torch.float32} if model is None else {}))
    found = run_arms(
        loaded, processor, items, chosen, store,
        batch=batch, max_new_tokens=max_new_tokens, console=console,
    )  # fmt: skip
    summary = {name: _summary(found, name) for name in found}
    for table in _tables(summary, len(items)):
        console.print(table)
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
        "right": int(np.nansum(right(samples))),
        "against_off": None if base is None or base is samples else compared(samples, base),
    }


def _tables(summary: dict[str, dict], questions: int) -> list[Table]:
    """What was answered, and where the heads looked."""
    answers = Table(title=f"{questions} questions; brackets: 95 % intervals")
    looks = Table(title="attention: on the box / on the image (RRAR), and on the image")
    for column in ("prompt", "VRGA", "accuracy", "against off", "p"):
        answers.add_column(column)
    for column in ("prompt", "VRGA", "looks back", "RRAR", "in <back>", "outside"):
        looks.add_column(column)
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
