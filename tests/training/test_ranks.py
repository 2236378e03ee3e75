"""Two processes train one model: gloo on CPU, as torchrun starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import run
from safetensors.torch import load_file

import vrga
from vrga.hf.files import embedded
from vrga.training.checkpoints import newest
from vrga.training.record import read_steps

pytest.importorskip("trl", reason="TRL needs Python 3.11")


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(tmp_path):
    for command in (
        ("rollouts", "--limit", 16, "--samples", 2, "--max-new-tokens", 48, "--output", tmp_path),
        ("data", tmp_path, "--difficulty", "0,1", "--reflection", 0.5),
    ):
        assert run("train", *command).exit_code == 0
    script = Path(__file__).with_name("two_ranks.py")
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *start, script, tmp_path],
        capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    before = load_file(embedded() / "model.safetensors")
    for name in ("sft", "rl"):
        held = [(tmp_path / f"{name}-{rank}-of-2.txt").read_text() for rank in (0, 1)]
        assert held[0] == held[1], name
        after = load_file(tmp_path / name / "model" / "model.safetensors")
        assert any(not before[key].equal(after[key]) for key in before), name
        vrga.load(tmp_path / name / "model")
        assert [one["step"] for one in read_steps(tmp_path / name)] == [1, 2]
        whole = newest(tmp_path / name)
        assert whole.name == "checkpoint-2"
        assert {f"rng_state_{rank}.pth" for rank in (0, 1)} <= {p.name for p in whole.iterdir()}
        before = after
