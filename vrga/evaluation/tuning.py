"""`vrga tune`: configurations compared on one half of the questions, the best told on the other."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from vrga.config import VRGAConfig
from vrga.demo.data import TEST_SEEDS, VALIDATION_SEEDS, make_samples, split_options
from vrga.evaluation.arms import Arm, accuracy, compared, run_arms, versions
from vrga.evaluation.items import Item, drawn_items, read_items
from vrga.evaluation.store import ANSWERED, Store, fingerprint, write_json
from vrga.evaluation.sweeps import swept
from vrga.evaluation.wording import Table, percent, share
from vrga.hf.checkpoints import load

OFF = "off"
BEST, RESULTS, FIGURE = "best.json", "results.json", "tuning.png"


def halves(
    data: Path | None, limit: int | None, split: str, style: str, seed: int
) -> tuple[list[Item], list[Item]]:
    """Questions to tune on, and others to report on.

    A file's questions are shuffled and cut in two. Questions for the embedded model are drawn
    from its validation seeds and its test seeds.

    Args:
        limit: questions in both halves together.
    """
    if data is None:
        count, options = (limit or 1000) // 2, split_options(split)
        drawn = [
            make_samples(count, seed=seeds.start + 20_000, **options)
            for seeds in (VALIDATION_SEEDS, TEST_SEEDS)
        ]
        return drawn_items(drawn[0]), drawn_items(drawn[1])
    items = read_items(data, style)
    order = np.random.default_rng(seed).permutation(len(items))[:limit]
    if len(order) < 4:
        raise ValueError(f"{data}: {len(order)} questions are too few to tune on one half of them")
    half = len(order) // 2
    return [items[i] for i in order[:half]], [items[i] for i in order[half:]]


def tune(
    data: Path | None,
    model: str | None,
    output: Path,
    *,
    base: VRGAConfig,
    sweeps: Sequence[str],
    prompt: str,
    style: str,
    split: str,
    limit: int | None,
    batch: int,
    max_new_tokens: int,
    seed: int,
    resume: bool,
    console: Console,
) -> dict:
    """Sweep, choose the config with the most right answers, and report it on the other half.

    Of configs that answer equally many right, the first one wins. Writes best.json (for
    `vrga eval --config`), the same as vrga_config.json (for the checkpoint's folder), results.json
    and tuning.png.

    Returns:
        What results.json holds.
    """
    configs = swept(base, sweeps)
    tuning, held_out = halves(data, limit, split, style, seed)
    if all(item.answer is None for item in tuning) or all(x.answer is None for x in held_out):
        raise ValueError(f"{data}: no question of a half has an answer to choose a config by")
    settings = {
        "command": "tune", "data": None if data is None else str(data),
        "data_hash": fingerprint(data), "model": model,
        "questions": [len(tuning), len(held_out)], "split": split if data is None else None,
        "prompt": prompt, "style": style, "max_new_tokens": max_new_tokens, "seed": seed,
        "configs": {name: dataclasses.asdict(config) for name, config in configs.items()},
    }  # fmt: skip
    stores = [
        Store(output / part, settings, resume=resume, fields=ANSWERED)
        for part in ("tuning", "held_out")
    ]
    loaded, processor = load(model, **({"dtype": torch.float32} if model is None else {}))

    def run(names: Sequence[str], items: list[Item], store: Store) -> dict[str, list[dict]]:
        arms = [Arm(name, configs.get(name), prompt) for name in (OFF, *names)]
        found = run_arms(
            loaded, processor, items, arms, store,
            batch=batch, max_new_tokens=max_new_tokens, console=console,
        )  # fmt: skip
        return {arm.steering: found[arm.name] for arm in arms}

    swept_samples = run(list(configs), tuning, stores[0])
    best = max(configs, key=lambda name: accuracy(swept_samples[name])[0])
    told = _figures(swept_samples), _figures(run([best], held_out, stores[1]))
    results = {
        "settings": settings,
        "versions": versions(),
        "tuning": told[0],
        "best": best,
        "held_out": told[1],
        "failed": sum(one["failed"] for half in told for one in half.values()),
    }
    write_json(output / RESULTS, results)
    text = json.dumps(dataclasses.asdict(configs[best]), indent=1)
    (output / BEST).write_text(text + "\n", "utf-8")
    ready = configs[best].save_pretrained(output)
    _draw(results["tuning"], results["held_out"], best, output / FIGURE)
    console.print(_table(f"tuning: {len(tuning)} questions", results["tuning"]))
    console.print(_table(f"held out: {len(held_out)} other questions", results["held_out"]))
    console.print(f"config: {output / BEST}", soft_wrap=True)
    console.print(
        f"put {ready} beside the checkpoint's weights, and vrga.patch(model) steers with it",
        style="dim", soft_wrap=True,
    )  # fmt: skip
    return results


def _figures(samples: Mapping[str, list[dict]]) -> dict[str, dict]:
    return {
        name: {
            "accuracy": accuracy(own),
            "failed": sum(one["error"] is not None for one in own),
            "against_off": None if name == OFF else compared(own, samples[OFF]),
        }
        for name, own in samples.items()
    }


def _table(title: str, figures: dict[str, dict]) -> Table:
    table = Table(title=f"{title}; brackets: 95 % intervals")
    for column in ("config", "accuracy", "against off", "p", "RRAR against off"):
        table.add_column(column)
    for name, one in figures.items():
        change = one["against_off"]
        cells = ("", "", "")
        if change is not None:
            cells = (
                percent(change["accuracy"], "+"), f"{change['p']:.2g}", share(change["rrar"], "+"),
            )  # fmt: skip
        table.add_row(name, percent(one["accuracy"]), *cells)
    return table


def _draw(tuning: dict, held_out: dict, best: str, path: Path) -> None:
    """Differences from the unpatched model with their intervals, best config marked."""
    from vrga.evaluation.figures import change_figure
    from vrga.plots import save

    changes = {name: one["against_off"]["accuracy"] for name, one in tuning.items() if name != OFF}
    final = held_out[best]["against_off"]["accuracy"]
    save(change_figure(changes, {f"held out: {best}": final}), path)
