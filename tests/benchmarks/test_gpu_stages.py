"""What a GPU is asked: every case can be called, covers what it should, and fits the hour."""

import importlib
import inspect
import json

import pytest

from benchmarks.contenders import CONTENDERS
from benchmarks.gpu import foreseen
from benchmarks.gpu.case import check
from benchmarks.gpu.plan import forecast
from benchmarks.gpu.runner import Run
from benchmarks.gpu.stages import gpu_stages, proof_stages
from benchmarks.gpu.store import Store
from benchmarks.gpu.targets import PINNED
from benchmarks.variants import paged_variants, variants

STAGES = gpu_stages()
CASES = [case for stage in (*STAGES, *proof_stages()) for case in stage.cases]


def test_every_case_can_be_called():
    check(STAGES)
    for case in CASES:
        module, function = case.call.split(":")
        function = getattr(importlib.import_module(module), function)
        inspect.signature(function).bind(**case.arguments)  # TypeError where it cannot be
        json.dumps(case.arguments)
        assert set(case.arguments.get("contenders", ())) <= set(CONTENDERS), case.id


def test_no_case_is_given_up_before_it_should_be_done():
    for case in CASES:
        assert case.limit >= 1.5 * case.estimate, case.id
        # One call must hold the longest, or it would be cut off for ever.
        assert case.limit + 60 <= 540, case.id


def test_a_hundred_cases_and_more_hold_every_variant():
    exact = [case for case in CASES if case.id.startswith("exact/")]
    assert len(exact) == 112
    for variant in (*variants(), *paged_variants()):
        assert any(case.id.startswith(f"exact/decode {variant} S") for case in exact), variant


def test_the_first_call_does_what_tells_most(tmp_path):
    here = {"kind": "cuda", "device": "a GPU", "versions": {}, "commit": "abc"}
    with Store(tmp_path) as store:
        found = forecast(STAGES, Run(store, here, 540, start=0.0), 540, spent=15)
    whole = [one.stage.name for one in found if not one.later]
    assert whole == [
        "exactness and check-up", "kernel, headline shapes", "7B, not compiled", "7B, compiled",
        "3B, not compiled", "3B, compiled", "7B, recording",
    ]  # fmt: skip


def test_baselines_are_pinned_and_unpinned_and_with_bias():
    (shape,) = [case for case in CASES if case.id == "kernel/7b B16 S4096"]
    asked = shape.arguments["contenders"]
    assert {*PINNED, "sdpa", "sdpa + bias", "ours, flags off"} <= set(asked)
    assert {"sdpa flash", "sdpa cudnn"} < set(PINNED) and any("efficient" in x for x in PINNED)


def test_every_headline_shape_has_a_prediction_that_no_device_can_beat():
    headline = [case for case in CASES if case.id.startswith("kernel/") and case.estimate == 5]
    assert len(headline) == 11
    for case in headline:
        name = case.id.removeprefix("kernel/")
        for device, bandwidth in (("NVIDIA H200", 4.3e12), ("NVIDIA H100 80GB HBM3", 3.0e12)):
            arguments = case.arguments
            kv = 4 * arguments["batch"] * arguments["kv_heads"] * arguments["keys"] * 128
            assert foreseen.seconds_on(device, name) >= kv / bandwidth
    assert foreseen.seconds_on("NVIDIA A100", "7b B1 S4096") is None
    assert foreseen.seconds_on("NVIDIA H200", "a shape") is None


@pytest.mark.parametrize("table", [foreseen.table])
def test_the_table_says_that_it_is_of_predictions(table):
    assert table().startswith("Predictions, not measured (triton 3.6.0, sm_90)")
