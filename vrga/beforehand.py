"""What can be refused before anything heavy is imported, loaded or asked: paths and names.

The names are those of modules that import torch; tests hold the two equal.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

WORDS = "trace.json"  # of a trace's folder, written last
_OF_TRACES = re.compile(r"trace\.safetensors(\.mode)?|image-\d+-\d+\.png")
PROMPTS = ("direct", "cot", "back")
SPLITS = ("clean", "noise", "similar", "crowded", "large", "long", "vast")
HARD = "similar"  # drawn unless another is asked for: on "clean" the embedded model is never wrong
CHAIN_SPLITS = ("chain", "chain-small")
FINE_SPLITS = ("fine-easy", "fine-hard", "fine-photos", "fine-stamps")
STEERINGS = (
    "off", "always", "back", "back+relocate", "uncertain", "uncertain+relocate",
    "zoom", "back+zoom", "back+zoom-by-question",
)  # fmt: skip
OF_LOOKBACK = STEERINGS[:4]  # compared unless others are asked for
SELECTIONS = ("step", "prefill")
SEEDS = 90  # of questions drawn for an analysis
STYLES = ("direct", "cot", "semantic", "solution")
# What matplotlib writes by a path's ending; without one it is PNG.
PICTURES = (
    "", ".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".eps", ".ps", ".svgz",
)  # fmt: skip


def check_known(option: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise ValueError for a name that is not known, or for none."""
    given = list(given)
    other = [name for name in given if name not in known]
    if other or not given:
        raise ValueError(f"{option} {', '.join(other) or '(none)'}: known are {', '.join(known)}")


def check_split(split: str, known: Sequence[str] = SPLITS) -> None:
    """Raise ValueError for a split of drawn questions that is not known."""
    if split not in known:
        raise ValueError(f"split {split!r}: known are {', '.join(known)}")


def check_chain(split: str | None, model: str | None) -> None:
    """Raise ValueError for questions of two looks without a model that knows them."""
    if model is None and split is not None and not set(split.split("+")).isdisjoint(CHAIN_SPLITS):
        raise ValueError(
            f"--split {split}: the embedded model was not trained on questions of two looks: give "
            "--model chain, or what was trained from it"
        )


def drawn_split(split: str | None, data: Path | None) -> str:
    """The split that was asked for, else `HARD`; a file's questions are of none ("clean")."""
    if split is not None:
        return split
    return "clean" if data is not None else HARD


def check_style(style: str) -> None:
    """Raise ValueError for what is neither a style nor a template with {question}."""
    if style not in STYLES and "{question}" not in style:
        raise ValueError(
            f"--style {style}: known are {', '.join(STYLES)}, or a text with {{question}}"
        )


def check_folder(path: Path, option: str) -> None:
    """Raise OSError unless files can be written into a folder, which need not be there yet."""
    path = Path(path)
    try:
        made = [part for part in (path, *path.parents) if not os.path.lexists(part)]
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _told(error, f"{option} {path} cannot be a folder") from error
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise _told(error, f"{option} {path} cannot be written to") from error
    finally:
        for part in made:  # left as it was found, should something else be refused
            with contextlib.suppress(OSError):
                part.rmdir()


def check_file(path: Path, option: str, endings: Sequence[str] | None = None) -> None:
    """Raise OSError unless a file can be written, ValueError for an ending that is not known."""
    path = Path(path)
    if endings is not None and path.suffix.lower() not in endings:
        raise ValueError(f"{option} {path}: a picture ends in {', '.join(x for x in endings if x)}")
    if path.is_dir():
        raise IsADirectoryError(f"{option} {path} is a folder: give a file")
    check_folder(path.parent, option)
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{option} {path} may not be written")


def check_readable(path: Path | None, option: str, *, folder: bool = False) -> None:
    """Raise OSError unless a file, or a folder, is there and can be read; None is none."""
    if path is None:
        return
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{option} {path} does not exist")
    if path.is_dir() != folder:
        kinds = ("a file", "a folder") if folder else ("a folder", "a file")
        raise OSError(f"{option} {path} is {kinds[0]}: give {kinds[1]}")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{option} {path} may not be read")


def check_trace_folder(path: Path) -> None:
    """Raise ValueError where a trace cannot be written: a file, or a folder of something else."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: give a folder for the trace")
    if path.is_dir() and not (path / WORDS).exists():
        # A trace whose writing was cut short has no words yet.
        if any(not _OF_TRACES.fullmatch(other.name) for other in path.iterdir()):
            raise ValueError(f"the folder {path} holds other files: give an empty or a new one")


def _told(error: OSError, what: str) -> OSError:
    """The same kind of error, with what it is about."""
    return type(error)(error.errno, f"{what}: {error.strerror or error}")
