"""The kernels as the CUDA compiler sees them: nothing spills, K and V load 16 bytes wide."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[80, 90], ids=lambda arch: f"sm_{arch}")
def kernels(request, tmp_path_factory):
    """The report on every variant; compiled in a process without the interpreter."""
    file = tmp_path_factory.mktemp("compiled") / "report.json"
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.compiled", "--json", str(file)]
    command += ["--arch", str(request.param)]
    subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
    return json.loads(file.read_text())["kernels"]


def test_every_variant_is_compiled(kernels, request):
    assert {row["arch"] for row in kernels} == {request.node.callspec.params["kernels"]}
    assert len({row["variant"] for row in kernels}) > 50
    assert {row["kernel"] for row in kernels} == {"decode", "merge", "probe"}


def test_nothing_spills(kernels):
    assert not [row for row in kernels if row["spills"]]


def test_keys_and_values_load_16_bytes_wide(kernels):
    for row in kernels:
        if row["kernel"] == "decode":
            widths = {int(width) for width in row["loads"]}
            assert widths == {4, 16}, row  # 4: the flags
            assert row["loads"]["16"] > row["loads"]["4"], row
        if row["kernel"] == "probe":  # one tile, so nothing to load ahead of
            assert max(int(width) for width in row["loads"]) == 16, row


def test_registers_leave_room_for_four_blocks(kernels):
    main = [
        row for row in kernels
        if row["kernel"] == "decode" and " d128 " in row["variant"]
        and "fp32" not in row["variant"] and "Q1 groups 2" in row["variant"]
        and row["variant"].split("/")[0] not in ("12", "16")
    ]  # fmt: skip
    small = [r for r in main if r["registers"] > 128]
    assert main and not small
    assert all(row["blocks"] >= 4 for row in main if row["arch"] == 90)


def test_kept_launches_pass_what_triton_passes():
    """Against a stand-in for the driver, in a process without the interpreter."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.host"]
    done = subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True)
    assert "5 launches compared" in done.stdout
