"""HallusionBench without a judge: yes or no is read from the answer.

aAcc is over questions; fAcc over figures, right when all questions about the figure are; qAcc over
questions that are asked about several figures, right when all of these are. Only the questions
with a figure are asked (951 of 1129), as in the hub's split `image`.
"""

from __future__ import annotations

from vrga.evaluation.scoring import only_box, yes_no
from vrga.evaluation.tasks import documents


def has_figure(doc: dict) -> bool:
    """Whether a row of HallusionBench.json comes with a figure."""
    return bool(doc.get("filename")) or str(doc.get("visual_input", "1")) != "0"


def target(doc: dict) -> str:
    """yes or no: the field says 1 or 0."""
    return "yes" if str(doc["gt_answer"]).strip().lower() in ("1", "yes") else "no"


def process(doc: dict, results: list[str]) -> dict:
    """Items of all three, with the figure and the question they belong to."""
    said = yes_no(results[0], box=only_box(default=False))
    expected = target(doc) == "yes"
    right = said == expected
    place = "_".join(str(doc[name]) for name in ("category", "subcategory", "set_id"))
    item = {
        "prediction": said,
        "target": expected,
        "right": right,
        "figure": f"{place}_{doc['figure_id']}",
        "question": f"{place}_{doc['question_id']}",
    }
    return {"aAcc": {**item, "score": float(right)}, "fAcc": item, "qAcc": item}


def per_figure(items: list[dict]) -> float:
    """Share of figures with all questions right."""
    return _all_right(items, "figure")


def per_question(items: list[dict]) -> float:
    """Share of questions that are right about all their figures."""
    return _all_right(items, "question")


def _all_right(items: list[dict], group: str) -> float:
    right: dict[str, bool] = {}
    for item in items:
        right[item[group]] = right.get(item[group], True) and item["right"]
    return documents.mean([{"score": float(value)} for value in right.values()])
