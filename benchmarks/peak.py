"""Peak memory of one arm on a CPU: python -m benchmarks.peak ARM SHAPE SIDE BATCH CACHE -> JSON.

It is the largest sum of living tensors that the profiler saw on top of the weights: resident memory
varies by some percent between runs of the same code. On a GPU, `benchmarks.gpu` asks the allocator.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import vrga
from benchmarks.shapes import image_prompt, random_model
from vrga import VRGAConfig


@torch.inference_mode()
def main(arm: str, shape: str, side: str, batch: str, cache: str) -> None:
    """Generate a few tokens and print the peak, weights included."""
    model = random_model(shape, "cpu", torch.float32)
    inputs = image_prompt(int(batch), int(side), "cpu", torch.float32)
    options = {} if cache == "dynamic" else {"cache_implementation": "static"}

    def generate() -> None:
        with vrga.patch(model, VRGAConfig.published()) if arm == "patched" else nullcontext():
            model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False, **options)

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        generate()
    weights = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    peak = sum(weights.values()) + highest(measured)
    print(json.dumps({"arm": arm, "bytes": peak}))


def highest(measured: profile) -> int:
    """The largest total of bytes allocated and not yet freed since the profile began."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        measured.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    changes = [
        (event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"
    ]
    total = highest = 0
    for _, change in sorted(changes, key=lambda found: found[0]):
        total += change
        highest = max(highest, total)
    return highest


if __name__ == "__main__":
    main(*sys.argv[1:])
