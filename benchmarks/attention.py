"""One layer's attention at a step, on a CPU: python -m benchmarks.attention [--json FILE]

Over torch's own attention without steering, in turns, by the time of one thread: the bias of a
gate that is known beforehand, and the gate that each step decides, without and with the sums that a
recording takes of it. What the layers of a forward pass share is made once, as in a model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.contenders import ENTROPY, FOCUS, GAIN, Problem, make_problem, sdpa
from benchmarks.timing import both, compared, write
from vrga.kernels.biased import biased_attention
from vrga.kernels.columns import GROUP
from vrga.kernels.gated import GatedKeys, gated_attention, table
from vrga.kernels.reference import decode_attention_reference

# (query heads, key heads, head size, keys)
SHAPES = [
    (14, 2, 64, 300),
    (14, 2, 64, 1069),
    (14, 2, 64, 4096),
    (28, 4, 128, 1069),
    (28, 4, 128, 4096),
    (8, 8, 64, 1069),
]


def ways(problem: Problem) -> dict[str, Callable[[], Tensor]]:
    """Plain attention, and what steers."""
    p, weights = problem, dict(opened=(1.0, GAIN), closed=(1.0, 1.0))
    keys = p.k.shape[2]
    behind = torch.nn.functional.pad(p.flags, (0, keys - p.flags.shape[1]))
    rows = table(behind, **weights, dtype=torch.float32)
    known = GatedKeys.of(rows, (keys / p.images)[:, None, None], None)
    bias = torch.where(p.gate[:, :, None] & p.region[:, None], torch.tensor(GAIN).log(), 0.0)
    stats = torch.empty(*p.q.shape[:3], GROUP + 2)

    def decided(stats: Tensor | None) -> Callable[[], Tensor]:
        numbers = dict(scale=p.scale, focus=FOCUS, entropy=ENTROPY, stats=stats)
        return lambda: gated_attention(p.q, p.k, p.v, known, **numbers)

    return {
        "plain": sdpa(p),
        "static gate": lambda: biased_attention(p.q, p.k, p.v, bias, scale=p.scale),
        "dynamic gate": decided(None),
        "dynamic gate, recorded": decided(stats),
    }


def check(problem: Problem, calls: dict[str, Callable[[], Tensor]]) -> None:
    """Raise AssertionError where a way is not what the reference gives."""
    p, numbers = problem, dict(opened=(1.0, GAIN), closed=(1.0, 1.0), scale=problem.scale)
    for name, gate in (("static gate", p.gate), ("dynamic gate", None)):
        exact = decode_attention_reference(
            p.q, p.k, p.v, p.flags, p.images, gate=gate, focus=FOCUS, entropy=ENTROPY, **numbers
        )
        torch.testing.assert_close(calls[name](), exact, rtol=1e-5, atol=1e-5)


def measure(shape: tuple[int, int, int, int], rounds: int) -> dict[str, dict[str, float]]:
    """Each way's time over plain attention's."""
    heads, kv_heads, size, keys = shape
    problem = make_problem(1, keys, heads, kv_heads, size, torch.float32, "cpu")
    calls = ways(problem)
    check(problem, calls)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(-5, rounds):  # the first are warm-up
        for name in calls if i % 2 else reversed(calls):
            start = time.thread_time()
            calls[name]()
            spent = time.thread_time() - start
            if i >= 0:
                times[name].append(spent)
    plain = times.pop("plain")
    return {name: compared(one, plain) for name, one in times.items()}


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for shape in SHAPES:
        name = "{}/{} heads of {}, {} keys".format(*shape)
        found[name] = measure(shape, chosen.rounds)
        told = (f"{way} {both(one)}" for way, one in found[name].items())
        print(f"{name}: {', '.join(told)}")
    write(chosen.json, {"ratios": found})


if __name__ == "__main__":
    main()
