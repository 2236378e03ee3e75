"""The benchmark suite runs, and its tables show what was measured and nothing else."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import accounting, answers, growth, instructions, speed
from vrga.evaluation.wording import percent

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"device": "A device", "cores": 4, "torch": "2", "triton": "3", "transformers": "5"}


@pytest.mark.slow
def test_the_kernel_suite_runs_in_the_interpreter(tmp_path):
    """Every contender of the CPU and our kernel, checked against float64."""
    file = tmp_path / "kernel.json"
    command = [sys.executable, "-m", "benchmarks.run", "--json", str(file)]
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
    run = json.loads(file.read_text())
    assert run["environment"]["torch"]
    (found,) = (one["extra_info"] for one in run["benchmarks"])
    assert found["interpreted"] and 0 < found["error"] < 1e-5
    assert {"ours", "ours in torch", "sdpa", "per-head loop"} <= set(found["contenders"])


def spread(value):
    return {"median": value, "low": value, "high": value, "n": 3}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Write a kernel run with the given contenders to a results folder of the test's own."""
    monkeypatch.setattr(speed, "RESULTS", tmp_path)

    def write(contenders, interpreted=False):
        infos = [
            {"case": "a case", "kv_bytes": 1, "interpreted": interpreted, "contenders": contenders},
            {"bytes_per_second": {"copy": 4e12, "read": 4e12}},
        ]
        run = {"environment": ENVIRONMENT, "benchmarks": [{"extra_info": i} for i in infos]}
        (tmp_path / "kernel-a-device.json").write_text(json.dumps(run))

    return write


def timed(seconds, gates=True):
    return {"seconds": spread(seconds), "gates": gates}


def test_a_cpu_run_shows_ratios_alone(results):
    results({"ours in torch": timed(3e-3), "sdpa": timed(2e-3, gates=False),
             "sdpa cudnn": {"unsupported": "no kernel", "gates": False}})  # fmt: skip
    text = speed.contenders()
    assert "cudnn" not in text
    assert "| a case | ours in torch | yes | 1.50 |\n" in text + "\n" and "µs" not in text


def test_times_of_the_interpreter_are_not_shown(results):
    results({"ours": timed(3.0), "sdpa": timed(2.0, gates=False)}, interpreted=True)
    assert speed.contenders() == ""


def test_growth_is_measured_in_turns_and_shown_as_ratios(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    run = growth.run("tiny", [256], 1, 1, 2)
    (found,) = run["lengths"]
    weights = found["prefill"]
    assert weights["patched"]["operators"] > weights["unpatched"]["operators"] > 0
    more = weights["patched"]["bytes"] - weights["unpatched"]["bytes"]
    # The query rows, 2 layers of 128 numbers, and what is known of each key.
    assert 0 < more < 2 * 128 * 4 + 32 * 256
    assert found["ratio_first_token"]["n"] == 1 and found["ratio_per_token"]["n"] == 2
    (tmp_path / "growth.json").write_text(json.dumps(run | {"environment": ENVIRONMENT}))
    head, _, *_, row = speed.growth().splitlines()
    assert head.startswith("A device, 4 cores") and "the tiny text shape, batch 1" in head
    assert row.startswith("| 256 | ") and f"| {more / 1e3:,.1f} kB | 1, 2 |" in row


def test_prompts_of_a_length_have_exactly_so_many_tokens():
    for keys in (256, 1500):
        inputs = growth.prompt(keys, 1)
        assert inputs["input_ids"].shape == (1, keys)
        assert 0.4 < (inputs["mm_token_type_ids"] == 1).float().mean() < 0.76


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


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda p: p.stem)
def test_every_benchmark_can_be_imported(path):
    """Those that no test runs would go on naming what has moved."""
    if path.stem not in ("__main__", "conftest"):
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


def test_what_accounting_times_is_called_as_it_says():
    assert all(
        callable(getattr(where, name))
        for where, names in accounting.ACCOUNTING.items() for name in names
    )  # fmt: skip


def test_instructions_of_all_layers_follow_from_two_depths(tmp_path, monkeypatch):
    """What valgrind counted, depth by depth: per token of every arm, then of a prompt."""
    steps, prompts = len(instructions.COUNTED), len(instructions.READ)
    counts = [4000 + 100 * i for i in range(steps)] + [6000 + 140 * i for i in range(steps)]
    counts += [50_000 + i for i in range(prompts)] + [90_000 + i for i in range(prompts)]
    monkeypatch.setattr(instructions, "run", lambda *_: counts)
    found = instructions.measure("0.5b", 32, 4, [2, 4])
    unpatched, static = (found["per_token"][name] for name in instructions.COUNTED[:2])
    assert unpatched == {"2": 1000, "4": 1500, "24": 1000 + 22 * 250}
    assert static["24"] - unpatched["24"] == 25 + 22 * 5  # 100 / 4, and 40 / 4 / 2 for a layer
    assert found["per_prompt"]["unpatched"]["24"] == 50_000 + 22 * 20_000
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    run = found | {"environment": ENVIRONMENT}
    (tmp_path / "instructions.json").write_text(json.dumps(run))
    head, *_, row = speed.instructions().splitlines()
    assert "SSE4.2" in head and "24 layers, from 2 and 4" in head and row.startswith("| gain 1")
    assert "| static gate | 1.0208 | +0.00 M | +0.000 M | 1.0000 |" in speed.instructions()


def test_attention_on_a_cpu_is_counted_as_the_products_that_it_is():
    """torch has no formula for its own kernel, and would count nothing."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    importlib.import_module("benchmarks.looking")
    q, k = torch.ones(2, 3, 5, 8), torch.ones(2, 3, 7, 8)
    with FlopCounterMode(display=False) as fused:
        torch.nn.functional.scaled_dot_product_attention(q, k, k)
    with FlopCounterMode(display=False) as apart:
        (q @ k.transpose(2, 3)).softmax(-1) @ k
    assert fused.get_total_flops() == apart.get_total_flops() > 0
