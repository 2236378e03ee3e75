"""Two texts side by side, with the words marked in which they differ."""

from __future__ import annotations

import difflib
import os
import re
from html import escape


def marked_words(first: str, second: str) -> tuple[str, str]:
    """Two texts as HTML, each with the words marked that the other does not have there.

    What they begin and end with alike is left out of the search, and words that come again and
    again are not its anchors: in a text that repeats itself it would take minutes.
    """
    words = [re.findall(r"\s+|\S+", text) for text in (first, second)]
    start = len(os.path.commonprefix(words))
    rest = [side[start:] for side in words]
    end = len(os.path.commonprefix([side[::-1] for side in rest]))
    middles = [side[: len(side) - end] for side in rest]
    found = ([escape("".join(words[0][:start]))], [escape("".join(words[1][:start]))])
    for kind, *ends in difflib.SequenceMatcher(None, *middles).get_opcodes():
        for side, (low, high) in enumerate((ends[:2], ends[2:])):
            text = escape("".join(middles[side][low:high]))
            same = kind == "equal" or not text.strip()
            found[side].append(text if same else f"<mark>{text}</mark>")
    last = escape("".join(rest[0][len(rest[0]) - end :]))
    return "".join([*found[0], last]), "".join([*found[1], last])
