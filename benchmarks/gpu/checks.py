"""The checks that the project already has, on the device."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from benchmarks.gpu.case import ROOT


def doctor(*, device: str) -> dict:
    """What `vrga.doctor` finds."""
    import vrga

    found = vrga.doctor(device=device)
    checks = [
        dict(name=c.name, status=c.status, figure=c.figure, why=c.why, seconds=round(c.seconds, 1))
        for c in found.checks
    ]
    for check in checks:
        if check["figure"] is not None and check["figure"] != check["figure"]:
            check["figure"] = "nan"
    return {"ok": found.ok, "subject": found.subject, "checks": checks}


def tests(*, names: list[str]) -> dict:
    """Test files of the repository, run on the device.

    Args:
        names: of files anywhere under tests/.

    Raises:
        RuntimeError: one failed, or pytest could not run them; with its last words.
    """
    files = [str(path) for name in names for path in sorted((ROOT / "tests").rglob(name))]
    if len(files) != len(names):
        raise RuntimeError(f"of {names}, tests/ has {files}")
    command = [sys.executable, "-m", "pytest", *files, "-q", "-p", "no:cacheprovider"]
    command += ["-o", "addopts="]
    done = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ) | {"VRGA_TEST_DEVICE": "cuda"},
        capture_output=True, text=True,
    )  # fmt: skip
    print(done.stdout[-4000:], done.stderr[-2000:])
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode:
        raise RuntimeError(f"pytest ended with {done.returncode}: {last}")
    return {"said": re.sub(r"=+", "", last).strip()}
