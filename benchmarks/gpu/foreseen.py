"""What was predicted of the kernel, for what is measured to be held against.

`python -m benchmarks.predicted --json benchmarks/results/predicted.json` makes the predictions.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping

from benchmarks import timing
from benchmarks.gpu.case import ROOT

FILE = ROOT / "benchmarks" / "results" / "predicted.json"
# Copy bandwidth in bytes per second, as others measured it on the devices of these names.
BANDWIDTH = {"H200": 4.3e12, "H100": 3.0e12}


@functools.cache
def kept() -> Mapping[str, dict]:
    """The whole file: environment, and shapes by name and gate."""
    return json.loads(FILE.read_text())


def foreseen(shape: str) -> dict | None:
    """What was predicted of the dynamic gate at a shape; None where nothing was."""
    found = kept()["shapes"].get(shape)
    return found and found["dynamic"]


def seconds_on(device: str, shape: str) -> float | None:
    """The time predicted of the dynamic gate at a shape; None for other devices and shapes."""
    names = [name for name in BANDWIDTH if re.search(rf"\b{name}\b", device)]
    found = foreseen(shape)
    return found["seconds"][names[0]] if names and found else None


def table() -> str:
    """All predictions, as they stand in the docs."""
    run, rows = kept(), []
    head = ["shape", "KV, MB", "programs", "on an SM", "waves", "instructions a key", "issue, µs",
            *(f"{name}, µs" for name in BANDWIDTH)]  # fmt: skip
    for shape, gates in run["shapes"].items():
        one = gates["dynamic"]
        rows.append([
            shape, f"{one['kv_bytes'] / 1e6:.0f}", str(one["programs"]), str(one["resident"]),
            f"{one['waves']:.2f}", f"{one['loop']['per_key']:.1f}",
            f"{1e6 * one['issue_seconds']:.1f}",
            *(f"{1e6 * one['seconds'][name]:.1f}" for name in BANDWIDTH),
        ])  # fmt: skip
    told = f"Predictions, not measured (triton {run['environment']['triton']}, sm_90):"
    return f"{told}\n\n{timing.table(head, rows)}"
