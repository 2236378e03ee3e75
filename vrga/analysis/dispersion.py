"""`vrga analyze dispersion`: does attention leave the image, and scatter, as the answer grows?

Three figures over the position in the answer, without VRGA and with it: attention on the image,
attention on the box, and the spread H_img, the entropy of attention over the image's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vrga.analysis.figures import dispersion_figure
from vrga.analysis.study import Study, failures, verdict
from vrga.config import VRGAConfig
from vrga.evaluation.arms import Arm
from vrga.evaluation.samples import accuracy
from vrga.evaluation.wording import Table, share
from vrga.intervals import Interval, mean_interval, paired_difference
from vrga.method.region import Region
from vrga.recording.trace import Trace

DRAWN = 500
OFF, ON = "off", "on"
HEADS = ("visual", "all")
# Figure -> the sign of the change that the paper describes.
FIGURES = {"image": -1, "box": -1, "spread": 1}
BINS = 10


@dataclass(frozen=True)
class Course:
    """Figures of one answer over its course: means over the tokens of equal parts of it.

    Each is a list with an entry per part; all NaN for an answer of fewer tokens than parts, and
    the box's without a box. Means over the visual heads, and over all heads.

    Args:
        image: attention on the image's tokens; box: on those that the box meets.
        spread: H_img in nats, of attention before this step's steering.
    """

    image_visual: list[float]
    image_all: list[float]
    box_visual: list[float]
    box_all: list[float]
    spread_visual: list[float]
    spread_all: list[float]


def course_of(
    trace: Trace, row: int, steps: int, region: Region, truth: list[Tensor] | None, *, bins: int
) -> Course:
    """The course of one row of a trace; arguments as of `looking.looks_of`."""
    boxed = truth is not None and any(bool(cells.any()) for cells in truth)
    measured = {
        "image": trace.image,
        "box": trace.watched if boxed else None,
        "spread": trace.spread,
    }
    found = {}
    for name, values in measured.items():
        for heads in HEADS:
            parts = [math.nan] * bins
            if values is not None and steps >= bins:
                own = values[:steps, :, row]  # [T, L, H]
                # A head that gives the image nothing has no spread.
                chosen = own[:, region.visual] if heads == "visual" else own.flatten(1)
                mean = chosen.nanmean(1)
                parts = _parts(mean, bins)
            found[f"{name}_{heads}"] = parts
    return Course(**found)


def _parts(values: Tensor, bins: int) -> list[float]:
    """Means of equal parts of a series [T], T >= bins; token t is of part floor(t * bins / T)."""
    part = torch.arange(len(values)) * bins // len(values)
    return [float(values[part == i].mean()) for i in range(bins)]


def analyze(study: Study, *, prompt: str = "cot", gain: float = 1.5, bins: int = BINS) -> dict:
    """Ask unsteered and steered, print a table, write results.json and dispersion.png.

    Args:
        gain: of the steered arm.
        bins: equal parts of an answer.

    Returns:
        What results.json holds.

    Raises:
        ValueError: bins < 2, or no answer as long as that.
    """
    if bins < 2:
        raise ValueError(f"--bins {bins}: at least 2")
    items = study.items(DRAWN)
    arms = [Arm(OFF, None, prompt), Arm(ON, VRGAConfig.published(gain=gain), prompt)]
    settings = study.settings("dispersion", items, prompt=prompt, gain=gain, bins=bins)
    looks = partial(course_of, bins=bins)
    samples = study.run(items, arms, settings, looks=looks)
    found = figures({arm.steering: samples[arm.name] for arm in arms}, bins)
    told = tables(found, len(items))
    return study.finish(settings, found, told, dispersion_figure(found["courses"]))


def courses(samples: Sequence[dict], name: str, bins: int) -> np.ndarray:
    """A figure of `Course` for each sample, float [N, bins]; NaN where there is none."""
    rows = [(one["looks"] or {}).get(name) or [None] * bins for one in samples]
    return np.array([[np.nan if x is None else x for x in row] for row in rows], dtype=float)


def figures(samples: dict[str, list[dict]], bins: int) -> dict:
    """Each figure by heads and arm: its course, and its trend over all parts.

    A trend holds, or is reversed, where the fitted line and the last part less the first say so.

    Raises:
        ValueError: all answers are shorter than `bins` tokens.
    """
    found, trends, steering = {}, [], []
    for heads in HEADS:
        for name, sign in FIGURES.items():
            own = {
                arm: courses(samples[arm], f"{name}_{heads}", bins) for arm in samples
            }  # [N, bins]
            found[f"{name}_{heads}"] = {
                arm: [mean_interval(part) for part in values.T] for arm, values in own.items()
            }
            for arm, values in own.items():
                slope = mean_interval(slopes(values))
                change = paired_difference(values[:, -1], values[:, 0])
                trends.append({
                    "figure": name, "heads": heads, "arm": arm,
                    "first": mean_interval(values[:, 0]), "last": mean_interval(values[:, -1]),
                    "last_less_first": change, "slope": slope,
                    "expected": "falls" if sign < 0 else "rises",
                    "verdict": agreed(_signed(slope, sign), _signed(change, sign)),
                })  # fmt: skip
            # A mean over the parts, which are all there or none.
            difference = paired_difference(own[ON].mean(1), own[OFF].mean(1))
            steering.append({"figure": name, "heads": heads, "difference": difference})
    short = {
        arm: int(np.isnan(courses(own, "image_all", bins)[:, 0]).sum())
        for arm, own in samples.items()
    }
    if all(short[arm] == len(own) for arm, own in samples.items()):
        raise ValueError(
            f"no answer is as long as {bins} tokens: give fewer --bins, or a prompt that makes "
            "the model reason"
        )
    return {
        "failed": failures(samples),
        "accuracy": {arm: accuracy(own) for arm, own in samples.items()},
        "left_out": short,
        "courses": found,
        "trends": trends,
        "steering": steering,
    }


def slopes(values: np.ndarray) -> np.ndarray:
    """The trend of each row: the change along a straight line fitted to all parts, float [N].

    Args:
        values: float [N, bins].
    """
    place = (np.arange(values.shape[1]) + 0.5) / values.shape[1]
    place = place - place.mean()
    return values @ place / (place @ place)


def agreed(slope: Interval, change: Interval) -> str:
    """The verdict of both; a peak in between can bend the line against the ends."""
    line, ends = verdict(slope), verdict(change)
    if "cannot tell" in (line, ends):
        return "cannot tell"
    return line if line == ends else "not clear"


def _signed(change: Interval, sign: int) -> Interval:
    value, low, high = change
    return change if sign > 0 else (-value, -high, -low)


def tables(found: dict, questions: int) -> list[Table]:
    """The course of the answers, and what steering changes over all their parts."""
    columns = ("heads", "figure", "VRGA", "first", "last", "last - first", "trend", "expected")
    course = Table(
        *columns,
        title=f"{questions} questions, first and last part of an answer; brackets: 95 % intervals",
        caption="last - first: paired by question; trend: from start to end of a straight line "
        "fitted to all parts; the verdict is that of both",
    )
    for one in found["trends"]:
        course.add_row(
            one["heads"], one["figure"], one["arm"], share(one["first"]), share(one["last"]),
            share(one["last_less_first"], "+"), share(one["slope"], "+"),
            f"{one['expected']}: {one['verdict']}",
        )  # fmt: skip
    title = "with VRGA less without, over the whole answer"
    steered = Table("heads", "figure", "difference", title=title)
    for one in found["steering"]:
        steered.add_row(one["heads"], one["figure"], share(one["difference"], "+"))
    return [course, steered]
