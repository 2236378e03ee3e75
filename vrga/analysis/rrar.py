"""`vrga analyze rrar`: how much of its look at the image the model spends on the place asked about.

RRAR, the relevant-region attention ratio, is attention on the box over attention on the image:
mean over the visual heads and the answer's tokens. The paper finds it lower when the model is
asked to reason than when it answers directly, higher when the prompt names the place, and higher
in right answers than in wrong ones. The embedded model was not trained on the guided prompt; the
nearest that it knows is back, after which it says itself what it returns to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vrga.analysis.figures import rrar_figure
from vrga.analysis.study import Study, failures, image_size, verdict
from vrga.beforehand import check_known
from vrga.evaluation.arms import Arm
from vrga.evaluation.items import PROMPTS, Item
from vrga.evaluation.samples import accuracy, look, right
from vrga.evaluation.wording import Table, share
from vrga.intervals import difference, mean_interval, paired_difference

DRAWN = 500
GUIDED = "guided"
KNOWN = (*PROMPTS, GUIDED)
DEFAULT = ("cot", "direct", "guided", "back")
# (lower, higher); back is a reasoning prompt that makes the model itself return to the place.
EXPECTED = (("cot", "direct"), ("direct", "guided"), ("cot", "guided"), ("cot", "back"))


def analyze(study: Study, *, prompts: Sequence[str] = DEFAULT) -> dict:
    """Ask with every prompt, print two tables, write results.json and rrar.png.

    Args:
        prompts: of `KNOWN`; "cot" is the reasoning prompt, "guided" the direct one with a
            sentence that names the box's place.

    Returns:
        What results.json holds.

    Raises:
        ValueError: an unknown prompt, or none; a question without a box.
    """
    check_known("--prompts", prompts, KNOWN)
    items = [guided(item) for item in study.items(DRAWN, boxes=True)]
    arms = [Arm("off", None, prompt) for prompt in prompts]
    settings = study.settings("rrar", items, prompts=list(prompts))
    samples = study.run(items, arms, settings)
    found = figures({arm.prompt: samples[arm.name] for arm in arms})
    told = tables(found, len(items))
    return study.finish(settings, found, told, rrar_figure(found["prompts"]))


def guided(item: Item) -> Item:
    """The item with a text for the guided prompt: the direct one, then where to look."""
    text = f"{item.texts['direct']} Look at the {place(item)} part of the image."
    return dataclasses.replace(item, texts={**item.texts, GUIDED: text})


def place(item: Item) -> str:
    """Where in the image the box's middle lies, by thirds: "upper left", "right", "central"."""
    assert item.box is not None  # `Study.items` refuses a question without
    (left, top, right, bottom), (width, height) = item.box, image_size(item)
    rows, columns = ("upper", "", "lower"), ("left", "", "right")
    row = rows[min(int(3 * (top + bottom) / 2 / height), 2)]
    column = columns[min(int(3 * (left + right) / 2 / width), 2)]
    return " ".join(word for word in (row, column) if word) or "central"


def figures(samples: dict[str, list[dict]]) -> dict:
    """RRAR of each prompt, of its right and its wrong answers, and the paper's order.

    Differences of prompts are paired by question; those of right and wrong answers cannot be.
    """
    prompts, ratios = {}, {name: look(own, "rrar") for name, own in samples.items()}
    for name, own in samples.items():
        hits, misses = right(own) > 0, right(own) == 0
        gap = difference(ratios[name][hits], ratios[name][misses])
        prompts[name] = {
            "accuracy": accuracy(own),
            "rrar": mean_interval(ratios[name]),
            "right": mean_interval(ratios[name][hits]),
            "wrong": mean_interval(ratios[name][misses]),
            "right_answers": int(hits.sum()),
            "wrong_answers": int(misses.sum()),
            "right_minus_wrong": gap,
            "verdict": verdict(gap),
        }
    order = []
    for lower, higher in EXPECTED:
        if lower in ratios and higher in ratios:
            change = paired_difference(ratios[higher], ratios[lower])
            order.append(
                {
                    "expected": f"{lower} < {higher}",
                    "difference": change,
                    "verdict": verdict(change),
                }
            )
    return {"failed": failures(samples), "prompts": prompts, "order": order}


def tables(found: dict, questions: int) -> list[Table]:
    """RRAR by prompt, and which of the paper's orders hold."""
    columns = ("prompt", "answers", "questions", "RRAR")
    ratios = Table(*columns, title=f"RRAR, {questions} questions; brackets: 95 % intervals")
    order = Table("expected", "difference of RRAR", "", title="the paper's order")
    for one in found["order"]:
        order.add_row(one["expected"], share(one["difference"], "+"), one["verdict"])
    for name, one in found["prompts"].items():
        wrong = one["wrong_answers"]
        ratios.add_row(name, "all", str(questions), share(one["rrar"]))
        ratios.add_row("", "right", str(one["right_answers"]), share(one["right"]))
        ratios.add_row("", "wrong", str(wrong), share(one["wrong"]))
        gap = one["right_minus_wrong"]
        order.add_row(f"{name}: wrong < right", share(gap, "+"), one["verdict"])
    return [ratios, order]
