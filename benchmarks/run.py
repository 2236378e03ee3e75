"""Run the suite of a CPU and keep its results: python -m benchmarks.run [SUITE ...]

Suites: kernel, generate (default: both). Each run leaves one JSON in benchmarks/results/, named by
suite and device, with device, versions and commit inside. With TRITON_INTERPRET=1 the suite is only
proven: the kernels run in Triton's interpreter, their times mean nothing, and no table shows them.
On a GPU: `python -m benchmarks.gpu`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys

import pytest
import torch

from benchmarks.timing import RESULTS, ROOT, environment

SUITES = ("kernel", "generate")


def main() -> int:
    """Exit status of the first suite that failed, or 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", nargs="*", default=list(SUITES), metavar="SUITE")
    parser.add_argument("-k", default="", help="only benchmarks whose names match, as in pytest")
    arguments = parser.parse_args()
    if torch.cuda.is_available():
        parser.error(
            "this suite is of a CPU, and there is a GPU here: run python -m benchmarks.gpu, or "
            "hide it with CUDA_VISIBLE_DEVICES="
        )
    unknown = set(arguments.suite) - set(SUITES)
    if unknown:
        parser.error(f"unknown suite {', '.join(sorted(unknown))}; known: {', '.join(SUITES)}")
    device = re.sub(r"[^a-z0-9]+", "-", str(environment()["device"]).lower()).strip("-")
    if os.environ.get("TRITON_INTERPRET") == "1":
        device += "-interpreted"
    RESULTS.mkdir(parents=True, exist_ok=True)
    for suite in arguments.suite:
        status = pytest.main(
            [
                str(ROOT / "benchmarks" / f"bench_{suite}.py"),
                f"--rootdir={ROOT}",
                f"--benchmark-json={RESULTS / f'{suite}-{device}.json'}",
                "--benchmark-columns=median,rounds",
                *("-o", "addopts="),
                *("-k", arguments.k),
                "-s",
            ]
        )
        if status:
            return int(status)
    return 0


if __name__ == "__main__":
    sys.exit(main())
