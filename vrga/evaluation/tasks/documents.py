"""What the rows of a benchmark hold, whatever their fields are called.

The functions that YAML files name take a row ("doc") and are called by lmms-eval.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from PIL import Image

from vrga.evaluation.options import letter_of_key, read_options
from vrga.images import read_image
from vrga.lookback import last_box

QUESTION = ("question", "problem", "text", "query")
TARGET = ("answer", "gt_answer", "label", "solution", "groundtruth responses", "ground_truth")
IMAGE = (
    "images",
    "image",
    "decoded_image",
    "image_path",
    "img_path",
    "image_name",
    "filename",
    "image_src",
    "url",
)
_ENDING = " Please answer yes or no."  # part of MME's questions, but an instruction
_OPTION = re.compile(r"^\s*\(?([A-Z])[.:)]\s*(.+?)\s*;?\s*$", re.MULTILINE)


def question(doc: dict) -> str:
    """The question alone, without image placeholders and instructions.

    Raises:
        KeyError: no field that holds questions.
    """
    text = re.sub(r"<image\s*\d*>", "", str(_field(doc, QUESTION))).strip()
    return text.removesuffix(_ENDING)


def target(doc: dict) -> str:
    """The expected answer: of a solution, what it boxes or tags as the answer.

    The key of an option under other keys than letters is told as its letter.

    Raises:
        KeyError: no field that holds answers.
    """
    text = str(_field(doc, TARGET)).strip()
    tagged = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
    text = tagged[1].strip() if tagged else text
    boxed = last_box(text)
    return letter_of_key(_given(doc), text if boxed is None else boxed)


def options(doc: dict) -> dict[str, str]:
    """Letter to text of the options; empty for an open question.

    Read from `choices` or `options` (see `read_options`), from `option` ("A. 5; B. 6"), or from the
    question's lines after "Choices:" or "Options:".

    Raises:
        ValueError: options of a form that is not known.
    """
    found = read_options(_given(doc))
    if found:
        return found
    listed = doc.get("option")
    if listed:
        try:
            return read_options(listed)
        except ValueError:  # letters that leave some out
            lettered = re.sub(r";\s*(?=[A-Z]\.)", "\n", str(listed))
            if not _OPTION.search(lettered):
                raise
            return dict(_OPTION.findall(lettered))
    asked = re.split(r"\b(?:Choices|Options):", question(doc), maxsplit=1)
    return dict(_OPTION.findall(asked[1])) if len(asked) == 2 else {}


def text(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    """The prompt: pre_prompt, the question, its options on lines of their own, post_prompt."""
    words = lmms_eval_specific_kwargs or {}
    asked = question(doc)
    # Options that the question itself lists are not repeated.
    if not re.search(r"\b(?:Choices|Options):", asked):
        asked = "\n".join(
            [asked, *(f"{letter}. {named}" for letter, named in options(doc).items())]
        )
    return f"{words.get('pre_prompt', '')}{asked}{words.get('post_prompt', '')}"


def images(doc: dict) -> list[Image.Image]:
    """The images, see `read_image`.

    Raises:
        OSError: an image that is missing or cannot be read; names its file.
        ValueError: an address, which is not fetched.
    """
    found: Any = next((doc[name] for name in IMAGE if doc.get(name) is not None), [])
    values = found if isinstance(found, list) else [found]
    return [read_image(value) for value in values]


def mean(items: list[dict]) -> float:
    """Mean of the scores; those that are NaN are left out, and NaN for none."""
    scores = [item["score"] for item in items if not math.isnan(item["score"])]
    return sum(scores) / len(scores) if scores else math.nan


def _field(doc: dict, names: Sequence[str]):
    for name in names:
        value = doc.get(name)
        absent = value is None or (isinstance(value, float) and math.isnan(value))
        if not absent and str(value).strip():
            return value
    raise KeyError(f"none of {', '.join(names)} among the fields {', '.join(map(str, doc))}")


def _given(doc: dict) -> object:
    """The options as the row holds them."""
    return doc.get("options") if doc.get("choices") is None else doc["choices"]
