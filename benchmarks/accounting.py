"""What accounting costs: python -m benchmarks.accounting [--shape 0.5b] [--tokens 48] [--json FILE]

Every function that tells what a pass is, checks it, or notes a step is timed where it is called, in
a generation at the 0.5B text shape with one image of 32 x 32 tokens; their time is set against the
whole of the token. The clock is read twice in every call, and that is counted as theirs, so the
share is an upper bound. A machine's noise is far larger than such a share: it cannot be seen in the
difference of two runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

import vrga
from benchmarks.shapes import image_prompt, random_model
from benchmarks.timing import environment, summary
from vrga import VRGAConfig
from vrga.steering.arrival import Arrival
from vrga.steering.forward_pass import ForwardPass
from vrga.steering.run import Run
from vrga.steering.steps import Ledger

ACCOUNTING = {
    Ledger: ("note", "forget_from"),
    ForwardPass: ("_check_keys", "check_layers", "check_cache", "biased"),
    Run: ("_bind",),
    Arrival: ("what",),
}


class Clock:
    """Seconds spent in some functions, those called from one of them not counted twice."""

    def __init__(self):
        self.spent, self.calls, self._depth = 0.0, 0, 0

    def around(self, function: Callable) -> Callable:
        """The same function, timed."""

        def timed(*args, **kwargs):
            start = time.perf_counter()
            self._depth += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.spent += time.perf_counter() - start
                    self.calls += 1

        return timed


def measure(shape: str, tokens: int) -> dict:
    """Accounting's share of each token after the prompt, and of the token the seconds."""
    model = random_model(shape, "cpu", torch.float32)
    inputs = image_prompt(1, 32, "cpu", torch.float32)
    clock, marks = Clock(), []

    def tick(ids, scores, **kwargs):
        marks.append((time.perf_counter(), clock.spent, clock.calls))
        return torch.zeros(len(ids), dtype=torch.bool)

    kept = {(where, name): getattr(where, name) for where, names in ACCOUNTING.items()
            for name in names}  # fmt: skip
    try:
        for (where, name), function in kept.items():
            setattr(where, name, clock.around(function))
        with vrga.patch(model, VRGAConfig.paper()) as patch:
            model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens,
                           do_sample=False, stopping_criteria=[tick])  # fmt: skip
            steps = patch.steps[0]
    finally:
        for (where, name), function in kept.items():
            setattr(where, name, function)
    pairs = list(itertools.pairwise(marks))
    return {
        "steered": steps.steered,
        "share": summary([(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs]),
        "microseconds": summary([1e6 * (b[1] - a[1]) for a, b in pairs]),
        "calls": summary([float(b[2] - a[2]) for a, b in pairs]),
    }


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="0.5b")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = environment() | {"shape": options.shape} | measure(options.shape, options.tokens)
    print(json.dumps(found, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
