"""What stands around a place in a text: its clause, its sentence, the words behind it."""

from __future__ import annotations

import re

from vrga.evaluation.letter_patterns import MAYBE

_NEAR = 300  # characters before a statement that decide whether it is one


def behind(text: str, start: int) -> str:
    """What is said from a place on: the rest of its line, or the next one where that is empty."""
    rest = text[start:].lstrip(" \t*_\"'“”:")
    return rest.lstrip() if rest.startswith("\n") else rest


def clause(text: str, end: int) -> str:
    """The words before a place, back to a comma or the sentence's beginning."""
    return re.split(
        r"[.,;:!?\n。，；]|\b(?:but|so|therefore|thus|hence)\b", text[max(0, end - _NEAR) : end]
    )[-1]


def supposed(text: str, cue: re.Match) -> bool:
    """Whether a statement is a supposition or a question."""
    sentence = re.split(r"[.;!?\n]", text[max(0, cue.start() - _NEAR) : cue.start()])[-1]
    said = f"{sentence} {cue[0]}"
    if re.search(MAYBE, said, re.IGNORECASE) or (
        re.search(r"\bthink|\bsay\b|\bsays\b|\bclaim", sentence, re.IGNORECASE)
        and re.search(r"\b(?:one|some|people|someone|many|you)\b", sentence, re.IGNORECASE)
    ):
        return True
    rest = re.split(r"[.;!\n]", text[cue.end() :])[0]
    return sentence_end(text, cue.end()) == "?" or bool(re.search(r"\bif\b", rest, re.IGNORECASE))


def sentence_end(text: str, start: int) -> str:
    """What ends the sentence that a place is in; "" where nothing does."""
    found = re.search(r"[.;!?\n]", text[start:])
    return found[0] if found else ""


def after_but(tail: str) -> str | None:
    """ "not A but B": B."""
    found = re.match(r"[^.!?\n]*?\b(?:but(?:\s+rather)?|rather|instead)\b[\s,:]*", tail, re.I)
    return tail[found.end() :] if found and not re.search("than", found[0]) else None
