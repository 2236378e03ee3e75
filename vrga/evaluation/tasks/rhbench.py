"""RH-Bench: reasoning and perception, with options or free.

Its files could not be read here. Its authors' evaluation reads question, answer, question_type
("multi_choice" or "free_form") and options; that a field `task` says "reasoning" or "perception"
is an assumption. Free perception answers need a judge (0 to 5, right above 2); RH-AUC compares
several lengths of reasoning and is not computed.
"""

from __future__ import annotations

import math

from vrga.evaluation.scoring import answer, only_box
from vrga.evaluation.tasks import documents
from vrga.evaluation.tasks.judged import opinion
from vrga.evaluation.tasks.maths import is_right


def process(doc: dict, results: list[str]) -> dict:
    """Items of `accuracy`, of the task's own accuracy, and of `judge` for what needs one."""
    task = str(doc.get("task") or "").lower()
    if task == "perception" and doc.get("question_type") == "free_form":
        item = opinion(doc, results[0])
        judged = {"judge": item}
        if math.isnan(item["score"]):
            return judged
        item = {**item, "score": float(item["score"] > 2)}
    else:
        judged, box = {}, only_box(default=False)
        expected = documents.target(doc)
        right = is_right(results[0], expected, documents.options(doc), box=box)
        said = answer(results[0], box=box)
        item = {"score": float(right), "prediction": said, "target": expected}
    own = {f"accuracy_{task}": item} if task in ("reasoning", "perception") else {}
    return {**judged, "accuracy": item, **own}
