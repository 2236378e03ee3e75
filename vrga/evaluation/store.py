"""A run's folder: what was asked for, and every finished sample, on disk as soon as it is known.

    run.json                what decides the samples' contents, and its hash
    samples.jsonl           one finished sample per line
    samples.RANK.jsonl      the same while several processes write

Killing a run at any time loses at most the line that is being written.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from vrga.config import VRGAConfig
from vrga.evaluation.json_text import whole_characters
from vrga.evaluation.lock import locked

SETTINGS, SAMPLES = "run.json", "samples.jsonl"
_PART = re.compile(r"samples(\.\d+)?\.jsonl")
_NONE, _NUMBER = type(None), (int, float)
# What a finished sample of a question holds at least, and of which types.
ANSWERED: Mapping[str, tuple[type, ...]] = {
    "id": (str, int),
    "arm": (str,),
    "prompt": (str,),
    "text": (str, _NONE),
    "tokens": (int,),
    "seconds": _NUMBER,
    "steered": (bool,),
    "region": (dict, _NONE),
    "score": (*_NUMBER, _NONE),
    "error": (str, _NONE),
}


class Store:
    """The samples of one run.

    Args:
        folder: made if missing.
        settings: what decides the samples' contents: model, tasks, prompt, config, lengths. JSON
            values.
        resume: go on with a run whose settings are the same.
        rank: of this process, where several write; only the first writes the settings.
        ranks: processes of this run.
        fields: what a sample must hold, and of which types, to count as finished.

    Attributes:
        hash: of the settings, hexadecimal; it is part of every sample.
        done: finished samples by key.
        damaged: lines that could not be read; their samples count as not finished.

    Raises:
        ValueError: the folder holds a run and `resume` is False, one with other settings, or one
            whose settings are damaged; `resume` is True and there is none; or another process
            writes into it.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict,
        *,
        resume: bool = False,
        rank: int = 0,
        ranks: int = 1,
        fields: Mapping[str, tuple[type, ...]] | None = None,
    ):
        self.folder, self.rank, self.damaged = Path(folder), rank, 0
        self.fields = fields or {}
        settings = json.loads(json.dumps(settings, sort_keys=True))
        self.hash = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        # Until this is closed, or gone; the other processes of a run do without.
        self._unlock = weakref.finalize(self, os.close, locked(self.folder, rank == 0))
        try:
            if rank == 0:
                self._check(settings, resume)
        except BaseException:
            self._unlock()
            raise
        if resume and self._has(settings):  # of fewer fields, if they came later
            self.hash = read_settings(self.folder)["hash"]
        self.done: dict[str, dict] = {}
        if resume:  # what failed is asked again: its image may have been mended
            for path in parts(self.folder):
                self._read(path)
        name = SAMPLES if ranks == 1 else f"samples.{rank}.jsonl"
        # Unbuffered: after a failed write nothing waits to fail again.
        self._file = open(self.folder / name, "ab", buffering=0)
        if self._file.tell() and not (self.folder / name).read_bytes().endswith(b"\n"):
            self._write(b"\n")  # a line that was cut off must not swallow the next one

    def _check(self, settings: dict, resume: bool) -> None:
        path = self.folder / SETTINGS
        if not path.exists():
            if resume:
                raise ValueError(
                    f"nothing to resume: {self.folder} has no {SETTINGS}; leave out --resume"
                )
            if parts(self.folder):
                raise ValueError(f"{self.folder} holds samples of a run without a {SETTINGS}")
            write_json(path, {"hash": self.hash, "settings": settings})
            return
        if not any(part.stat().st_size for part in parts(self.folder)):
            if resume and self._has(settings):
                return
            write_json(path, {"hash": self.hash, "settings": settings})
            return  # a run that was refused, or stopped before its first answer
        if not resume:
            raise ValueError(
                f"{self.folder} holds a run already: go on with it (--resume), remove it to begin "
                "again, or give another --output where the command has one"
            )
        held, settings = (
            _completed(one) for one in (read_settings(self.folder)["settings"], settings)
        )
        told = differences(held, settings)
        if told:
            raise ValueError(
                f"the run in {self.folder} has other settings ({told}): give the same ones, remove "
                "it to begin again, or give another --output where the command has one"
            )

    def _has(self, settings: dict) -> bool:
        """Whether the folder's run has these settings."""
        try:
            held = read_settings(self.folder)["settings"]
        except ValueError:  # damaged, of a run that was stopped before its first answer
            return False
        return not differences(_completed(held), _completed(settings))

    def _read(self, path: Path, failed: bool = False) -> None:
        """Take the samples of a file into `done`; those that failed only if asked for."""
        samples, damaged = read_samples(path, self.hash, self.fields)
        self.damaged += damaged
        merge(self.done, [one for one in samples if failed or one.get("error") is None])

    def add(self, samples: Iterable[dict]) -> None:
        """Write finished samples, each a dict with a "key"; they are on disk on return.

        Raises:
            OSError: the disk is full, for one; what was written before stays readable.
        """
        samples = [{"config": self.hash, **sample} for sample in samples]
        self._write(b"".join(map(_line, samples)))
        os.fsync(self._file.fileno())
        self.done |= {sample["key"]: sample for sample in samples}

    def _write(self, content: bytes) -> None:
        while content:
            content = content[self._file.write(content) :]

    def finish(self, order: Iterable[str] | None = None) -> list[dict]:
        """Put all samples into one file, each once, and return them.

        Args:
            order: keys in the order wanted; None is that of the keys themselves.
        """
        self._file.close()
        keys = sorted(self.done) if order is None else [key for key in order if key in self.done]
        samples = [self.done[key] for key in keys]
        whole = self.folder / (SAMPLES + ".new")
        whole.write_bytes(b"".join(map(_line, samples)))
        whole.replace(self.folder / SAMPLES)
        for path in parts(self.folder):
            if path.name != SAMPLES:
                path.unlink()
        self.close()
        return samples

    def gather(self) -> None:
        """Read what the other processes wrote, once they are through."""
        held, self.done = self.done, {}
        for path in parts(self.folder):
            self._read(path, failed=True)
        self.done |= held

    def close(self) -> None:
        """Close the file; what was added stays."""
        self._file.close()
        self._unlock()


def _completed(settings: Any) -> Any:
    """Settings in which every configuration has all fields: those that came later have their
    defaults, as when the run was begun."""
    if isinstance(settings, list):
        return [_completed(one) for one in settings]
    if not isinstance(settings, dict):
        return settings
    found = {name: _completed(value) for name, value in settings.items()}
    if {"method", "gain"} <= found.keys():
        found = {field.name: field.default for field in fields(VRGAConfig)} | found
    return found


def read_settings(folder: Path) -> dict:
    """What run.json of a folder holds: "hash" and "settings".

    Raises:
        ValueError: none there, or a damaged one.
    """
    path = Path(folder) / SETTINGS
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found["settings"], dict) or not isinstance(found["hash"], str):
            raise TypeError("settings is no object, or hash no text")
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no run: it has no {SETTINGS}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): the run cannot go on; give "
            "another --output"
        ) from error
    return found


def differences(held: dict, now: dict) -> str:
    """What settings differ in from those of a run, in words; "" where they are the same."""
    other = sorted(name for name in held | now if held.get(name) != now.get(name))
    return "; ".join(f"{name}: {held.get(name)!r}, now {now.get(name)!r}" for name in other)


def parts(folder: Path) -> list[Path]:
    """The files of a run's samples; any other name is a user's own, and is left alone."""
    return sorted(path for path in Path(folder).iterdir() if _PART.fullmatch(path.name))


def read_samples(
    path: Path, hash: str, fields: Mapping[str, tuple[type, ...]] | None = None
) -> tuple[list[dict], int]:
    """The samples of one file that belong to settings of this hash, and the damaged lines.

    Args:
        fields: what a sample must hold, and of which types; one that does not is damaged.
    """
    samples, damaged = [], 0
    for line in path.read_bytes().splitlines():
        try:
            one = json.loads(line)
            if one["config"] != hash:
                continue
            if not isinstance(one["key"], str):
                raise TypeError("key")
            for name, kinds in (fields or {}).items():
                value = one[name]
                if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                    raise TypeError(name)
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(name)
            samples.append(one)
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged += 1
    return samples, damaged


def fingerprint(path: Path | None) -> str | None:
    """What a file holds, hexadecimal, so that a run does not go on with another's questions."""
    return None if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def merge(known: dict[str, dict], samples: Iterable[dict]) -> None:
    """Add samples by their keys; one that failed does not take the place of one that did not."""
    for one in samples:
        if one["key"] not in known or one.get("error") is None:
            known[one["key"]] = one


def write_json(path: Path, content: object) -> None:
    """Write JSON so that the file is whole at any time."""
    new = path.with_name(path.name + ".new")
    new.write_text(
        json.dumps(clean(content), indent=1, sort_keys=True, default=str) + "\n", "utf-8"
    )
    new.replace(path)


def clean(value: object) -> object:
    """JSON has no NaN: None stands for it."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()  # a scalar of numpy or torch
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): clean(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(one) for one in value]
    return value


def _line(sample: dict) -> bytes:
    # A tokenizer may give half a surrogate pair, which is no UTF-8.
    text = whole_characters(json.dumps(clean(sample), ensure_ascii=False, default=str))
    return text.encode() + b"\n"
