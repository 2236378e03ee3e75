"""Two texts side by side, with the words marked in which they differ."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from html import escape


def marked_words(first: str, second: str) -> tuple[str, str]:
    """Two texts as HTML, each with the words marked that the other does not have there.

    What they begin and end with alike is left out of the search, and words that come again and
    again are not its anchors: in a text that repeats itself it would take minutes.
    """
    words = [re.findall(r"\s+|\S+", text) for text in (first, second)]
    start = alike(*words)
    rest = [side[start:] for side in words]
    end = alike(*(side[::-1] for side in rest))
    first_rest, second_rest = (side[: len(side) - end] for side in rest)
    marked = [[escape("".join(side[:start]))] for side in words]
    matcher = difflib.SequenceMatcher(None, first_rest, second_rest)
    for kind, *ends in matcher.get_opcodes():
        pieces = first_rest[ends[0] : ends[1]], second_rest[ends[2] : ends[3]]
        for side, piece in zip(marked, map("".join, pieces), strict=True):
            same = kind == "equal" or not piece.strip()
            side.append(escape(piece) if same else f"<mark>{escape(piece)}</mark>")
    last = escape("".join(rest[0][len(rest[0]) - end :]))
    return "".join([*marked[0], last]), "".join([*marked[1], last])


def alike(first: Sequence[str], second: Sequence[str]) -> int:
    """How many words, or letters, two texts begin with in common."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
