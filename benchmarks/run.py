"""One decode step of attention on a CPU, by everyone who could do it: python -m benchmarks.run

Correctness first, then time, at small shapes, for the ratios of the contenders that run there. With
TRITON_INTERPRET=1 our kernel runs as well, in Triton's interpreter: that proves the program, its
times mean nothing, and no table shows them. On a GPU: `python -m benchmarks.gpu`.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import torch

from benchmarks.contenders import ENTROPY, FOCUS, GAIN, GATES, Problem, make_problem, ours
from benchmarks.gpu.kernel import OWN, shape
from benchmarks.timing import RESULTS, environment, write
from vrga.kernels.reference import decode_attention_reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HEADS, KV_HEADS, SIZE = 14, 2, 64
# (batch, keys); in the interpreter one call proves that the suite runs.
SHAPES = [(1, 256), (1, 1024), (2, 256), (2, 1024)][: 1 if INTERPRETED else None]
ROUNDS = 1 if INTERPRETED else 15
CONTENDERS = ["sdpa", "ours in torch", "sdpa + bias", "two-pass torch", "per-head loop"]


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


def measure(batch: int, keys: int) -> dict:
    """Every contender's time at one shape."""
    error = check(make_problem(batch, keys, HEADS, KV_HEADS, SIZE, torch.float32, "cpu"))
    names = [*CONTENDERS, *(OWN if INTERPRETED else ())]
    found = shape(heads=HEADS, kv_heads=KV_HEADS, batch=batch, keys=keys, size=SIZE,
                  contenders=names, rounds=ROUNDS)  # fmt: skip
    for name, one in found["contenders"].items():
        one["gates"] = name in GATES
    case = f"{HEADS}/{KV_HEADS} B{batch} S{keys} T5% open50%"
    return found | {"case": case, "error": error, "interpreted": INTERPRETED}


def main() -> None:
    """Measure and keep what was found, by default under the device's name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    chosen = parser.parse_args()
    if torch.cuda.is_available():
        parser.error(
            "this suite is of a CPU, and there is a GPU here: run python -m benchmarks.gpu, or "
            "hide it with CUDA_VISIBLE_DEVICES="
        )
    device = re.sub(r"[^a-z0-9]+", "-", str(environment()["device"]).lower()).strip("-")
    name = f"kernel-{device}{'-interpreted' if INTERPRETED else ''}.json"
    found = [{"extra_info": measure(*one)} for one in SHAPES]
    write(chosen.json or RESULTS / name, {"benchmarks": found})


if __name__ == "__main__":
    main()
