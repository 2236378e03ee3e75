"""Clocks, the record of where a figure was measured, and how figures are told."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def environment() -> dict[str, str | int]:
    """Device, versions and commit, for every result file."""
    found: dict[str, str | int] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "commit": _commit(),
    }
    for package in ("torch", "triton", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def write(path: Path | None, figures: Mapping[str, object]) -> None:
    """Keep what was measured, with where it was; without a path nothing."""
    if path is not None:
        found = {"environment": environment(), **figures}
        path.write_text(json.dumps(found, indent=1) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit measured, marked where the tree differs from it; "unknown" outside git."""
    run = dict(cwd=ROOT, capture_output=True, text=True)
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **run)
    except FileNotFoundError:  # no git at all
        head = None
    if head is None or head.returncode:
        return os.environ.get("VRGA_COMMIT", "unknown")
    changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **run).stdout.strip()
    return head.stdout.strip() + ("-changed" if changed else "")


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call, the device's work included."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def summary(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": quartiles[1], "low": quartiles[0], "high": quartiles[2], "n": len(values)}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of a page."""
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def spread(value: Mapping[str, float]) -> str:
    """A ratio with its quartiles."""
    return f"{value['median']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def both(value: Mapping[str, float]) -> str:
    """A ratio with its quartiles, and that of the fastest."""
    return f"{spread(value)}; {value['fastest']:.3f}"


def compared(patched: list[float], base: list[float]) -> dict[str, float]:
    """Pair by pair, and the fastest over the fastest: other programs only ever add to a time."""
    return ratio(patched, base) | {"fastest": min(patched) / min(base)}


def ratio(patched: list[float], base: list[float]) -> dict[str, float]:
    """Patched over unpatched, pair by pair: rounds that ran beside each other."""
    return summary([p / b for p, b in zip(patched, base, strict=True)])
