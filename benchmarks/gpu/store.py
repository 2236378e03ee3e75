"""Results, one JSON object a line, each on the disk before the next case begins."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.gpu.case import Case, digest

FILE = "lines.jsonl"
PROFILES = "profiles.txt"
OUTPUT = "VRGA_GPU_OUTPUT"  # variable of workers: the folder of the lines
STATES = ("done", "failed", "timeout")


class Store:
    """The lines of one folder, open for appending by one process alone.

    A line that was being written when a run was killed is dropped; its case is measured again.

    Raises:
        BlockingIOError: another run writes there.
        ValueError: a line, other than such a last one, that is no result.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            whole = self.path.read_bytes().rfind(b"\n") + 1
            os.ftruncate(self._file, whole)
            self.lines = read(self.path)
        except BlockingIOError as error:
            self.close()
            told = f"another run writes to {self.path}; let it end, or give another folder"
            raise BlockingIOError(told) from error
        except ValueError:
            self.close()
            raise

    def append(self, line: dict) -> None:
        """Write a result, so that it outlives this process and this machine's next second."""
        text = (json.dumps(line, allow_nan=False) + "\n").encode()
        os.write(self._file, text)
        os.fsync(self._file)
        self.lines.append(line)

    def close(self) -> None:
        """Let others write."""
        os.close(self._file)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read(path: Path) -> list[dict]:
    """All whole lines of a file; a half-written last one is passed over.

    Raises:
        ValueError: a whole line that is no result.
    """
    text = path.read_text()
    lines = []
    for number, one in enumerate(text.split("\n")[:-1], 1):
        try:
            line = json.loads(one)
            if line["status"] not in STATES:
                raise ValueError(f"its status is {line['status']!r}, not one of {STATES}")
            key(line)
        except (ValueError, KeyError, TypeError) as error:
            told = f"{path}, line {number} is no result of this program: {error}"
            raise ValueError(told) from error
        lines.append(line)
    return lines


def key(line: dict) -> tuple:
    """What was measured, on what, of which code: two lines with one key say the same twice."""
    return line["id"], *where(line), line["sources"]


def where(line: dict) -> tuple:
    """Device and versions of a line."""
    return line["kind"], line["device"], tuple(sorted(line["versions"].items()))


def newest(lines: Sequence[dict]) -> list[dict]:
    """The last line of every case on every device and set of versions, whatever its commit."""
    last: dict[tuple, dict] = {}
    for line in lines:
        name = key(line)[:-1]  # without the sources
        last.pop(name, None)
        last[name] = line
    return list(last.values())


def identity(case: Case, here: dict) -> dict:
    """What every line of a case says beside its result."""
    return {
        "id": case.id,
        "group": case.group,
        "kind": here["kind"],
        "device": here["device"],
        "versions": here["versions"],
        "commit": here["commit"],
        "sources": digest(case.sources),
    }


def finished(lines: list[dict], here: dict, again: bool = False) -> set[tuple]:
    """Keys of what need not be measured again.

    Args:
        again: whether what failed or hung is to be tried once more.
    """
    return {key(line) for line in lines if line["status"] == "done" or not again}


def gathered(folders: Iterable[Path]) -> list[dict]:
    """All lines of some folders, each once, oldest first.

    Raises:
        ValueError: a line of a CPU, which proves the program and says nothing of speed; a file
            that is not of this program.
        OSError: a folder without lines.
    """
    lines: dict[str, dict] = {}
    for folder in folders:
        for number, line in enumerate(read(folder / FILE), 1):
            if line["kind"] != "cuda":
                raise ValueError(
                    f"{folder / FILE}, line {number} ({line['id']}) was measured on "
                    f"{line['device']}; only lines of a GPU stand beside each other in the docs: "
                    "leave that folder out"
                )
            lines.setdefault(json.dumps(line, sort_keys=True), line)
    return sorted(lines.values(), key=lambda line: line["at"])
