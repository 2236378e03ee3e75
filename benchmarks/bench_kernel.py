"""The decode kernel against every contender on a CPU, correctness first, then time.

    python -m pytest benchmarks/bench_kernel.py --benchmark-json=FILE

Small shapes of the contenders that run there, for their ratios; with TRITON_INTERPRET=1 also the
kernel itself, whose time means nothing then. On a GPU: `python -m benchmarks.gpu`.
"""

from __future__ import annotations

import os
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

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# In the interpreter one call proves that the suite runs; its times mean nothing.
CALLS, ROUNDS = (1, 1) if INTERPRETED else (3, 5)


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
            self.batch, self.keys, self.heads, self.kv_heads, self.size, torch.float32, "cpu",
            region=self.region, opened=self.opened, seed=seed,
        )  # fmt: skip


def shapes() -> list[Case]:
    """Batch x keys."""
    small = [Case(14, 2, 64, batch, keys) for batch in (1, 2) for keys in (256, 1024)]
    return small[:1] if INTERPRETED else small


def steerings() -> list[Case]:
    """Share of T x share of open gates, on one shape."""
    return [
        replace(shapes()[0], region=region, opened=opened)
        for region in (0.0, 0.05, 0.2)
        for opened in (0.0, 0.5, 1.0)
    ]


def time_of(call: Callable[[], object]) -> dict:
    """Seconds per call, over rounds."""
    found = []
    for _ in range(ROUNDS + 1):
        found.append(seconds(lambda: [call() for _ in range(CALLS)]) / CALLS)
    return summary(found[1:])  # without the warm-up


def contenders() -> list[str]:
    names = ["ours in torch", "sdpa", "sdpa + bias", "two-pass torch", "per-head loop"]
    return [*names, "ours", "ours, static gate", "ours, flags off"] if INTERPRETED else names


def check(problem: Problem) -> float:
    """Largest error of our kernel, with either gate, against float64; asserts it is small."""
    impl, errors = "triton" if INTERPRETED else "torch", []
    for gate, given in (("dynamic", None), ("static", problem.gate)):
        exact = decode_attention_reference(
            problem.q.double(), problem.k.double(), problem.v.double(), problem.flags,
            problem.images, scale=problem.scale, opened=(1.0, GAIN), closed=(1.0, 1.0),
            focus=FOCUS, entropy=ENTROPY, gate=given,
        )  # fmt: skip
        error = (ours(problem, gate=gate, impl=impl)().double() - exact).abs().max().item()
        assert error < torch.finfo(torch.float32).eps * 8 * exact.abs().max().item(), error
        errors.append(error)
    return max(errors)


def measure(case: Case, name: str) -> dict:
    """The time of one contender on one case."""
    problem = case.problem()
    found = time_of(CONTENDERS[name](problem))
    return {"seconds": found, "bytes_per_second": problem.kv_bytes / found["median"]}


@pytest.mark.parametrize("case", shapes(), ids=str)
@torch.inference_mode()
def test_contenders(benchmark, case):
    found = {}

    def run():
        for name in contenders():
            found[name] = measure(case, name) | {"gates": name in GATES}

    problem = case.problem()
    error = check(problem)
    benchmark.pedantic(run, rounds=1)
    benchmark.extra_info |= {
        "case": str(case),
        "kv_bytes": problem.kv_bytes,
        "error": error,
        "interpreted": INTERPRETED,
        "contenders": found,
    }


@pytest.mark.parametrize("case", steerings(), ids=str)
@torch.inference_mode()
def test_steering(benchmark, case):
    """What steering costs: every share of T and of open gates, against flags off."""
    check(case.problem())
    impl = "ours, static gate" if INTERPRETED else "ours in torch"
    found = {}

    def run():
        for name in (impl, *(("ours, flags off",) if impl != "ours in torch" else ())):
            found[name] = measure(case, name)

    benchmark.pedantic(run, rounds=1)
    benchmark.extra_info |= {
        "case": str(case), "interpreted": INTERPRETED, "contenders": found
    }  # fmt: skip


@torch.inference_mode()
def test_bandwidth(benchmark):
    """Copy and read bandwidth of this machine, bytes per second."""
    count = 1 << 26
    source = torch.randn(count // 4)
    target = torch.empty_like(source)
    found = {}

    def run():
        found["copy"] = 2 * count / time_of(lambda: target.copy_(source))["median"]
        found["read"] = count / time_of(source.sum)["median"]

    benchmark.pedantic(run, rounds=1)
    benchmark.extra_info |= {"bytes_per_second": found}
