"""Host work of a kernel launch, without a GPU: python -m benchmarks.host [--json FILE]

A stand-in takes the place of the CUDA driver: kernels are compiled for sm_90 and bound to their
arguments as ever, and the launch itself does nothing. What is timed is the Python before it, so
only the ratio of ways to launch means something; `benchmarks.gpu` has the host time.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from benchmarks.contenders import ENTROPY, FOCUS, GAIN, Problem, make_problem
from benchmarks.timing import summary, write
from vrga.kernels import decode
from vrga.kernels.launch import Workspace

MULTIPROCESSORS = 132  # of an H100 or H200
CALLS, ROUNDS = 300, 15


class StandIn:
    """A driver of one sm_90 device whose launches are noted and not run.

    Attributes:
        launches: (grid, arguments) of every launch, while `noting`.
    """

    def __init__(self):
        self.launches: list[tuple[tuple, tuple]] = []
        self.noting = False
        self.utils = self

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024, "multiprocessor_count": MULTIPROCESSORS}

    def load_binary(self, *args: object) -> tuple[int, ...]:
        return 1, 1, 80, 0, 1024  # module, function, registers, spills, threads

    def unload_module(self, module: int) -> None:
        self.launches.clear()

    def launcher_cls(self, source: object, metadata: object) -> Callable:
        def launch(x, y, z, stream, function, packed, metadata, enter, leave, *args):
            if self.noting:
                self.launches.append(((x, y, z), args))

        return launch


def steer(problem: Problem, workspace: Workspace) -> None:
    """One decode step of attention."""
    p = problem
    decode.decode_attention(
        p.q, p.k, p.v, p.flags, p.images, scale=p.scale, opened=(1.0, GAIN), closed=(1.0, 1.0),
        focus=FOCUS, entropy=ENTROPY, workspace=workspace,
    )  # fmt: skip


def noted(stand_in: StandIn, call: Callable[[], None]) -> list[tuple[tuple, tuple]]:
    """The launches of a call."""
    stand_in.launches, stand_in.noting = [], True
    call()
    stand_in.noting = False
    return stand_in.launches


def check(stand_in: StandIn) -> int:
    """Assert that kept launches pass what Triton's own pass; the number of launches compared."""
    compared = 0
    for keys in (64, 1000, 4096):
        problems = [
            make_problem(2, keys, 28, 4, 128, torch.bfloat16, "cpu", seed=s) for s in (0, 1)
        ]
        workspace = Workspace()
        steer(problems[0], workspace)  # makes the plan
        kept = noted(stand_in, lambda p=problems[1], w=workspace: steer(p, w))
        workspace.plans.clear()
        own = noted(stand_in, lambda p=problems[1], w=workspace: steer(p, w))
        assert len(kept) == len(own) > 0
        for (grid, found), (own_grid, wanted) in zip(kept, own, strict=True):
            assert grid == own_grid and len(found) == len(wanted)
            for a, b in zip(found, wanted, strict=True):
                tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
                # The output is a new tensor in every call.
                fresh = tensors and a.shape == b.shape == (2, 1, 28, 128)
                same = a.data_ptr() == b.data_ptr() if tensors else a == b
                assert fresh or same, (a, b)
            compared += 1
    return compared


def microseconds(call: Callable[[], None]) -> dict[str, float]:
    """Time per call, over rounds."""
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        found.append((time.perf_counter() - start) / CALLS * 1e6)
    return summary(found)


def main() -> None:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("unset TRITON_INTERPRET: the interpreter launches nothing")
    stand_in = StandIn()
    driver.set_active(stand_in)
    with mock.patch.object(decode, "multiprocessors", lambda index: MULTIPROCESSORS):
        compared = check(stand_in)
        problem, workspace = make_problem(1, 4096, 28, 4, 128, torch.bfloat16, "cpu"), Workspace()

        def anew():
            workspace.plans.clear()
            steer(problem, workspace)

        times = {
            "kept": microseconds(lambda: steer(problem, workspace)),
            "anew": microseconds(anew),
        }
    ratio = times["kept"]["median"] / times["anew"]["median"]
    print(f"{compared} launches compared; host time of a kept launch / one made anew: {ratio:.3f}")
    write(arguments.json, {"compared": compared, "ratio": ratio, **times})


if __name__ == "__main__":
    main()
