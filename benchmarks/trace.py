"""What recording costs: python -m benchmarks.trace [--json FILE]

Models that share their weights, each recording otherwise, take turns forward pass by forward pass;
what is compared ran side by side. Random weights at the 0.5B text shape on a CPU (7B on a GPU),
one image of 32 x 32 tokens. On a CPU only the ratios mean something, and what is counted is the
time of one thread, which other programs on the machine disturb less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from contextlib import ExitStack
from pathlib import Path

import torch

import vrga
from benchmarks.shapes import SHAPES, image_prompt, random_model
from benchmarks.timing import environment, ratio, seconds, summary
from vrga import VRGAConfig

GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
WARM_UP = 4
# name -> (gain, options of record() or None: not recorded)
ARMS = {
    "steered": (1.5, None),
    "steered, recorded": (1.5, {}),
    "steered, every 10th step": (1.5, {"steps": range(0, 10**6, 10)}),
    "steered, maps of visual heads": (1.5, {"maps": "visual"}),
    "off": (1.0, None),
    "off, recorded": (1.0, {}),
}


def spent(call) -> float:
    """Seconds that a call takes: on a GPU on the clock, on a CPU of this process."""
    if GPU:
        return seconds(call)
    start = time.process_time()
    call()
    return time.process_time() - start


@torch.inference_mode()
def measure(shape: str, side: int, tokens: int) -> dict:
    """Seconds per pass of every arm, and each recording arm over the one that records nothing."""
    plain = random_model(shape, DEVICE, DTYPE)
    inputs = image_prompt(1, side, DEVICE, DTYPE)
    shared = {id(x): x for x in (*plain.parameters(), *plain.buffers())}
    token = torch.full((1, 1), 100, device=DEVICE)
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    models, caches, traces = {}, {}, {}
    with ExitStack() as stack:
        for arm, (gain, options) in ARMS.items():
            models[arm] = copy.deepcopy(plain, dict(shared))
            patch = stack.enter_context(vrga.patch(models[arm], VRGAConfig(gain=gain)))
            if options is not None:
                traces[arm] = stack.enter_context(patch.record(**options))
            out = models[arm](**inputs, use_cache=True, logits_to_keep=1)
            caches[arm] = out.past_key_values

        def step(arm: str) -> None:
            place = torch.full((3, 1, 1), caches[arm].get_seq_length(), device=DEVICE)
            models[arm](
                input_ids=token, past_key_values=caches[arm], position_ids=place, use_cache=True
            )

        arms = list(ARMS)
        for i in range(WARM_UP + tokens):
            # Every arm comes first equally often, and always follows another one.
            for arm in arms[i % len(arms) :] + arms[: i % len(arms)]:
                took = spent(lambda arm=arm: step(arm))
                if i >= WARM_UP:
                    times[arm].append(took)
    steps = {arm: 0 if t.image is None else len(t.image) for arm, t in traces.items()}
    return {
        "case": f"{shape}-{side}x{side}-b1",
        "keys": inputs["input_ids"].shape[1] + WARM_UP + tokens,
        "steps_recorded": steps,
        "seconds_per_token": {arm: summary(times[arm]) for arm in arms},
        "ratio_per_token": {
            arm: ratio(times[arm], times[arm.split(",")[0]]) for arm in arms if "," in arm
        },
    }


def main() -> None:
    """Measure, print, and write the JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--shape", choices=SHAPES, default="7b" if GPU else "0.5b")
    parser.add_argument("--side", type=int, default=32, help="image side in tokens")
    parser.add_argument("--tokens", type=int, default=96, help="passes of each arm")
    options = parser.parse_args()
    if not GPU:
        torch.set_num_threads(1)
    found = measure(options.shape, options.side, options.tokens)
    for arm, value in found["ratio_per_token"].items():
        print(f"{arm}: {value['median']:.3f} ({value['low']:.3f} to {value['high']:.3f})")
    if options.json is not None:
        run = {"environment": environment(), **found}
        options.json.write_text(json.dumps(run, indent=1) + "\n")


if __name__ == "__main__":
    main()
