"""`vrga analyze heads`: image focus R against image entropy H_img over heads; how stable H_v is.

The paper finds R and H_img linearly related over heads, with Pearson's r above 0.9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vrga.analysis.figures import heads_figure
from vrga.analysis.study import Study
from vrga.annotations import Model, Processor
from vrga.evaluation.asker import Asker
from vrga.evaluation.items import Item
from vrga.evaluation.progress import progress
from vrga.evaluation.wording import Table, percent, share
from vrga.intervals import Interval, Z, mean_interval, pearson, wilson

DRAWN = 500
SHOWN = 8  # heads in the table


@dataclass(frozen=True)
class Heads:
    """What phase 1 found of every head, for N questions.

    Args:
        focus: R; entropy: H_img in nats; float [N, L, H] each.
        visual: H_v, bool [N, L, H].
        failed: questions that could not be asked, or have no image.
    """

    focus: np.ndarray
    entropy: np.ndarray
    visual: np.ndarray
    failed: int


def measure(loaded: tuple[Model, Processor], items: Sequence[Item], study: Study) -> Heads:
    """Run the prefill of every question, and nothing else.

    Raises:
        ValueError: no question could be asked; the message is that of the first.
    """
    asker = Asker(*loaded, None, batch=study.batch, keep=True)
    focus, entropy, visual, errors = [], [], [], []
    with progress(study.console) as bar:
        task = bar.add_task("prefill", total=len(items))
        # What stands behind the question cannot change its row, so one prompt stands for all.
        requests = (item.request("direct", item.id, max_new_tokens=1) for item in items)
        for answer in asker.ask(requests):
            bar.advance(task)
            if answer.found is None or not answer.found.grids:
                errors.append(f"question {answer.id!r}: {answer.error or 'no image'}")
                continue
            focus.append(answer.found.heads.focus.numpy())
            entropy.append(answer.found.heads.entropy.numpy())
            visual.append(answer.found.visual.numpy())
    if not focus:
        raise ValueError(f"no question could be asked; {errors[0]}")
    return Heads(np.stack(focus), np.stack(entropy), np.stack(visual), len(errors))


def analyze(study: Study) -> dict:
    """Measure, print two tables, write results.json and heads.png; what results.json holds."""
    items = study.items(DRAWN)
    heads = measure(study.load(), items, study)
    found = figures(heads)
    settings, told = study.settings("heads", items), tables(found, len(heads.focus))
    return study.finish(settings, found, told, heads_figure(found))


def figures(heads: Heads) -> dict:
    """The relation and the stability, with 95 % intervals as [value, low, high]."""
    count = len(heads.focus)
    focus, entropy, visual = (
        x.reshape(count, -1) for x in (heads.focus, heads.entropy, heads.visual)
    )
    each = np.array([pearson(x, y)[0] for x, y in zip(focus, entropy, strict=True)])
    others = ~visual.any(0)
    # The same numbers of heads, drawn by chance.
    chance = np.random.default_rng(0).permuted(visual, axis=1)
    return {
        "failed": heads.failed,
        "r_over_means": pearson(focus.mean(0), entropy.mean(0)),
        "r_over_others": pearson(focus[:, others].mean(0), entropy[:, others].mean(0)),
        "r_per_question": mean_interval(each),
        "r_above_0.9": wilson(each[~np.isnan(each)] > 0.9),
        "overlap": overlap(visual),
        "overlap_of_random_heads": overlap(chance),
        "visual_heads": mean_interval(visual.sum(1)),
        "ever_chosen": int(visual.any(0).sum()),
        "focus": heads.focus.mean(0).tolist(),
        "entropy": heads.entropy.mean(0).tolist(),
        "chosen": heads.visual.mean(0).tolist(),
        "questions": count,
    }


def overlap(chosen: np.ndarray) -> Interval:
    """Mean Jaccard overlap of the sets of two samples, with its jackknife interval.

    Pairs share samples, so their spread says little; each sample in turn is left out instead.
    NaN for fewer than two samples, and ends of NaN for two.

    Args:
        chosen: bool [N, heads], no row empty.
    """
    count, sets = len(chosen), np.asarray(chosen, dtype=np.float32)
    if count < 2:
        return math.nan, math.nan, math.nan
    sizes = sets.sum(1)
    with_others = np.empty(count)  # sum over the other samples
    for i, one in enumerate(sets):
        both = sets @ one
        with_others[i] = (both / (sizes + sizes[i] - both)).sum(dtype=np.float64) - 1.0
    total = with_others.sum()
    mean = total / (count * (count - 1))
    if count == 2:
        return float(mean), math.nan, math.nan
    without = (total - 2 * with_others) / ((count - 1) * (count - 2))
    half = Z * math.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    return float(mean), float(mean - half), float(mean + half)


def tables(found: dict, questions: int) -> list[Table]:
    """The relation, and the heads chosen most often."""
    relation = Table("figure", "value", title=f"{questions} questions; brackets: 95 % intervals")
    for name, told in (
        ("Pearson r of R and H_img, over the heads' means", share(found["r_over_means"])),
        ("... over heads that are never in H_v", share(found["r_over_others"])),
        ("Pearson r over the heads, mean of the questions", share(found["r_per_question"])),
        ("questions with r above 0.9 (the paper's figure)", percent(found["r_above_0.9"])),
        ("heads in H_v", share(found["visual_heads"])),
        ("overlap of H_v between two questions (Jaccard)", share(found["overlap"])),
        ("overlap of as many random heads", share(found["overlap_of_random_heads"])),
    ):
        relation.add_row(name, told)
    chosen = np.array(found["chosen"])
    title = f"H_v: {found['ever_chosen']} of {chosen.size} heads were ever chosen"
    often = Table("layer", "head", "chosen", "mean R", "mean H_img", title=title)
    for place in np.argsort(-chosen, axis=None, kind="stable")[:SHOWN]:
        layer, head = np.unravel_index(place, chosen.shape)
        if chosen[layer, head]:
            times = round(float(chosen[layer, head]) * questions)
            often.add_row(
                str(layer),
                str(head),
                percent(wilson(np.arange(questions) < times)),
                f"{found['focus'][layer][head]:.2f}",
                f"{found['entropy'][layer][head]:.2f}",
            )
    return [relation, often]
