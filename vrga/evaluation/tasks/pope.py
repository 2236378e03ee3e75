"""POPE: is an object in the image? Accuracy, precision, recall, F1, share of yes.

lmms-eval's own task computes the share of yes from the ground truth; here it is of predictions.
"""

from __future__ import annotations

import math

from vrga.evaluation.scoring import only_box, yes_no
from vrga.evaluation.tasks import documents

MEASURES = ("accuracy", "precision", "recall", "f1", "yes_ratio")


def process(doc: dict, results: list[str]) -> dict:
    """Every measure's item, over all questions and within the question's category."""
    expected = yes_no(documents.target(doc))
    said = yes_no(results[0], box=only_box(default=False))
    item: dict[str, object] = {"prediction": said, "target": expected}
    items = {measure: item for measure in MEASURES}
    items["accuracy"] = {**item, "score": float(said == expected)}
    category = doc.get("category")
    within = {f"{measure}_{category}": items[measure] for measure in MEASURES} if category else {}
    return items | within


def precision(items: list[dict]) -> float:
    """Share of right ones among the yes; NaN without any."""
    return _share([item["target"] for item in items if item["prediction"]])


def recall(items: list[dict]) -> float:
    """Share of objects that were found: an answer that is neither yes nor no finds none."""
    return _share([bool(item["prediction"]) for item in items if item["target"]])


def f1(items: list[dict]) -> float:
    """2 TP / (2 TP + FP + FN); NaN where nothing is positive."""
    hits = sum(bool(item["prediction"]) and item["target"] for item in items)
    positive = sum(bool(item["prediction"]) + item["target"] for item in items)
    return 2 * hits / positive if positive else math.nan


def yes_ratio(items: list[dict]) -> float:
    """Share of yes among the predictions of all questions."""
    return _share([bool(item["prediction"]) for item in items])


def _share(hits: list[bool]) -> float:
    return sum(hits) / len(hits) if hits else math.nan
