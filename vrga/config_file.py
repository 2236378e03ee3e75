"""vrga_config.json: the file that holds a configuration, beside a checkpoint's weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from vrga.lookback import ALIASES
from vrga.ranges import short

FILE = "vrga_config.json"  # a checkpoint's own configuration, beside its weights
_LARGEST = 1 << 20  # bytes of that file, which has some hundreds
_Made = TypeVar("_Made")


def write(given: Mapping[str, object], folder: Path) -> Path:
    """Write fields into a folder's vrga_config.json, whole at any time; returns its path.

    Raises:
        OSError: the folder cannot be written to.
    """
    text = json.dumps(given, indent=1) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    path, draft = folder / FILE, folder / f"{FILE}.new"
    draft.write_text(text, "utf-8")
    draft.replace(path)
    return path


def find(where: str | Path) -> Path:
    """The file that is meant by a folder, a file, a hub id, or a Look-Back checkpoint's short name.

    Raises:
        FileNotFoundError: no such folder or file, or a checkpoint that brings none.
        OSError: a hub id that cannot be reached.
    """
    name = str(where)
    where = ALIASES.get(name.lower(), where)
    given = Path(where)
    path: Path | None = given
    if not name or not os.path.lexists(given):
        local = isinstance(where, Path) or name.startswith((".", "/", "~"))
        if local or str(where).count("/") != 1:
            raise FileNotFoundError(
                f"no configuration at {name!r}: give a folder with {FILE}, such a file, or a "
                "hub id such as Qwen/Qwen2.5-VL-7B-Instruct"
            )
        from vrga.hf.files import hub_file

        path = hub_file(str(where), FILE)
    elif given.is_dir():
        path = given / FILE if os.path.lexists(given / FILE) else None
    if path is None:
        raise FileNotFoundError(
            f"{where} brings no {FILE}: vrga.patch(model) steers with VRGAConfig() then; "
            "config.save_pretrained(folder) writes one"
        )
    return path


def read(path: Path, make: Callable[[dict[str, object]], _Made]) -> _Made:
    """What is made of a file's fields.

    Args:
        make: of fields by their names; raises ValueError for those that it refuses.

    Raises:
        OSError: it cannot be read.
        ValueError: no JSON, or fields that were refused; names the path.
    """
    try:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        if not path.is_file():
            raise ValueError("it is no file")
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST >> 20} MB")
        text = path.read_text("utf-8-sig")
        return make(json.loads(text, object_pairs_hook=once))
    except (ValueError, RecursionError) as error:
        told = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise ValueError(
            f"{path} is no configuration: {told}. Mend it, or write it anew: "
            "config.save_pretrained(folder)"
        ) from error


def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON, whose names must differ: of two values json takes the last in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{short(twice)} stands in it twice")
    return found
