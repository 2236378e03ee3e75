"""What recording costs: python -m benchmarks.trace [--json FILE]

Models that share their weights, each recording otherwise, generate at the same time and take turns
token by token; what is compared ran side by side. Where nothing is steered, statistics are computed
64 steps at a time, so what is compared is the time of 64 tokens. Random weights at the 0.5B text
shape on a CPU (7B on a GPU), one image of 32 x 32 tokens. On a CPU only the ratios mean something,
and what is counted is the time of one thread, which other programs on the machine disturb less
than the clock on the wall.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

import vrga
from benchmarks.shapes import SHAPES, image_prompt, random_model, sharing
from benchmarks.timing import ratio, spread, summary, write
from benchmarks.turns import Turn, generate, take_turns
from vrga import VRGAConfig
from vrga.recording.waiting import CHUNK

GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
# name -> (gain, options of record() or None: not recorded)
ARMS = {
    "steered": (1.5, None),
    "steered, recorded": (1.5, {}),
    "steered, maps of visual heads": (1.5, {"maps": "visual"}),
    "off": (1.0, None),
    "off, recorded": (1.0, {}),
    "off, maps of visual heads": (1.0, {"maps": "visual"}),
}


def arm(model: nn.Module, inputs: dict, gain: float, options: dict | None, tokens: int, kept: dict):
    """The call of a `Turn`; `kept` gets the number of steps in its trace."""

    def call(stop) -> None:
        with vrga.patch(model, VRGAConfig.published(gain=gain)) as patch:
            with nullcontext() if options is None else patch.record(**options) as trace:
                generate(model, inputs, tokens, stop)
            if trace is not None:
                kept["steps"] = len(trace.image)

    return call


def measure(plain: nn.Module, case: str, side: int, windows: int) -> dict:
    """Seconds per token of every arm, and each recording arm over the one that records nothing.

    Args:
        plain: the model, unpatched; case: what to call it.
    """
    device, dtype = plain.device.type, plain.dtype
    inputs = image_prompt(1, side, device, dtype)
    # The prefill's token, and one after which the last window's statistics are computed.
    tokens = windows * CHUNK + 2
    turns, kept = {}, {name: {} for name in ARMS}
    for name, model in sharing(plain, ARMS).items():
        turns[name] = Turn(arm(model, inputs, *ARMS[name], tokens, kept[name]))
    take_turns(turns, tokens)
    spent = {}  # of whole windows: what waited is computed before a window's last token
    for name, turn in turns.items():
        times = turn.times[2:]
        spent[name] = [sum(times[i : i + CHUNK]) for i in range(0, len(times), CHUNK)]
    return {
        "case": case,
        "keys": inputs["input_ids"].shape[1] + tokens,
        "steps_recorded": {name: found["steps"] for name, found in kept.items() if found},
        "seconds_per_token": {name: summary([one / CHUNK for one in spent[name]]) for name in ARMS},
        "ratio_per_token": {
            name: ratio(spent[name], spent[name.split(",")[0]]) for name in ARMS if "," in name
        },
    }


def main() -> None:
    """Measure, print, and write the JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--shape", choices=SHAPES, default="7b" if GPU else "0.5b")
    parser.add_argument("--side", type=int, default=32, help="image side in tokens")
    parser.add_argument("--windows", type=int, default=8, help=f"of {CHUNK} tokens, in each arm")
    options = parser.parse_args()
    if not GPU:
        torch.set_num_threads(1)
    model = random_model(options.shape, DEVICE, DTYPE)
    case = f"{options.shape}-{options.side}x{options.side}-b1"
    found = measure(model, case, options.side, options.windows)
    for arm, value in found["ratio_per_token"].items():
        print(f"{arm}: {spread(value)}")
    write(options.json, found)


if __name__ == "__main__":
    main()
