"""Mathematics about images, with options or without: one accuracy.

For MathVista, MathVerse, MathVision, We-Math, GeoMath and files like theirs. GeoMath's own format
could not be checked: rows with a problem (or question), an answer (or solution) and an image work.
"""

from __future__ import annotations

import re

from vrga.evaluation.scoring import answer, choice, is_option, only_box, same_math
from vrga.evaluation.tasks import documents


def process(doc: dict, results: list[str]) -> dict:
    """The item of `accuracy`. Only a box counts, unless VRGA_BOX says otherwise."""
    box = only_box(default=True)
    said, expected = answer(results[0], box=box), documents.target(doc)
    right = is_right(results[0], expected, documents.options(doc), box=box)
    return {"accuracy": {"score": float(right), "prediction": said, "target": expected}}


def is_right(text: str, expected: str, options: dict[str, str], *, box: bool) -> bool:
    """Whether a text answers a question, by letter, by the option's text, or by its value.

    Args:
        text: the model's output.
        expected: a letter or text of the options, or a value.
        options: letter to text; empty for open questions.
        box: whether only a box counts.
    """
    if not options and re.fullmatch(r"\(?[A-H]\)?\.?", expected):
        options = {letter: "" for letter in "ABCDEFGH"}  # they are in the image
    letter = choice(expected, options)
    if letter is None:
        return same_math(answer(text, box=box), expected)
    return is_option(text, letter, options, box=box)
