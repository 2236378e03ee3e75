"""The decode kernel against every contender, correctness first, then time.

    python -m pytest benchmarks/bench_kernel.py --benchmark-json=FILE

On a GPU: the 7B and 3B head counts in bfloat16, cold L2, CUDA-graph and eager times, host time per
call, share of the device's bandwidth. On a CPU: small shapes of the contenders that run there,
for their ratios; with TRITON_INTERPRET=1 also the kernel itself, whose time means nothing then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from benchmarks.contenders import (
    CONTENDERS,
    ENTROPY,
    FOCUS,
    GAIN,
    GATES,
    Problem,
    make_problem,
    ours,
)
from benchmarks.timing import seconds, summary
from vrga.kernels.reference import decode_attention_reference

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE, DTYPE = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
LIMIT = 8 << 30  # bytes of keys and values of one problem
COLD = 256 << 20  # bytes that buffers in rotation span at least: several times any L2
# In the interpreter one call proves that the suite runs; its times mean nothing.
CALLS = 20 if GPU else 1 if INTERPRETED else 3
ROUNDS = 10 if GPU else 1 if INTERPRETED else 5


@dataclass(frozen=True)
class Case:
    """Shape and steering of one problem."""

    heads: int
    kv_heads: int
    size: int
    batch: int
    keys: int
    region: float = 0.05
    opened: float = 0.5

    def __str__(self) -> str:
        return (
            f"{self.heads}/{self.kv_heads} B{self.batch} S{self.keys} "
            f"T{self.region:.0%} open{self.opened:.0%}"
        )

    def problem(self, seed: int = 0) -> Problem:
        return make_problem(
            self.batch, self.keys, self.heads, self.kv_heads, self.size, DTYPE, DEVICE,
            region=self.region, opened=self.opened, seed=seed,
        )  # fmt: skip


def shapes() -> list[Case]:
    """Head counts x batch x keys, within the limit of KV bytes."""
    if not GPU:
        small = [Case(14, 2, 64, batch, keys) for batch in (1, 2) for keys in (256, 1024)]
        return small[:1] if INTERPRETED else small
    found = [
        Case(heads, kv_heads, 128, batch, keys)
        for heads, kv_heads in ((28, 4), (16, 2))
        for batch in (1, 4, 16, 64)
        for keys in (1024, 4096, 16384, 32768, 131072)
    ]
    return [c for c in found if 4 * c.batch * c.kv_heads * c.keys * c.size <= LIMIT]


def steerings() -> list[Case]:
    """Share of T x share of open gates, on a batch-1 and a batch-16 shape."""
    bases = [c for c in shapes() if (c.batch, c.keys) in ((1, 4096), (16, 4096))]
    return [
        replace(base, region=region, opened=opened)
        for base in bases or shapes()[:1]
        for region in (0.0, 0.05, 0.2)
        for opened in (0.0, 0.5, 1.0)
    ]


def rotation(case: Case) -> list[Problem]:
    """Problems of one shape whose caches together exceed the L2, so that every call is cold."""
    first = case.problem()
    count = min(-(-COLD // first.kv_bytes), 64) if GPU else 1
    return [first] + [case.problem(seed) for seed in range(1, count)]


def eager_time(calls: list[Callable]) -> tuple[dict, dict]:
    """(wall seconds, host seconds) per call, over rounds of calls issued without waiting."""
    wall, host = [], []

    def burst():
        start = time.perf_counter()
        for i in range(CALLS):
            calls[i % len(calls)]()
        host.append((time.perf_counter() - start) / CALLS)

    burst()  # warm-up
    host.clear()
    for _ in range(ROUNDS):
        wall.append(seconds(burst) / CALLS)
    return summary(wall), summary(host)


def graph_time(calls: list[Callable]) -> dict:
    """Seconds per call when the calls are replayed as one CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    repeats = max(CALLS // len(calls), 1)
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for call in calls:
                call()
    found = []
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    for _ in range(ROUNDS):
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3 / (repeats * len(calls)))
    return summary(found)


def contenders() -> list[str]:
    if GPU:
        return list(CONTENDERS)
    names = ["ours in torch", "sdpa", "sdpa + bias", "two-pass torch", "per-head loop"]
    return [*names, "ours", "ours, static gate", "ours, flags off"] if INTERPRETED else names


def check(problem: Problem) -> float:
    """Largest error of our kernel, with either gate, against float64; asserts it is small."""
    impl, errors = "triton" if GPU or INTERPRETED else "torch", []
    for gate, given in (("dynamic", None), ("static", problem.gate)):
        exact = decode_attention_reference(
            problem.q.double(), problem.k.double(), problem.v.double(), problem.flags,
            problem.images, scale=problem.scale, opened=(1.0, GAIN), closed=(1.0, 1.0),
            focus=FOCUS, entropy=ENTROPY, gate=given,
        )  # fmt: skip
        error = (ours(problem, gate=gate, impl=impl)().double() - exact).abs().max().item()
        assert error < torch.finfo(DTYPE).eps * 8 * exact.abs().max().item(), error
        errors.append(error)
    return max(errors)


def measure(case: Case, name: str) -> dict:
    """All times of one contender on one case; {"unsupported": why} where it cannot run."""
    problems = rotation(case)
    calls = [CONTENDERS[name](problem) for problem in problems]
    try:
        calls[0]()
        wall, host = eager_time(calls)
        found = {"seconds": wall, "host_seconds": host}
        if GPU and name != "per-head loop":  # it reads on the host, which no graph can hold
            found["graph_seconds"] = graph_time(calls)
    except (RuntimeError, ValueError) as error:
        return {"unsupported": str(error).splitlines()[0]}
    best = found.get("graph_seconds", found["seconds"])["median"]
    return found | {"bytes_per_second": problems[0].kv_bytes / best}


@pytest.mark.parametrize("case", shapes(), ids=str)
@torch.inference_mode()
def test_contenders(benchmark, case):
    found = {}

    def run():
        for name in contenders():
            if name == "per-head loop" and case.batch > 4:
                continue  # minutes, and no news
            found[name] = measure(case, name) | {"gates": name in GATES}

    problem = case.problem()
    error = check(problem) if problem.kv_bytes < 1 << 30 else None
    benchmark.pedantic(run, rounds=1)
    benchmark.extra_info |= {
        "case": str(case),
        "kv_bytes": problem.kv_bytes,
        "error": error,
        "interpreted": INTERPRETED and not GPU,
        "contenders": found,
    }


@pytest.mark.parametrize("case", steerings(), ids=str)
@torch.inference_mode()
def test_steering(benchmark, case):
    """What steering costs: every share of T and of open gates, against flags off."""
    check(case.problem())
    impl = "ours, static gate" if GPU or INTERPRETED else "ours in torch"
    found = {}

    def run():
        for name in (impl, *(("ours, flags off",) if impl != "ours in torch" else ())):
            found[name] = measure(case, name)

    benchmark.pedantic(run, rounds=1)
    benchmark.extra_info |= {
        "case": str(case), "interpreted": INTERPRETED and not GPU, "contenders": found
    }  # fmt: skip


@torch.inference_mode()
def test_bandwidth(benchmark):
    """Copy and read bandwidth of this device, bytes per second."""
    count = (1 << 30) if GPU else (1 << 26)
    source = torch.randn(count // 4, device=DEVICE)
    target = torch.empty_like(source)
    found = {}

    def run():
        found["copy"] = 2 * count / eager_time([lambda: target.copy_(source)])[0]["median"]
        found["read"] = count / eager_time([lambda: source.sum()])[0]["median"]

    benchmark.pedantic(run, rounds=1)
    benchmark.extra_info |= {"bytes_per_second": found}
