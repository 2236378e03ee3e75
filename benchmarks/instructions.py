"""Instructions of a token and of a prompt: python -m benchmarks.instructions [--json FILE]

What a machine shared with others cannot disturb. Valgrind counts them, on x86 under Linux
(`apt-get install valgrind`), some fifty times slower than the program runs by itself. So the 0.5B
text shape is cut to few layers, at two depths, between which a layer's share shows: all do the
same, so that the figures of the whole depth follow. Where steps are counted, the MLPs of the
prompt's own pass, which is not, are left out. Valgrind knows no AVX-512, and is slow at AVX2: torch
multiplies with SSE4.2, in four times as many instructions as with AVX-512, so that the instructions
that a patch adds are given beside the ratio.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from benchmarks.shapes import SHAPES, image_prompt, random_model, sharing
from benchmarks.steps import ARMS, SKIPPED, leave_out_mlps, patched
from benchmarks.timing import write
from benchmarks.turns import Turn, generate

COUNTED = [name for name in ARMS if name != "unpatched again"]
# A prompt is read alike where it is recorded.
READ = ["unpatched", "static gate", "dynamic gate"]
PLAIN = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
ALONE = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


# --- under valgrind ---


def instrument() -> None:
    """Let valgrind follow every instruction from here on."""
    command = ["callgrind_control", "-i", "on", str(os.getpid())]
    subprocess.run(command, check=True, capture_output=True)


def begun(model: nn.Module, inputs: dict, name: str, tokens: int) -> Turn:
    """An arm's generation, behind the tokens that do not count; `end` counts the others."""
    put_back, seen = leave_out_mlps(model), []

    def call(wait) -> None:
        def stop(ids, scores, **kwargs):
            seen.append(len(ids))
            put_back()
            if len(seen) != SKIPPED:
                return torch.zeros(len(ids), dtype=torch.bool)
            found = wait(ids, scores)
            torch._C._valgrind_toggle()
            return found

        with torch.inference_mode(), patched(model, ARMS[name]):
            generate(model, inputs, tokens + SKIPPED, stop)
            torch._C._valgrind_toggle_and_dump_stats()

    turn = Turn(call)
    turn.go()
    return turn


def count(shape: str, side: int, tokens: int, depths: list[int]) -> None:
    """Run what is counted: each depth's arms, token by token and then prompt by prompt."""
    inputs = image_prompt(1, side, "cpu", torch.float32)
    short = image_prompt(1, 4, "cpu", torch.float32)
    models = {
        depth: sharing(random_model(shape, "cpu", torch.float32, layers=depth), COUNTED)
        for depth in depths
    }
    turns = [begun(model, inputs, name, tokens) for arms in models.values()
             for name, model in arms.items()]  # fmt: skip
    instrument()
    for turn in turns:
        turn.end()
    for arms in models.values():
        for name in READ:
            with torch.inference_mode(), patched(arms[name], ARMS[name]):
                generate(arms[name], short, 1)
                torch._C._valgrind_toggle()
                generate(arms[name], inputs, 1)
                torch._C._valgrind_toggle_and_dump_stats()


# --- outside of it ---


def run(shape: str, side: int, tokens: int, depths: list[int]) -> list[int]:
    """What each block counted, in their order.

    Raises:
        RuntimeError: without valgrind, or with too few counts.
    """
    if shutil.which("valgrind") is None:
        raise RuntimeError("valgrind is missing: apt-get install valgrind")
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "counted"
        command = [
            "valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no",
            "--collect-atstart=no", f"--callgrind-out-file={written}", sys.executable,
            "-m", "benchmarks.instructions", "--count", "--shape", shape, "--side", str(side),
            "--tokens", str(tokens), "--depths", *map(str, depths),
        ]  # fmt: skip
        subprocess.run(command, check=True, env={**os.environ, **PLAIN, **ALONE})
        wanted = len(depths) * (len(COUNTED) + len(READ))
        files = [Path(f"{written}.{i + 1}") for i in range(wanted)]
        found = [re.search(r"^summary: (\d+)$", file.read_text(), re.M) for file in files]
    numbers = [int(one[1]) for one in found if one]
    if len(numbers) < wanted or not all(numbers):
        raise RuntimeError(f"valgrind gave counts {numbers}; wanted: {wanted} of them, none 0")
    return numbers


def measure(shape: str, side: int, tokens: int, depths: list[int]) -> dict:
    """Every arm's instructions per token, and of a prompt, at each depth and at the whole one."""
    numbers = iter(run(shape, side, tokens, depths))
    steps: dict[str, dict[str, float]] = {name: {} for name in COUNTED}
    prompts: dict[str, dict[str, float]] = {name: {} for name in READ}
    for depth in depths:
        for name in COUNTED:
            steps[name][str(depth)] = next(numbers) / tokens
    for depth in depths:
        for name in READ:
            prompts[name][str(depth)] = next(numbers)
    whole, (low, high) = SHAPES[shape].layers, depths
    for found in (*steps.values(), *prompts.values()):
        layer = (found[str(high)] - found[str(low)]) / (high - low)
        found[str(whole)] = found[str(low)] + layer * (whole - low)
    return {
        "case": f"{shape}-{side}x{side}-b1",
        "tokens": tokens,
        "layers": whole,
        "depths": depths,
        "kernels": "SSE4.2",
        "per_token": steps,
        "per_prompt": prompts,
    }


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="0.5b")
    parser.add_argument("--side", type=int, default=32, help="of the image, in tokens")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer that count")
    parser.add_argument("--depths", type=int, nargs=2, default=[2, 4], help="layers, ascending")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.count:
        torch.set_num_threads(1)
        count(chosen.shape, chosen.side, chosen.tokens, chosen.depths)
        return
    found = measure(chosen.shape, chosen.side, chosen.tokens, chosen.depths)
    whole = str(found["layers"])
    for kind in ("per_token", "per_prompt"):
        base = found[kind]["unpatched"]
        print(f"{found['case']}, instructions {kind.replace('_', ' ')}, {base[whole] / 1e6:.1f} M:")
        for name, one in found[kind].items():
            told = ", ".join(f"{one[d] - base[d]:+,.0f} at {d} layers" for d in one)
            print(f"  {name}: {one[whole] / base[whole]:.4f}, {told}")
    write(chosen.json, found)


if __name__ == "__main__":
    main()
