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
    command += ["--arch", str(request.param), "--no-loops"]
    subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
    return json.loads(file.read_text())["kernels"]


def test_every_variant_is_compiled(kernels, request):
    assert {row["arch"] for row in kernels} == {request.node.callspec.params["kernels"]}
    assert len({row["variant"] for row in kernels}) > 50
    assert {row["kernel"] for row in kernels} == {"decode", "merge", "probe"}
    assert len([row for row in kernels if "pages of" in row["variant"]]) > 10


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


def without_interpreter(script):
    """What a script prints as JSON, in a process of its own."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, check=True,
                          capture_output=True, text=True)  # fmt: skip
    return json.loads(done.stdout)


def test_a_round_of_the_loop_over_keys_is_counted():
    """From machine code: whole keys, no key or value twice, few instructions for each."""
    half, single, full = without_interpreter(
        "import json, torch\n"
        "from benchmarks.compiled import Variant, compile_decode, report\n"
        "print(json.dumps([vars(report(compile_decode(v, 90), 'decode', v, 90).loop) for v in ("
        "Variant(), Variant(single=True, gate=True, size=80), Variant(dtype=torch.float32))]))"
    )
    for loop in (half, single, full):
        assert loop["keys"] == 32 and loop["warps"] == 4
        assert loop["instructions"] > loop["matrix"] + loop["exponentials"] + loop["barriers"]
    assert half["bytes"] == single["bytes"] == 32 * 2 * 128 * 2  # 80 is padded to 128
    assert half["matrix"] == single["matrix"] == 16 and full["matrix"] == 0
    assert full["bytes"] == 2 * half["bytes"]
    # Over this, issuing them would take longer than loading at 4.3 TB/s.
    assert half["instructions"] * half["warps"] / half["keys"] < 128


def test_a_prediction_counts_what_is_launched():
    """The grid, waves and bytes of one shape."""
    found = without_interpreter(
        "import json; from triton.runtime import driver\n"
        "from benchmarks.predicted import Reader, predict\n"
        "reader = Reader(); driver.set_active(reader)\n"
        "print(json.dumps(predict(reader, 28, 4, 16, 4096, 'dynamic')))"
    )
    assert found["kv_bytes"] == 16 * 4096 * 2048 == 134217728
    splits, heads, batch = found["grid"]
    assert (heads, batch) == (4, 16) and found["programs"] == 4 * 16 * splits
    assert found["waves"] == pytest.approx(found["programs"] / (132 * found["resident"]))
    assert found["resident"] >= 4 and found["spills"] == 0
    # Flags and what splits leave are little beside keys and values.
    assert 1 < found["bytes"] / found["kv_bytes"] < 1.1
    rounds = 4 * 16 * splits * -(-4096 // (splits * 32))
    assert found["instructions"] == rounds * found["loop"]["instructions"] * 4
    assert found["seconds"]["H200"] == pytest.approx(found["bytes"] / 4.3e12)
    assert found["issue_seconds"] < found["seconds"]["H200"]


def test_kept_launches_pass_what_triton_passes():
    """Against a stand-in for the driver, in a process without the interpreter."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.host"]
    done = subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True)
    assert "5 launches compared" in done.stdout
