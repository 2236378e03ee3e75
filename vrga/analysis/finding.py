"""`vrga analyze finding`: from which words the place is found best, and how to tell that it is not.

Prefills alone tell where a map is highest. With `answers`, the questions are answered as well,
without steering and with it, and what abstaining would change is counted: a row whose map's
highest share is below a threshold keeps the unsteered answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from vrga.analysis.asked_rows import AskedRows, asked_rows
from vrga.analysis.figures import bars_figure
from vrga.analysis.study import APART, FIRST, Study, paired_table
from vrga.analysis.ways import LAST, NAMED, NAMES, SCORES, WHOLE, heads_agree, region_at, ways
from vrga.config import VRGAConfig
from vrga.demo.data import VALIDATION_SEEDS, Sample, make_samples, split_options
from vrga.demo.fine.data import FINE_SPLITS, FineSample, fine_split_options, make_fine_samples
from vrga.evaluation.arms import Arm
from vrga.evaluation.items import drawn_items
from vrga.evaluation.progress import progress
from vrga.evaluation.samples import right
from vrga.evaluation.wording import Table, percent, say_config
from vrga.hf.checkpoints import load
from vrga.intervals import paired_difference, wilson

DRAWN = 500
AGREE = "heads agree"
SUREST = (0.5, 0.8, 0.9)  # shares of the questions, the surest of them
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
COLUMNS = ("map", "highest where asked", "less the question's last token", "asked in T", "T covers",
           "sure: AUROC", "right of the surest 50, 80, 90 %")  # fmt: skip


def analyze(
    study: Study,
    *,
    config: VRGAConfig,
    prompt: str = "cot",
    validation: bool = False,
    answers: bool = False,
) -> dict:
    """Find every question's place in every way; print, write, draw.

    Args:
        study: its split is one of `SPLITS` or of `FINE_SPLITS`.
        config: how heads are chosen and T is made, and steered to with `answers`.
        prompt: what stands behind the question, of `PROMPTS`; those about cards stand alone.
        validation: choose numbers on these questions; those that are reported are others.
        answers: ask as well, without steering and with it.

    Returns:
        What results.json holds.

    Raises:
        ValueError: answers to a split of cards, which `vrga analyze closer` gives.
    """
    fine = study.split in FINE_SPLITS
    if answers and fine:
        raise ValueError(
            f"--answers with --split {study.split}: `vrga analyze closer` answers those; leave "
            "--answers out"
        )
    samples = drawn(study, validation)
    settings = study.settings(
        "finding", samples, prompt=None if fine else prompt, validation=validation,
        finding=config.to_dict(), answers=answers,
    )  # fmt: skip
    say_config(study.console, config.name)
    loaded = load("fine") if fine and study.model is None else study.load()
    store = study.store(settings) if answers else None  # refuses before the prefills
    measured = [] if not answers else _answers(study, loaded, samples, config, prompt, store)
    measures = []
    with progress(study.console) as bar:
        task = bar.add_task("prefill", total=len(samples))
        for asked in asked_rows(loaded, samples, prompt, study.batch):
            measures.append(measure(asked, config))
            bar.advance(task)
    found = figures(measures)
    told = [table(found, study.split), scores_table(found)]
    if answers:
        found["abstain"] = abstaining(measures, *measured)
        told.append(abstain_table(found["abstain"]))
    return study.finish(settings, found, told, figure(found, study.split))


def drawn(study: Study, validation: bool) -> Sequence[Sample | FineSample]:
    """The questions."""
    first = VALIDATION_SEEDS.start + APART * study.seed if validation else study.first
    assert validation or first >= FIRST
    count = study.limit or DRAWN
    if study.split in FINE_SPLITS:
        return make_fine_samples(count, seed=first, **fine_split_options(study.split))
    return make_samples(count, seed=first, **split_options(study.split))


def measure(asked: AskedRows, config: VRGAConfig) -> dict:
    """What every way finds of one question: for each, whether the map is highest on what is asked
    for, whether T meets it, T's share of the image, and the map's highest share; and the scores of
    how sure the question's last token is."""
    told = {}
    for name, found in ways(asked, config).items():
        told[name] = (
            bool(asked.truth[found.map.argmax()]),
            bool((asked.truth & found.chosen).any()),
            float(found.chosen.float().mean()),
            float(found.map.max()),
        )
    region = region_at(asked, asked.named, config)
    relevance = region.map[0].flatten()
    scores = {name: score(relevance, region) for name, score in SCORES.items()}
    scores[AGREE] = heads_agree(asked, region, asked.named)
    return {"ways": told, "scores": scores}


def figures(measures: Sequence[Mapping]) -> dict:
    """Hit rates with intervals, differences paired by question, and calibration."""
    own = {
        name: np.array([one["ways"][name] for one in measures], dtype=float)
        for name in measures[0]["ways"]
    }
    base = own[NAMED][:, 0]
    told = {}
    for name, values in own.items():
        hits = values[:, 0]
        told[name] = {
            "peak": wilson(hits),
            "less_named": paired_difference(hits, base),
            "less_last": paired_difference(hits, own[LAST][:, 0]),
            "in_region": wilson(values[:, 1]),
            "covers": float(values[:, 2].mean()),
            "auroc": auroc(values[:, 3], hits),
            "surest": surest(values[:, 3], hits),
        }
    scores = {}
    for name in measures[0]["scores"]:
        values = np.array([one["scores"][name] for one in measures])
        scores[name] = {"auroc": auroc(values, base), "surest": surest(values, base)}
    return {"questions": len(measures), "ways": told, "scores": scores}


def auroc(scores: np.ndarray, hits: np.ndarray) -> float | None:
    """How often a right map has a higher score than a wrong one; None where all are alike."""
    good, bad = scores[hits > 0], scores[hits == 0]
    if not len(good) or not len(bad):
        return None
    above = (good[:, None] > bad).mean() + 0.5 * (good[:, None] == bad).mean()
    return float(above)


def surest(scores: np.ndarray, hits: np.ndarray) -> list[float]:
    """The share of right ones among the surest, for each of `SUREST`."""
    order = np.argsort(-scores, kind="stable")
    return [float(hits[order[: max(1, round(part * len(hits)))]].mean()) for part in SUREST]


def _answers(study, loaded, samples, config, prompt, store) -> tuple[np.ndarray, np.ndarray]:
    """Right or not, without steering and with it; the question's last token is the query."""
    arms = [Arm("off", None, prompt), Arm("steered", config, prompt)]
    told = study.ask(loaded, drawn_items(samples), arms, store, measure=False)
    off, steered = (right(told[arm.name]) for arm in arms)
    return off, steered


def abstaining(measures: Sequence[Mapping], off: np.ndarray, steered: np.ndarray) -> dict:
    """Accuracy with rows left alone whose map's highest share is below each threshold.

    Args:
        off, steered: whether answers are right, [N]; a row that is left alone is the model's own,
            bit for bit, so that its answer is that without steering.
    """
    certainty = np.array([one["ways"][NAMED][3] for one in measures])
    told = {}
    for threshold in (0.0, *THRESHOLDS):
        steers = certainty >= threshold
        told[f"{threshold:g}"] = {
            "steered": wilson(steers),
            "change": paired_difference(np.where(steers, steered, off), off),
        }
    return {"off": wilson(off), "thresholds": told}


def table(found: Mapping, split: str) -> Table:
    """One line per way."""
    return paired_table(split, found["questions"], COLUMNS, rows(found))


def rows(found: Mapping) -> list[tuple[str, ...]]:
    """A row of `COLUMNS` for each way."""
    return [
        (
            name,
            percent(one["peak"]),
            "" if name == NAMED else percent(one["less_named"], "+"),
            percent(one["in_region"]),
            f"{100 * one['covers']:.0f} %",
            number(one["auroc"]),
            shares(one["surest"]),
        )
        for name, one in ((name, found["ways"][name]) for name in NAMES)
    ]


def scores_table(found: Mapping) -> Table:
    """Which score tells right maps of the question's last token from wrong ones."""
    columns = ("score", "AUROC", "right of the surest 50, 80, 90 %")
    made = Table(*columns, title="how sure is the map? of the question's last token, named")
    for name, one in found["scores"].items():
        made.add_row(name, number(one["auroc"]), shares(one["surest"]))
    return made


def abstain_table(found: Mapping) -> Table:
    """What abstaining changes."""
    columns = ("abstain below", "steered", "less without steering")
    made = Table(*columns, title=f"abstaining: {percent(found['off'])} right without steering")
    for threshold, one in found["thresholds"].items():
        made.add_row(threshold, percent(one["steered"]), percent(one["change"], "+"))
    return made


def number(value: float | None) -> str:
    """An AUROC; "-" where there is none."""
    return "-" if value is None else f"{value:.3f}"


def shares(values: Sequence[float]) -> str:
    """Shares in percent: "98.0, 90.5 %"."""
    return ", ".join(f"{100 * x:.1f}" for x in values) + " %"


def figure(found: Mapping, split: str) -> Figure:
    """Hit rates of all ways as bars with their intervals."""
    bars = {name: found["ways"][name]["peak"] for name in NAMES}
    told = f"highest where asked, % of {found['questions']} questions"
    return bars_figure(bars, (NAMED, WHOLE), split, told)
