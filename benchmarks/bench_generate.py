"""Generation on a CPU, patched against unpatched, in turns within one run.

    python -m pytest benchmarks/bench_generate.py --benchmark-json=FILE

A CPU's speed drifts more between two calls of generate() than patching costs, so single forward
passes take turns, token by token, at the 0.5B text shape, for their ratios; generate() runs at a
tiny shape to prove the suite. On a GPU: `python -m benchmarks.gpu`.
"""

from __future__ import annotations

import copy
import gc
import inspect
import json
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from transformers import StoppingCriteria

import vrga
from benchmarks.shapes import image_prompt, random_model
from benchmarks.timing import ROOT, ratio, seconds, summary, synchronize
from vrga import VRGAConfig

DEVICE, DTYPE = "cpu", torch.float32
ARMS = ("unpatched", "patched")


@dataclass(frozen=True)
class Case:
    """One end-to-end case: model shape, image side in tokens, batch rows, cache."""

    shape: str
    side: int
    batch: int = 1
    cache: str = "dynamic"
    tokens: int = 256
    rounds: int = 5

    def __str__(self) -> str:
        return f"{self.shape}-{self.side}x{self.side}-b{self.batch}-{self.cache}"


CASES = [Case("tiny", 8, tokens=8, rounds=2)]
PAIRED = Case("0.5b", 32, tokens=96, rounds=12)


class Clock(StoppingCriteria):
    """Notes when each token is there; stops nothing."""

    def __init__(self):
        self.ticks: list[float] = []

    def __call__(self, input_ids, scores, **kwargs):
        synchronize()
        self.ticks.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def timed(model, inputs, case: Case) -> tuple[float, float]:
    """(seconds to the first token, median seconds per later token) of one generation."""
    clock = Clock()
    options = {} if case.cache == "dynamic" else {"cache_implementation": "static"}
    synchronize()
    start = time.perf_counter()
    model.generate(
        **inputs,
        max_new_tokens=case.tokens,
        min_new_tokens=case.tokens,
        do_sample=False,
        stopping_criteria=[clock],
        **options,
    )
    steps = [b - a for a, b in zip(clock.ticks, clock.ticks[1:], strict=False)]
    return clock.ticks[0] - start, summary(steps)["median"]


def arm_context(model, arm: str):
    return vrga.patch(model, VRGAConfig.published()) if arm == "patched" else nullcontext()


@pytest.fixture(scope="module")
def models():
    """One model at a time: a 7B and a 3B need not lie beside each other."""
    held: dict[str, torch.nn.Module] = {}

    def get(shape):
        if shape not in held:
            held.clear()
            gc.collect()
            held[shape] = random_model(shape, DEVICE, DTYPE)
        return held[shape]

    return get


@pytest.mark.parametrize("case", CASES, ids=str)
@torch.inference_mode()
def test_generate(benchmark, models, case):
    model = models(case.shape)
    inputs = image_prompt(case.batch, case.side, DEVICE, DTYPE)
    with vrga.patch(model, VRGAConfig(gain=1.0)):  # correctness first
        short = dict(max_new_tokens=3, do_sample=False)
        identical = model.generate(**inputs, **short)
    assert torch.equal(identical, model.generate(**inputs, **short))

    first = {arm: [] for arm in ARMS}
    later = {arm: [] for arm in ARMS}

    def one_round():
        # The arm that goes first changes from round to round.
        for arm in ARMS if len(first["patched"]) % 2 else reversed(ARMS):
            with arm_context(model, arm):
                to_first, per_token = timed(model, inputs, case)
            first[arm].append(to_first)
            later[arm].append(per_token)

    one_round()  # warm-up, compilation included
    for values in (*first.values(), *later.values()):
        values.clear()
    benchmark.pedantic(one_round, rounds=case.rounds)
    benchmark.extra_info |= {
        "case": str(case),
        "proof": case.shape == "tiny",
        "keys": inputs["input_ids"].shape[1],
        "seconds_to_first_token": {arm: summary(first[arm]) for arm in ARMS},
        "seconds_per_token": {arm: summary(later[arm]) for arm in ARMS},
        "ratio_first_token": ratio(first["patched"], first["unpatched"]),
        "ratio_per_token": ratio(later["patched"], later["unpatched"]),
    }


@torch.inference_mode()
def test_paired_forward_passes(benchmark, models):
    """Two models that share their weights, one of them patched, in turns pass by pass."""
    case, plain = PAIRED, models(PAIRED.shape)
    inputs = image_prompt(case.batch, case.side, DEVICE, DTYPE)
    shared = {id(x): x for x in (*plain.parameters(), *plain.buffers())}
    arms = {"unpatched": plain, "patched": copy.deepcopy(plain, shared)}
    first = {arm: [] for arm in ARMS}
    later = {arm: [] for arm in ARMS}
    caches, token = {}, torch.full((case.batch, 1), 100, device=DEVICE)
    # As this version of transformers calls it.
    named = inspect.signature(plain.forward).parameters
    name = "cache" if "cache" in named else "past_key_values"

    def prefill(arm):
        out = arms[arm](**inputs, use_cache=True, logits_to_keep=1)
        caches[arm] = out[name]

    def step(arm):
        place = torch.full((3, case.batch, 1), caches[arm].get_seq_length(), device=DEVICE)
        arms[arm](input_ids=token, **{name: caches[arm]}, position_ids=place, use_cache=True)

    def take_turns(call, times, rounds):
        for i in range(rounds):
            for arm in ARMS if i % 2 else reversed(ARMS):
                times[arm].append(seconds(lambda arm=arm: call(arm)))

    def run():
        take_turns(prefill, first, case.rounds)
        take_turns(step, later, case.tokens)

    with vrga.patch(arms["patched"], VRGAConfig.published()):
        take_turns(prefill, first, 1)  # warm-up
        take_turns(step, later, 4)
        for values in (*first.values(), *later.values()):
            values.clear()
        benchmark.pedantic(run, rounds=1)
    benchmark.extra_info |= {
        "case": f"{case}, forward passes",
        "keys": inputs["input_ids"].shape[1],
        "seconds_to_first_token": {arm: summary(first[arm]) for arm in ARMS},
        "seconds_per_token": {arm: summary(later[arm]) for arm in ARMS},
        "ratio_first_token": ratio(first["patched"], first["unpatched"]),
        "ratio_per_token": ratio(later["patched"], later["unpatched"]),
    }


@pytest.mark.parametrize("case", [*CASES, PAIRED], ids=str)
def test_peak_memory(benchmark, case):
    """Each arm in a process of its own, whose peak nothing else has raised."""
    peaks: dict[str, list[float]] = {arm: [] for arm in ARMS}

    def one_round():
        for arm in ARMS:
            command = [sys.executable, "-m", "benchmarks.peak", arm, case.shape]
            command += [str(case.side), str(case.batch), case.cache]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            peaks[arm].append(json.loads(done.stdout.splitlines()[-1])["bytes"])

    benchmark.pedantic(one_round, rounds=1)
    benchmark.extra_info |= {
        "case": f"{case}, forward passes" if case == PAIRED else str(case),
        "proof": case.shape == "tiny",
        "bytes": {arm: summary(peaks[arm]) for arm in ARMS},
        "extra_bytes": summary(peaks["patched"])["median"] - summary(peaks["unpatched"])["median"],
        "ratio": ratio(peaks["patched"], peaks["unpatched"]),
    }


def test_patching_itself_is_quick(benchmark, models):
    model = models(CASES[0].shape)

    def patch_and_unpatch():
        vrga.patch(model, VRGAConfig.published())
        vrga.unpatch(model)

    benchmark(lambda: seconds(patch_and_unpatch))
