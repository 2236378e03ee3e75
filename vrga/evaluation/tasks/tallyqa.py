"""TallyQA: counting; accuracy on simple and on complex questions."""

from __future__ import annotations

from vrga.evaluation.scoring import number, only_box
from vrga.evaluation.tasks import documents


def process(doc: dict, results: list[str]) -> dict:
    """Items over all questions and over those of the question's kind."""
    said = number(results[0], box=only_box(default=False))
    expected = float(documents.target(doc))
    item = {"score": float(said == expected), "prediction": said, "target": expected}
    simple = str(doc["issimple"]).lower() in ("true", "1")
    return {"accuracy": item, "accuracy_simple" if simple else "accuracy_complex": item}
