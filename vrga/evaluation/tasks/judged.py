"""Free answers, scored by a judge of the user's: MMHal-Bench and HaloQuest.

The environment variable VRGA_JUDGE names the judge as "module:function" of a module that is
installed or lies in the working folder: a callable
(question, target, prediction) -> float. For MMHal it gives 0 to 6, where less than 3 means
hallucination; for HaloQuest 0 to 1; for RH-Bench 0 to 5, where more than 2 is right. Without a
judge there are predictions only, and the metric `judge` says so.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

from vrga.evaluation.scoring import answer, only_box
from vrga.evaluation.tasks import documents

JUDGE = "VRGA_JUDGE"
NO_JUDGE = "no judge: predictions only"
Judge = Callable[[str, str, str], float]


def load_judge(name: str | None = None) -> Judge | None:
    """The judge by its name, or the one in VRGA_JUDGE; None for none.

    Raises:
        ValueError: not "module:function", or nothing callable there.
    """
    name = os.environ.get(JUDGE) if name is None else name
    if not name:
        return None
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    # `python -m` looks into the working folder, the command `vrga` does not. Last, so that nothing
    # there takes the place of an installed module.
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        judge = getattr(importlib.import_module(module), function)
    except Exception as error:  # a judge is somebody's program
        raise ValueError(f"{JUDGE} is {name!r}, not module:function of a judge: {error}") from error
    if not callable(judge):
        raise ValueError(f"{JUDGE} is {name!r}, which cannot be called")
    return judge


def text(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    """The prompt. A judge that cannot be loaded shows here, before anything is generated."""
    load_judge()
    return documents.text(doc, lmms_eval_specific_kwargs)


def process(doc: dict, results: list[str]) -> dict:
    """The item of `judge` and, where there is one, of `score`."""
    item = opinion(doc, results[0])
    return {"judge": item, "score": item} if item["judge"] else {"judge": item}


def process_mmhal(doc: dict, results: list[str]) -> dict:
    """The same, and the item of `hallucination_rate`."""
    items = process(doc, results)
    return items | ({"hallucination_rate": items["score"]} if "score" in items else {})


def opinion(doc: dict, text: str) -> dict:
    """What the judge says: score is NaN without one, and where it fails."""
    said = answer(text, box=only_box(default=False)) or ""
    judge, score = load_judge(), math.nan
    if judge is not None:
        try:
            score = float(judge(documents.question(doc), documents.target(doc), said))
        except Exception as error:  # a judge is somebody's program or network; the run goes on
            logging.getLogger(__name__).warning("not judged: %r", error)
    return {
        "score": score,
        "prediction": said,
        "target": documents.target(doc),
        "judge": os.environ.get(JUDGE) if judge else None,
    }


def coverage(items: list[dict]) -> str:
    """Who judged how many answers, in words."""
    name = items[0]["judge"]
    judged = sum(not math.isnan(item["score"]) for item in items)
    return f"{name}: {judged} of {len(items)} judged" if name else NO_JUDGE


def hallucination_rate(items: list[dict]) -> float:
    """Share of scores below 3 among the judged answers."""
    scores = [item["score"] for item in items if not math.isnan(item["score"])]
    return sum(score < 3 for score in scores) / len(scores) if scores else math.nan
