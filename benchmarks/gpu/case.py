"""One thing to measure, and the stages in which such things are measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNELS, PLUGIN = ("kernels",), ("kernels", "vrga")


@dataclass(frozen=True)
class Case:
    """One measurement, made in a process of its own kind.

    Args:
        id: its name in the store; a case that means something else gets another one.
        group: the table that it belongs to.
        call: "module:function", called in a worker; what it returns must go into JSON.
        arguments: of the call, by name.
        estimate: seconds that it should take on an H100, its worker being ready.
        limit: seconds after which it is given up as hanging.
        worker: cases of one name share a process, and so a CUDA context and a model.
        sources: folders whose code it measures; when that changes, it is measured anew.
    """

    id: str
    group: str
    call: str
    arguments: dict = field(default_factory=dict)
    estimate: float = 5
    limit: float = 60
    worker: str = "kernel"
    sources: tuple[str, ...] = PLUGIN


@dataclass(frozen=True)
class Stage:
    """Cases that belong together, in order of worth.

    Args:
        lanes: how many workers take them side by side; 1 wherever time is measured.
        setup: seconds until a worker is ready for its first case: imports, context, weights.
    """

    name: str
    cases: tuple[Case, ...]
    lanes: int = 1
    setup: float = 10


@cache
def digest(folders: tuple[str, ...], root: Path = ROOT) -> str:
    """12 hexadecimal digits that change with any Python file of these folders.

    vrga/kernels is left out: it is kernels/ again, as a link or, where links do not travel, a copy.
    """
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            if root / "vrga" / "kernels" in path.parents:
                continue
            found.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:12]


def check(stages: Iterable[Stage]) -> None:
    """Raise ValueError for two cases of one id."""
    seen: set[str] = set()
    for case in (case for stage in stages for case in stage.cases):
        if case.id in seen:
            raise ValueError(f"two cases are called {case.id!r}; an id names one case")
        seen.add(case.id)
