"""The options of a multiple-choice question, in whatever form a file gives them."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

_NONE = ("", "none", "null", "nan", "n/a", "[]", "{}")
_FORMS = "a list, an object of letters and texts, or a text with one option a line"
_LETTERED = re.compile(r"\A\s*[(\[]?([A-Z])[.:)\]]+\s*(\S.*?)\s*;?\s*\Z", re.DOTALL)
_IN_A_LINE = re.compile(r"(?:\A|\s|;)[(\[]?([A-Z])[.:)\]]\s*")
_KEY = re.compile(r"\A\s*[(\[]?([A-Za-z])[.:)\]]?\s*\Z")


def read_options(given: object) -> dict[str, str]:
    """Letter to text; empty where there are none.

    Args:
        given: a list of texts; an object, letter -> text, or under other keys, which are then
            lettered in order; two lists under "label" and "text"; or a text of these: JSON, a
            Python literal, lettered ("A. red B. blue"), one option a line, or between semicolons.

    Raises:
        ValueError: another form, more options than letters, or one without a text.
    """
    if _missing(given):
        return {}
    if isinstance(given, str):
        return _from_text(given)
    if isinstance(given, Mapping):
        return _from_object(given)
    if hasattr(given, "tolist"):
        given = given.tolist()  # as pyarrow and NumPy hold lists
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"choices {given!r}: give {_FORMS}")
    return _from_list(given)


def letter_of_key(given: object, answer: str) -> str:
    """An answer that is the key of an option under other keys than letters, as its letter.

    Any other answer is returned as it is.
    """
    if isinstance(given, str) and given.lstrip().startswith("{"):
        given = _literal(given)
    if not isinstance(given, Mapping) or set(map(_key, given)) <= set(ascii_uppercase):
        return answer
    keys = [str(key).strip() for key, text in given.items() if not _missing(text)]
    known = dict(zip(keys, ascii_uppercase, strict=False))
    return known.get(answer.strip(), answer)


def _from_text(text: str) -> dict[str, str]:
    found = _literal(text)
    if isinstance(found, (list, tuple, Mapping)):
        return read_options(found)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1:
        return _from_list(lines)
    # "A. red B. blue", with or without semicolons between them
    marks = list(_IN_A_LINE.finditer(text))
    if [mark[1] for mark in marks] == list(ascii_uppercase[: len(marks)]) and len(marks) > 1:
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        parts = [text[m.end() : end].strip(" ;,") for m, end in zip(marks, ends, strict=True)]
        return _from_list(parts)
    parts = [part.strip() for part in text.split(";") if part.strip()]
    if len(parts) < 2:
        raise ValueError(f"choices {text!r} is one text: give {_FORMS}")
    return _from_list(parts)


def _from_object(given: Mapping) -> dict[str, str]:
    labels = next((given[k] for k in ("label", "labels", "key", "keys") if k in given), None)
    texts = next((given[k] for k in ("text", "texts", "value", "values") if k in given), None)
    if isinstance(labels, Sequence) and isinstance(texts, Sequence):
        if not isinstance(labels, str) and not isinstance(texts, str):
            if len(labels) != len(texts):
                raise ValueError(f"choices: {len(labels)} labels of {len(texts)} texts")
            return _from_object(dict(zip(map(str, labels), texts, strict=True)))
    # A table with a column for each letter says null where a question has fewer options.
    given = {key: text for key, text in given.items() if text is not None}
    letters = [letter for key in given if (letter := _key(key)) is not None]
    if len(letters) < len(given):
        return _from_list(list(given.values()))
    if len(set(letters)) < len(letters):
        raise ValueError(f"choices: a letter stands twice among {', '.join(map(str, given))}")
    return dict(zip(letters, map(_text, given.values()), strict=True))


def _from_list(given: Sequence) -> dict[str, str]:
    if len(given) > len(ascii_uppercase):
        raise ValueError(f"{len(given)} choices; at most {len(ascii_uppercase)}")
    texts = [_text(text) for text in given]
    marks = [mark for text in texts if (mark := _LETTERED.match(text))]
    if len(texts) > 1 and [mark[1] for mark in marks] == list(ascii_uppercase[: len(texts)]):
        texts = [mark[2] for mark in marks]  # they bring the letters that are put before them
    return dict(zip(ascii_uppercase, texts, strict=False))


def _text(given: object) -> str:
    if isinstance(given, Mapping):  # {"label": "A", "text": "red"}
        given = next((given[k] for k in ("text", "value", "content") if k in given), None)
    if _missing(given, words=False) or not isinstance(given, (str, int, float)):
        raise ValueError(f"choices: {given!r} is no text of an option")
    return str(given)


def _key(key: object) -> str | None:
    """The letter that a key is, A to Z; None for another key."""
    found = _KEY.match(str(key))
    return found[1].upper() if found else None


def _missing(given: object, *, words: bool = True) -> bool:
    if given is None or (isinstance(given, float) and math.isnan(given)):
        return True
    if isinstance(given, str):
        return not given.strip() or (words and given.strip().lower() in _NONE)
    return words and hasattr(given, "__len__") and not len(given)


def _literal(text: str) -> object:
    """What a text says as JSON or as Python writes it; None where it is neither."""
    if not text.lstrip().startswith(("[", "{", "(")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None
