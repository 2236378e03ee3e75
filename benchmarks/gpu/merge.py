"""Lines of GPU runs, brought together in benchmarks/results/gpu, and the pages made anew."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.case import KERNELS, PLUGIN, ROOT, digest
from benchmarks.gpu.store import FILE, PROFILES, gathered, newest
from benchmarks.gpu.tables import PICTURES, figure

KEPT = ROOT / "benchmarks" / "results" / "gpu"


def named(line: dict, commit: str) -> dict:
    """A line with its commit, if it was measured without git and its sources are those here."""
    unnamed = line["commit"].startswith("sources ")
    if unnamed and line["sources"] in (digest(KERNELS), digest(PLUGIN)):
        return line | {"commit": commit}
    return line


def merge(folders: Sequence[Path], kept: Path = KEPT, pictures: Path = PICTURES) -> list[str]:
    """Add the lines of folders to `kept`, make pages and figures anew; what was done, in words.

    Raises:
        ValueError, OSError: as of `store.gathered`; nothing is written then.
    """
    from benchmarks import table
    from benchmarks.timing import environment

    before = [kept] if (kept / FILE).exists() else []
    commit = str(environment()["commit"])
    lines = [named(line, commit) for line in gathered([*before, *folders])]
    lines = list({json.dumps(line, sort_keys=True): line for line in lines}.values())
    kept.mkdir(parents=True, exist_ok=True)
    (kept / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    for folder in folders:
        if (folder / PROFILES).exists() and folder != kept:
            (kept / PROFILES).write_text((folder / PROFILES).read_text())
    done = [f"{len(lines)} lines in {kept / FILE}"]
    done += [f"wrote {path}" for path in figure(newest(lines), pictures)]
    return done + [f"wrote {path}" for path in table.renew()]
