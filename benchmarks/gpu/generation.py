"""Generation patched against unpatched, at real sizes with random weights."""

from __future__ import annotations

import functools
import gc
import time
from contextlib import ExitStack, nullcontext

import torch
import torch._dynamo.utils
from torch import nn

import vrga
from benchmarks.growth import Arm
from benchmarks.shapes import image_prompt, random_model, sharing
from benchmarks.timing import ratio, seconds, summary
from benchmarks.turns import Turn, generate, take_turns
from vrga import VRGAConfig

# arm -> how it is patched; None: not at all. The gate of "static" is decided at the prompt.
ARMS = {"unpatched": None, "dynamic": VRGAConfig.published, "static": VRGAConfig.sparing}
WARM = 4  # tokens of a generation that are not counted


@functools.lru_cache(maxsize=1)
def model_of(shape: str) -> nn.Module:
    """A random model on this device; one at a time."""
    gc.collect()
    gpu = torch.cuda.is_available()
    return random_model(shape, *(("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)))


def prompt(model: nn.Module, batch: int, side: int) -> dict:
    return image_prompt(batch, side, model.device.type, model.dtype)


def patched(model: nn.Module, arm: str):
    """A context in which the model is that arm."""
    make = ARMS[arm]
    return nullcontext() if make is None else vrga.patch(model, make())


def same_at_gain_one(model: nn.Module, inputs: dict) -> None:
    """Raise AssertionError if a patch that steers nothing changes a token."""
    short = dict(max_new_tokens=3, do_sample=False)
    with vrga.patch(model, VRGAConfig(gain=1.0)):
        found = model.generate(**inputs, **short)
    assert torch.equal(found, model.generate(**inputs, **short)), "gain 1 changes the tokens"


def told(
    times: dict[str, list[float]],
    inputs: dict,
    names: tuple[str, str] = ("seconds_per_token", "ratio_per_token"),
) -> dict:
    """Seconds of every arm, and ratios to the unpatched one, by these names."""
    ratios = {arm: ratio(own, times["unpatched"]) for arm, own in times.items()}
    del ratios["unpatched"]
    return {
        "keys": inputs["input_ids"].shape[1],
        names[0]: {arm: summary(own) for arm, own in times.items()},
        names[1]: ratios,
    }


def eager(*, shape: str, side: int, batch: int = 1, tokens: int = 96) -> dict:
    """generate() of all arms at once, in turns token by token; no compilation."""
    plain = model_of(shape)
    inputs = prompt(plain, batch, side)
    same_at_gain_one(plain, inputs)

    def one(arm: str, model: nn.Module, wanted: int) -> Turn:
        def call(stop) -> None:
            with patched(model, arm):
                generate(model, inputs, wanted, stop)

        return Turn(call)

    models = sharing(plain, ARMS)
    wanted = tokens + WARM
    for count in (WARM, wanted):  # the first round compiles the kernels
        turns = {arm: one(arm, model, count) for arm, model in models.items()}
        take_turns(turns, count)
    return told({arm: turn.times[WARM:] for arm, turn in turns.items()}, inputs)


def static(
    *, shape: str, side: int, arms: list[str], batch: int = 1, tokens: int = 64, rounds: int = 5
) -> dict:
    """generate() with a static cache, compiled as generate() does on a GPU, in whole calls.

    Returns:
        As `eager`; `compiled` says whether generate() did compile, `graphs` how many graphs there
        are in this process, and `warm_seconds` what compiling took.
    """
    plain = model_of(shape)
    inputs = prompt(plain, batch, side)
    models = sharing(plain, arms)
    times: dict[str, list[float]] = {arm: [] for arm in arms}

    def timed(arm: str) -> list[float]:
        ticks: list[float] = []

        def tick(ids, scores, **kwargs):
            if ids.is_cuda:
                torch.cuda.synchronize()
            ticks.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        generate(models[arm], inputs, tokens, tick, cache_implementation="static")
        return [b - a for a, b in zip(ticks[WARM:], ticks[WARM + 1 :], strict=False)]

    with ExitStack() as stack:
        for arm in arms:
            stack.enter_context(patched(models[arm], arm))
        start = time.perf_counter()
        for arm in arms:
            for _ in range(2):  # compilation, then the capture of CUDA graphs
                timed(arm)
        warm = time.perf_counter() - start
        for i in range(rounds):
            for arm in arms if i % 2 else reversed(arms):
                times[arm].append(summary(timed(arm))["median"])
    compiled = any("compiled_call" in name for name in vars(models["unpatched"]))
    graphs = torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)
    more = {"compiled": compiled, "graphs": graphs, "warm_seconds": warm}
    return told(times, inputs) | more


@torch.no_grad()
def prefill(*, shape: str, side: int, batch: int = 1, rounds: int = 10) -> dict:
    """Forward passes over the prompt, in turns."""
    plain = model_of(shape)
    inputs = prompt(plain, batch, side)
    models = sharing(plain, ARMS)
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with ExitStack() as stack:
        for arm in ARMS:
            stack.enter_context(patched(models[arm], arm))
        for i in range(rounds + 2):
            for arm in ARMS if i % 2 else reversed(ARMS):
                call = functools.partial(models[arm], **inputs, use_cache=True, logits_to_keep=1)
                times[arm].append(seconds(call))
    kept = {arm: found[2:] for arm, found in times.items()}
    return told(kept, inputs, ("seconds_to_first_token", "ratio_first_token"))


def memory(*, shape: str, side: int, batch: int = 1, tokens: int = 8) -> dict:
    """Peak memory of a short generation in each arm, weights included, in bytes.

    Returns:
        bytes: by arm; None on a CPU, of whose peaks `benchmarks.growth` tells.
    """
    plain = model_of(shape)
    inputs = prompt(plain, batch, side)
    peaks: dict[str, int | None] = {}
    for round_ in range(2):  # libraries' workspaces are made in the first
        for arm in ARMS:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            with patched(plain, arm):
                generate(plain, inputs, tokens)
            gpu = torch.cuda.is_available()
            peaks[arm] = torch.cuda.max_memory_allocated() if gpu and round_ else None
    return {"keys": inputs["input_ids"].shape[1], "bytes": peaks}


def recording(*, shape: str, side: int, windows: int) -> dict:
    """What recording costs per token."""
    from benchmarks import trace

    return trace.measure(model_of(shape), f"{shape}-{side}x{side}-b1", side, windows)


@torch.no_grad()
def step_of(model: nn.Module, inputs: dict):
    """A call that makes one decode step after the prompt; the cache grows by one each time."""
    arm = Arm(model, len(inputs["input_ids"]))
    arm.prefill(inputs)
    return arm.step
