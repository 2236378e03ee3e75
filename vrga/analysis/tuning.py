"""`vrga tune`: configurations compared on one half of the questions, the best told on the other."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import numpy as np

from vrga.analysis.figures import change_figure
from vrga.analysis.study import Study, failures
from vrga.config import VRGAConfig
from vrga.demo.data import TEST_SEEDS, VALIDATION_SEEDS
from vrga.evaluation.arms import Arm
from vrga.evaluation.items import Item
from vrga.evaluation.samples import accuracy, compared
from vrga.evaluation.wording import Table, percent, share
from vrga.plots import save

OFF = "off"
BEST, FIGURE = "best.json", "tuning.png"
PARTS = ("tuning", "held_out")
DRAWN = 1000  # in both halves
FIRST = 20_000  # seed of the first drawn question, from where validation and test seeds begin


def halves(study: Study) -> tuple[list[Item], list[Item]]:
    """Questions to tune on, and others to report on.

    A file's questions are shuffled and cut in two. Questions for the embedded model are drawn
    from its validation seeds and its test seeds.

    Args:
        study: its limit counts questions in both halves together.
    """
    if study.data is None:
        drawn = dataclasses.replace(study, limit=(study.limit or DRAWN) // 2)
        starts = (seeds.start + FIRST for seeds in (VALIDATION_SEEDS, TEST_SEEDS))
        tuning, held_out = (drawn.questions(DRAWN // 2, start) for start in starts)
        return tuning, held_out
    items = dataclasses.replace(study, limit=None).questions(DRAWN, FIRST)
    order = np.random.default_rng(study.seed).permutation(len(items))[: study.limit]
    if len(order) < 4:
        raise ValueError(
            f"{study.data}: {len(order)} questions are too few to tune on one half of them"
        )
    middle = len(order) // 2
    return [items[i] for i in order[:middle]], [items[i] for i in order[middle:]]


def tune(study: Study, configs: Mapping[str, VRGAConfig], *, prompt: str = "cot") -> dict:
    """Choose the config with the most right answers on one half, and report it on the other.

    Of configs that answer equally many right, the first one wins. Writes best.json (for
    `vrga eval --config`), the same as vrga_config.json (for the checkpoint's folder), results.json,
    table.md and tuning.png.

    Args:
        configs: what is compared, by name, see `swept`.

    Returns:
        What results.json holds.
    """
    parts = halves(study)
    if any(all(item.answer is None for item in half) for half in parts):
        raise ValueError(f"{study.data}: no question of a half has an answer to choose a config by")
    settings = {
        "command": "tune",
        **study.common([len(half) for half in parts]),
        "prompt": prompt,
        "seed": study.seed,
        "configs": {name: dataclasses.asdict(config) for name, config in configs.items()},
    }
    stores = [study.store(settings, part) for part in PARTS]
    loaded = study.load()

    def figures(names, items, store) -> dict[str, dict]:
        arms = [Arm(name, configs.get(name), prompt) for name in (OFF, *names)]
        found = study.ask(loaded, items, arms, store)
        return _figures({arm.steering: found[arm.name] for arm in arms})

    tuning = figures(configs, parts[0], stores[0])
    best = max(configs, key=lambda name: tuning[name]["accuracy"][0])
    held_out = figures([best], parts[1], stores[1])
    failed = sum(one["failed"] for half in (tuning, held_out) for one in half.values())
    found = {"tuning": tuning, "best": best, "held_out": held_out, "failed": failed}
    tables = [
        _table(f"tuning: {len(parts[0])} questions", tuning),
        _table(f"held out: {len(parts[1])} other questions", held_out),
    ]
    results = study.finish(settings, found, tables)
    _keep(study, configs[best])
    # Differences from the unpatched model with their intervals, the best config's last.
    changes = {name: one["against_off"]["accuracy"] for name, one in tuning.items() if name != OFF}
    final = {f"held out: {best}": held_out[best]["against_off"]["accuracy"]}
    save(change_figure(changes, final), study.output / FIGURE)
    return results


def _keep(study: Study, config: VRGAConfig) -> None:
    """Write the best configuration, and say where it is."""
    path = study.output / BEST
    path.write_text(json.dumps(dataclasses.asdict(config), indent=1) + "\n", "utf-8")
    ready = config.save_pretrained(study.output)
    study.console.print(f"config: {path}", soft_wrap=True)
    study.console.print(
        f"put {ready} beside the checkpoint's weights, and vrga.patch(model) steers with it",
        style="dim", soft_wrap=True,
    )  # fmt: skip


def _figures(samples: Mapping[str, list[dict]]) -> dict[str, dict]:
    return {
        name: {
            "accuracy": accuracy(own),
            "failed": failures({name: own}),
            "against_off": None if name == OFF else compared(own, samples[OFF]),
        }
        for name, own in samples.items()
    }


def _table(title: str, figures: dict[str, dict]) -> Table:
    columns = ("config", "accuracy", "against off", "p", "RRAR against off")
    table = Table(*columns, title=f"{title}; brackets: 95 % intervals")
    for name, one in figures.items():
        change = one["against_off"]
        cells = ("", "", "")
        if change is not None:
            cells = (
                percent(change["accuracy"], "+"), f"{change['p']:.2g}", share(change["rrar"], "+"),
            )  # fmt: skip
        table.add_row(name, percent(one["accuracy"]), *cells)
    return table
