"""What the kernel should take on a GPU, on paper: python -m benchmarks.predicted [--json FILE]

Predictions, nothing of them measured. For every headline shape of `benchmarks.gpu` the call is
made in full against a stand-in for the CUDA driver, which keeps each launch's grid and machine code
for sm_90. From these: bytes moved, warp instructions issued, programs resident on a
multiprocessor, and waves of the grid. The times that follow are bounds, from bytes over bandwidth
and from instructions over issue rate; the larger is the prediction. Launches and latency are left
out, so a short call takes longer, and by how much the GPU must tell.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from unittest import mock

import torch
from triton.runtime import driver

from benchmarks import sass
from benchmarks.compiled import resident, usage
from benchmarks.gpu.foreseen import BANDWIDTH
from benchmarks.gpu.stages import HEADLINE, MODELS
from benchmarks.host import MULTIPROCESSORS, StandIn
from benchmarks.timing import write
from vrga.kernels import decode
from vrga.kernels.launch import Workspace

CLOCK = 1.98e9  # of a multiprocessor under load
SCHEDULERS = 4  # of a multiprocessor; each issues one warp instruction a cycle
SIZE, GROUPS = 128, (1.0, 1.5)
# The gate's ways that differ in code: decided from the sums, or given for every head.
GATES = ("dynamic", "static")


class Reader(StandIn):
    """A driver that keeps what is launched.

    Attributes:
        binaries: (name, machine code, bytes of shared memory) of each function.
        found: (function, grid, warps) of each launch, in order.
    """

    def __init__(self):
        super().__init__()
        self.binaries: list[tuple[str, bytes, int]] = []
        self.found: list[tuple[int, tuple[int, ...], int]] = []

    def load_binary(self, name: str, cubin: bytes, shared: int, *rest: object) -> tuple[int, ...]:
        self.binaries.append((name, cubin, shared))
        number = len(self.binaries) - 1
        return number, number, *super().load_binary(name, cubin, shared, *rest)[2:]

    def launcher_cls(self, source: object, metadata: object):
        def launch(x, y, z, stream, function, packed, *rest):
            self.found.append((function, (x, y, z), packed[0]))

        return launch


def launches(reader: Reader, heads: int, kv_heads: int, batch: int, keys: int, gate: str) -> None:
    """Make one decode step's call; its tensors are never touched."""
    half = dict(dtype=torch.bfloat16)
    q = torch.empty(batch, heads, 1, SIZE, **half)
    k, v = (torch.empty(batch, kv_heads, keys, SIZE, **half) for _ in range(2))
    flags = torch.empty(batch, keys, dtype=torch.int32)
    given = torch.empty(batch, heads, dtype=torch.bool) if gate == "static" else None
    reader.found.clear()
    with mock.patch.object(decode, "multiprocessors", lambda index: MULTIPROCESSORS):
        decode.decode_attention(
            q, k, v, flags, torch.empty(batch, dtype=torch.int32), scale=SIZE**-0.5,
            opened=GROUPS, closed=(1.0, 1.0), focus=0.6, entropy=0.2, gate=given,
            workspace=Workspace(),
        )  # fmt: skip


def predict(reader: Reader, heads: int, kv_heads: int, batch: int, keys: int, gate: str) -> dict:
    """What follows from the launches of one shape.

    Returns:
        bytes: of keys, values, flags, and what splits leave and the merge reads. programs,
        resident, waves: of the first launch; `resident` on each multiprocessor. instructions: warp
        instructions of its loop. seconds: by device name.
    """
    launches(reader, heads, kv_heads, batch, keys, gate)
    function, grid, warps = reader.found[0]
    _, cubin, shared = reader.binaries[function]
    registers, spills = usage(cubin)
    item = torch.bfloat16.itemsize
    loop = sass.key_loop(sass.disassembled(cubin), 2 * SIZE * item, warps)
    fits = resident(registers, shared, warps, 90)
    programs = grid[0] * grid[1] * grid[2]
    kv = 2 * batch * kv_heads * keys * SIZE * item
    moved = kv + 4 * batch * keys
    if len(reader.found) > 1:  # m, l, l_I, u and o of every split, once written, once read
        tile = decode.kernel_constants(
            heads, kv_heads, 1, SIZE, len(GROUPS), extent=False, gate=gate == "static", stats=False
        )
        moved += 2 * programs * tile["GROUPS"] * tile["HALF"] * (4 + SIZE) * 4
    # Every program runs whole rounds of its share of the keys.
    rounds = -(-keys // (grid[0] * loop.keys)) * programs
    issued = rounds * loop.instructions * warps
    issue = issued / (MULTIPROCESSORS * SCHEDULERS * CLOCK)
    return {
        "kv_bytes": kv,
        "bytes": moved,
        "launches": len(reader.found),
        "grid": list(grid),
        "programs": programs,
        "resident": fits,
        "waves": programs / (MULTIPROCESSORS * fits),
        "registers": registers,
        "spills": spills,
        "loop": vars(loop) | {"per_key": loop.per_key},
        "instructions": issued,
        "issue_seconds": issue,
        "seconds": {name: max(moved / rate, issue) for name, rate in BANDWIDTH.items()},
    }


def every() -> dict[str, dict[str, dict]]:
    """Predictions of all headline shapes, by the names of `benchmarks.gpu` and by gate."""
    reader = Reader()
    driver.set_active(reader)
    return {
        f"{name} B{batch} S{keys}": {
            gate: predict(reader, *MODELS[name], batch, keys, gate) for gate in GATES
        }
        for name, batch, keys in HEADLINE
    }


def main() -> None:
    """Predict, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the predictions here")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("unset TRITON_INTERPRET: the interpreter compiles nothing")
    found = every()
    for shape, gates in found.items():
        for gate, one in gates.items():
            told = ", ".join(f"{1e6 * t:.1f} µs on an {name}" for name, t in one["seconds"].items())
            print(f"{shape}, {gate}: {told}; {one['waves']:.2f} waves of {one['resident']} a SM")
    write(options.json, {"kind": "prediction", "shapes": found})


if __name__ == "__main__":
    main()
