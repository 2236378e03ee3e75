"""The benchmark suite runs, and its tables show what was measured and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import answers, table
from vrga.evaluation.wording import percent

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"device": "A device", "cores": 4, "torch": "2", "triton": "3", "transformers": "5"}


@pytest.mark.slow
def test_the_kernel_suite_runs_in_the_interpreter(tmp_path):
    """Every contender of the CPU and our kernel, checked against float64."""
    file = tmp_path / "kernel.json"
    command = [sys.executable, "-m", "pytest", "benchmarks/bench_kernel.py", "-o", "addopts="]
    command += ["-k", "contenders or bandwidth", f"--benchmark-json={file}"]
    # Seeing that tests run in parallel, pytest-benchmark would measure nothing.
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    env |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
    run = json.loads(file.read_text())
    assert run["environment"]["torch"]
    measured = [b["extra_info"] for b in run["benchmarks"] if "error" in b["extra_info"]]
    assert measured and all(found["interpreted"] for found in measured)
    for found in measured:
        assert 0 < found["error"] < 1e-5
        assert {"ours", "ours in torch", "sdpa", "per-head loop"} <= set(found["contenders"])


def spread(value):
    return {"median": value, "low": value, "high": value, "n": 3}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Write a kernel run with the given contenders to a results folder of the test's own."""
    monkeypatch.setattr(table, "RESULTS", tmp_path)

    def write(contenders, interpreted=False):
        infos = [
            {"case": "a case", "kv_bytes": 1, "interpreted": interpreted, "contenders": contenders},
            {"bytes_per_second": {"copy": 4e12, "read": 4e12}},
        ]
        run = {"environment": ENVIRONMENT, "benchmarks": [{"extra_info": i} for i in infos]}
        (tmp_path / "kernel-a-device.json").write_text(json.dumps(run))

    return write


def timed(seconds, host=None, share=0.5, gates=True):
    found = {"seconds": spread(seconds), "host_seconds": spread(host or seconds), "gates": gates}
    if host:
        found |= {"graph_seconds": spread(seconds), "bytes_per_second": share * 4e12}
    return found


def test_a_gpu_run_shows_host_time_and_bandwidth(results):
    results({"ours": timed(12e-6, 20e-6, 0.6), "sdpa": timed(10e-6, 8e-6, 0.7, gates=False),
             "sdpa cudnn": {"unsupported": "no kernel", "gates": False}})  # fmt: skip
    text = table.contenders()
    assert "| a case | ours | yes | 1.20 | 12.0 | 20.0 | 60% |" in text
    assert "| a case | sdpa | no | 1.00 | 10.0 | 8.0 | 70% |" in text
    assert "cudnn" not in text


def test_a_cpu_run_shows_ratios_alone(results):
    results({"ours in torch": timed(3e-3), "sdpa": timed(2e-3, gates=False)})
    text = table.contenders()
    assert "| a case | ours in torch | yes | 1.50 |\n" in text + "\n" and "µs" not in text


def test_times_of_the_interpreter_are_not_shown(results):
    results({"ours": timed(3.0), "sdpa": timed(2.0, gates=False)}, interpreted=True)
    assert table.contenders() == ""


def test_recovery_is_pooled_over_training_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "RESULTS", tmp_path)
    (tmp_path / "analyze").mkdir()
    for name, gained, lost, off in (("", 30, 10, 0.5), ("-seed1", 0, 20, 0.7)):
        wrong = {"color": [0.1 + off / 10, 0, 1], "letter": [0.02, 0, 1], "none": [0.0, 0, 1]}
        one = {
            "change": [(gained - lost) / 100, 0, 0],
            "bound": [gained / 100, 0, 0],
            "flips": {"gained": gained, "lost": lost, "of": 100},
            "flips_of_bound": {"gained": gained, "lost": 0, "of": 100},
            "hit": [off, 0, 1],
            "coverage": 0.25,
            "outcomes": {"wrong": wrong},
        }
        run = {
            "settings": {"questions": 100},
            "off": [off, 0, 1],
            "outcomes": {"wrong": wrong},
            "configs": {"default": one},
        }
        (tmp_path / "analyze" / f"recovery-long{name}.json").write_text(json.dumps(run))
    older = {"settings": {"questions": 1000}, "off": [0.9, 0, 1], "configs": {}}
    (tmp_path / "analyze" / "recovery-noise.json").write_text(json.dumps(older))
    _, _, base, steered = answers.recovery().splitlines()
    assert base == (
        "| long, cot: 2 x 100 | without VRGA | 60.0 % right | 50.0 to 70.0 |  |  |  |  | "
        "16.0, 2.0, 0.0 % |"
    )
    value, low, high = answers.pooled([{"gained": 30, "lost": 30, "of": 200}])
    assert value == 0 and low == pytest.approx(-high, abs=0.011)
    assert high == pytest.approx(1.96 * (60 / 200 / 200) ** 0.5, rel=0.08)  # normal, of 0.3 flips
    cells = steered.split(" | ")
    assert cells[1:3] == [
        "sparing",
        percent(answers.pooled([{"gained": 30, "lost": 30, "of": 200}]), "+"),
    ]
    assert cells[3] == "-20.0 to +20.0" and cells[4].startswith("+15.0 % (")
    assert cells[5:] == ["+0.0 to +30.0", "60.0 %", "25 %", "16.0, 2.0, 0.0 % |"]
