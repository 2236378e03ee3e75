"""Where the time of a decode step goes: torch.profiler's table, and Nsight Compute's counters."""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.case import ROOT
from benchmarks.gpu.generation import model_of, patched, prompt, step_of
from benchmarks.gpu.store import OUTPUT, PROFILES
from benchmarks.shapes import sharing

ROWS = 30  # of a table
METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "smsp__inst_executed.sum",
    "launch__registers_per_thread",
    "launch__grid_size",
)


@torch.no_grad()
def step(*, shape: str, side: int, arm: str, steps: int = 4) -> dict:
    """Profile decode steps of one arm; the tables go to profiles.txt beside the lines.

    Returns:
        Of one step: microseconds of the device and of the host, launches, and the kernels that
        take longest (name, microseconds, launches).
    """
    plain = model_of(shape)
    (model,) = sharing(plain, (arm,)).values()
    gpu = torch.cuda.is_available()
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu
    with patched(model, arm):
        one = step_of(model, prompt(model, 1, side))
        for _ in range(3):
            one()
        with profile(activities=kinds) as measured:
            for _ in range(steps):
                one()
            if gpu:
                torch.cuda.synchronize()
    events = measured.key_averages()
    sort = "self_device_time_total" if gpu else "self_cpu_time_total"
    table = events.table(sort_by=sort, row_limit=ROWS, max_name_column_width=70)
    with (Path(os.environ[OUTPUT]) / PROFILES).open("a") as file:
        file.write(f"\n{shape}, {side} x {side} image tokens, {arm}, {steps} steps\n{table}\n")
    kernels = [e for e in events if e.device_type == DeviceType.CUDA]
    kernels.sort(key=lambda e: -e.self_device_time_total)
    return {
        "device_microseconds": sum(e.self_device_time_total for e in kernels) / steps,
        "host_microseconds": sum(
            e.self_cpu_time_total for e in events if not e.key.endswith("Synchronize")
        )
        / steps,
        "launches": sum(e.count for e in kernels) / steps,
        "kernels": [
            [e.key[:80], e.self_device_time_total / steps, e.count / steps] for e in kernels[:12]
        ],
    }


def counters(*, heads: int, kv_heads: int, batch: int, keys: int) -> dict:
    """Nsight Compute's counters of our kernels at one shape, clocks left alone.

    Raises:
        RuntimeError: ncu is not there, or read nothing; says what it said.
    """
    tool = shutil.which("ncu")
    if tool is None:
        raise RuntimeError("ncu is not on the PATH")
    here = [str(heads), str(kv_heads), str(batch), str(keys)]
    command = [tool, "--clock-control", "none", "--csv", "--metrics", ",".join(METRICS)]
    command += ["--kernel-name", "regex:decode|merge", "--launch-skip", "4"]
    command += ["--launch-count", "4", sys.executable, "-m", "benchmarks.gpu.profile", *here]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    with (Path(os.environ[OUTPUT]) / PROFILES).open("a") as file:
        file.write(f"\nncu, {' '.join(here)}\n{done.stdout}\n{done.stderr}\n")
    rows = [line for line in done.stdout.splitlines() if line.startswith('"')]
    if done.returncode or not rows:
        said = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["nothing"]
        raise RuntimeError(f"ncu ended with {done.returncode}, saying {said[0]}")
    found: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(io.StringIO("\n".join(rows))):
        if row.get("Metric Name"):
            told = f"{row['Metric Value']} {row['Metric Unit']}".strip()
            found.setdefault(row["Kernel Name"].split("(")[0], {})[row["Metric Name"]] = told
    return {"counters": found}


def main(heads: str, kv_heads: str, batch: str, keys: str) -> None:
    """Call the kernel a few times, for ncu to look at."""
    from benchmarks.contenders import make_problem, ours

    call = ours(make_problem(int(batch), int(keys), int(heads), int(kv_heads), 128,
                             torch.bfloat16, "cuda"))  # fmt: skip
    for _ in range(6):
        call()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
