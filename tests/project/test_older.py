"""What an earlier version wrote is still read: a trace's folder, and folders of runs.

The folders in tests/older/ were written by version 0.1.0 as of 2026-11-26 and are never written
anew: a change that cannot read them needs a way to, or a new format with its own number.
"""

import json
import shutil
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch
from command import worked
from rich.console import Console

from vrga import Trace
from vrga.evaluation.compare import compare
from vrga.evaluation.store import ANSWERED, SAMPLES, read_samples, read_settings
from vrga.plots import compare_figure, trend_figure
from vrga.report import render

OLDER = Path(__file__).parents[1] / "older"
RUNS = ["run-lookback-1", "run-eval-1"]
LOOKBACK = ["lookback", "--limit", "4", "--split", "similar", "--max-new-tokens", "40",
            "--prompts", "direct,cot", "--steering", "off,always"]  # fmt: skip


def test_a_trace_of_format_1_is_read_and_shown():
    trace = Trace.load(OLDER / "trace-1")
    assert trace.image.shape == trace.region.shape == trace.gate.shape == (3, 3, 2, 8)
    assert trace.maps.shape == (3, 4, 2, 40) and trace.layer_maps.shape == (3, 3, 2, 40)
    assert trace.texts[0] == ["<62>", "<62>", "<58>", "<59>"]
    assert [len(images) for images in trace.images] == [1, 2]
    assert [(g.h, g.w) for g in trace.regions[1].grids] == [(4, 5), (5, 4)]
    assert trace.regions[0].question == "<65><57><26><11>" and trace.config["gain"] == 3.0
    shares = trace.image + trace.question + trace.prompt + trace.generated
    torch.testing.assert_close(shares, torch.ones_like(shares))
    for row in (0, 1):
        assert f"<h1>{escape(trace.regions[row].question)}</h1>" in render([trace], row=row)
    line = trend_figure(trace).axes[0].lines[1].get_ydata()
    assert np.allclose(line, trace.region[:, :, 0].mean((1, 2)).numpy())
    assert len(compare_figure(trace, trace, row=1).axes) == 6


def test_a_trace_read_and_written_again_is_the_same(tmp_path):
    old = Trace.load(OLDER / "trace-1")
    new = Trace.load(old.save(tmp_path / "t"))
    for name, value in vars(old).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(new, name)), name
    assert (new.texts, new.asked, new.config) == (old.texts, old.asked, old.config)


@pytest.mark.parametrize("name", RUNS)
def test_the_samples_of_a_run_are_read_whole(name):
    held = read_settings(OLDER / name)
    samples, damaged = read_samples(OLDER / name / SAMPLES, held["hash"], ANSWERED)
    lines = (OLDER / name / SAMPLES).read_text("utf-8").splitlines()
    assert damaged == 0 and samples == list(map(json.loads, lines)) and len(samples) >= 8
    assert held["settings"]["split"] == "similar"


def test_a_run_of_eval_is_compared():
    found = compare(OLDER / "run-eval-1", OLDER / "run-eval-1", Console(quiet=True))
    assert {name: one["pairs"] for name, one in found.items()} == {
        "vrga_grid base": 4, "vrga_grid vrga": 4,
    }  # fmt: skip
    assert all(one["gained"] == one["lost"] == 0 for one in found.values())


def test_the_two_arms_of_one_run_are_compared(tmp_path):
    run = OLDER / "run-eval-1"
    (found,) = compare(run, None, Console(quiet=True)).items()
    assert found[0] == "vrga_grid base -> vrga" and found[1]["pairs"] == 4
    alone = tmp_path / "run"
    shutil.copytree(run, alone)
    lines = (alone / SAMPLES).read_text("utf-8").splitlines()
    kept = [line for line in lines if json.loads(line)["arm"] == "vrga"]
    (alone / SAMPLES).write_text("\n".join(kept) + "\n", "utf-8")
    with pytest.raises(ValueError, match="has not both the arm base and another: give another run"):
        compare(alone, None, Console(quiet=True))


def test_a_run_goes_on_and_what_was_answered_stands(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(OLDER / "run-lookback-1", folder)
    lines = (folder / SAMPLES).read_text("utf-8").splitlines()
    (folder / SAMPLES).write_text("\n".join(lines[:-1]) + "\n", "utf-8")
    worked(*LOOKBACK, "--output", folder, "--resume")
    old, new = (
        {one["key"]: one for one in map(json.loads, read)}
        for read in (lines, (folder / SAMPLES).read_text("utf-8").splitlines())
    )
    last = json.loads(lines[-1])["key"]
    assert new.keys() == old.keys() and new[last]["error"] is None
    assert {k: v for k, v in new.items() if k != last} == {
        k: v for k, v in old.items() if k != last
    }
