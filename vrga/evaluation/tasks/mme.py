"""MME: two questions per image; accuracy, and the share of images with both right (acc+).

A subtask scores 100 acc + 100 acc+; perception is the sum of ten subtasks (at most 2000),
cognition of four (at most 800), both over the subtasks that are there.
"""

from __future__ import annotations

from vrga.evaluation.scoring import only_box, yes_no
from vrga.evaluation.tasks import documents

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def process(doc: dict, results: list[str]) -> dict:
    """Items of the subtask's acc and acc+, and of the sum it belongs to.

    Raises:
        ValueError: an unknown subtask.
    """
    subtask = doc["category"]
    if subtask not in PERCEPTION + COGNITION:
        raise ValueError(f"category is {subtask!r}; MME has {', '.join(PERCEPTION + COGNITION)}")
    said = yes_no(results[0], box=only_box(default=False))
    expected = yes_no(documents.target(doc))
    item = {
        "score": float(said == expected),
        "prediction": said,
        "target": expected,
        "subtask": subtask,
        "image": doc["question_id"],
    }
    whole = "perception" if subtask in PERCEPTION else "cognition"
    return {f"acc_{subtask}": item, f"acc_plus_{subtask}": item, whole: item}


def acc_plus(items: list[dict]) -> float:
    """Share of images with both questions right; images with a single question do not count."""
    by_image: dict[str, list[float]] = {}
    for item in items:
        by_image.setdefault(item["image"], []).append(item["score"])
    both = [{"score": float(all(scores))} for scores in by_image.values() if len(scores) > 1]
    return documents.mean(both)


def total(items: list[dict]) -> float:
    """Sum over the subtasks of 100 acc + 100 acc+."""
    by_subtask: dict[str, list[dict]] = {}
    for item in items:
        by_subtask.setdefault(item["subtask"], []).append(item)
    return sum(100 * (documents.mean(part) + acc_plus(part)) for part in by_subtask.values())
