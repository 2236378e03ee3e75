"""Text and JSON that others wrote: byte order marks, surrogates, depth."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path

from vrga.config_file import once

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 where it begins with the mark of that.

    Raises:
        OSError: no such file.
        ValueError: another encoding.
    """
    content = Path(path).read_bytes()
    return content.decode(next((_MARKS[m] for m in _MARKS if content.startswith(m)), "utf-8"))


def parsed(text: str) -> object:
    """JSON, in which half a surrogate pair, which no tokenizer and no file takes, is U+FFFD.

    Raises:
        ValueError: no JSON, or an object with a field twice, of which Python would take the last.
    """
    try:
        return _whole(json.loads(text, object_pairs_hook=once))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_object(path: Path, advice: str) -> dict:
    """An object in a JSON file of a run.

    Args:
        advice: what to do where it is damaged.

    Raises:
        OSError: no such file. ValueError: a damaged one.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"{type(found).__name__} in the place of an object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): {advice}") from error
    return found


def whole_characters(text: str) -> str:
    """A text with U+FFFD for each half of a surrogate pair."""
    return _SURROGATE.sub("\ufffd", text)


def _whole(value: object) -> object:
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, dict):
        return {whole_characters(key): _whole(one) for key, one in value.items()}
    return [_whole(one) for one in value] if isinstance(value, list) else value
