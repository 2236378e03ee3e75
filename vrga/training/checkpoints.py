"""Checkpoints of TRL's trainers, made to load and to be gone on from; and the room they take."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from vrga.config_file import FILE
from vrga.evaluation.json_text import read_object
from vrga.evaluation.store import write_json
from vrga.hf.chosen_config import own_file
from vrga.hf.files import EMBEDDED, embedded
from vrga.hf.processors import save_processor

MODEL, WHOLE = "model", "whole.json"  # the model at the end; written when a checkpoint is whole


def complete(where: Path, processor, base: str | None) -> None:
    """Make what a trainer saved a checkpoint that loads: processor, cache, configuration of VRGA.

    Args:
        base: the checkpoint that it comes from.
    """
    save_processor(processor, where)
    config = where / "config.json"
    if config.exists():
        found = json.loads(config.read_text("utf-8"))
        for part in (found, found.get("text_config") or {}):
            part.pop("use_cache", None)  # off while it was trained; answers need their cache
        config.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", "utf-8")
    own = own_file(embedded(base) if base in EMBEDDED else base)
    if own is not None:
        shutil.copy(own, where / FILE)


def mark_whole(where: Path) -> None:
    """Say that a checkpoint is whole, and how large each of its files is."""
    files = (path for path in where.rglob("*") if path.is_file() and path.name != WHOLE)
    sizes = {str(path.relative_to(where)): path.stat().st_size for path in files}
    write_json(where / WHOLE, {"step": step_of(where), "sizes": sizes})


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a stage, or None."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{WHOLE}")]
    return max(filter(_is_whole, found), key=step_of, default=None)


def _is_whole(checkpoint: Path) -> bool:
    """Whether every file is as large as it was; one that was cut short since is never read."""
    try:
        sizes = read_object(checkpoint / WHOLE, "").get("sizes", {})  # older ones have none
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def is_last(checkpoint: Path) -> bool:
    """Whether a checkpoint is of the last step of its training."""
    state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    return state["global_step"] >= state["max_steps"]


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was saved at."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def check_room(folder: Path, model: torch.nn.Module) -> None:
    """Refuse to begin a checkpoint that the disk cannot hold.

    Raises:
        OSError: the disk is full, with how much is needed.
    """
    weights = sum(_count(p) * p.element_size() for p in model.parameters())
    moments = sum(8 * _count(p) for p in model.parameters() if p.requires_grad)
    free = shutil.disk_usage(folder).free
    if free < weights + moments:
        raise OSError(
            errno.ENOSPC,
            f"a checkpoint takes {(weights + moments) / 1e9:.2f} GB, and {folder} has "
            f"{free / 1e9:.2f} GB left: make room",
        )


def _count(parameter: torch.nn.Parameter) -> int:
    """Its numbers, also where ZeRO-3 has put them elsewhere."""
    return getattr(parameter, "ds_numel", parameter.numel())


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """What libraries say of a full disk, as the error that it is."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and "No space left" in str(error):
            raise OSError(errno.ENOSPC, f"the disk is full: {error}") from error
        raise
