"""Peak memory of one arm: python -m benchmarks.peak ARM SHAPE SIDE BATCH CACHE -> JSON.

The peak is that of generation alone; building the model does not count.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

import vrga
from benchmarks.shapes import image_prompt, random_model


@torch.inference_mode()
def main(arm: str, shape: str, side: str, batch: str, cache: str) -> None:
    """Generate a few tokens and print the peak of the process' resident memory (Linux), or of the
    GPU's allocated memory."""
    gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    model = random_model(shape, device, dtype)
    inputs = image_prompt(int(batch), int(side), device, dtype)
    options = {} if cache == "dynamic" else {"cache_implementation": "static"}
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    with vrga.patch(model) if arm == "patched" else nullcontext():
        model.generate(**inputs, max_new_tokens=16, min_new_tokens=16, do_sample=False, **options)
    if gpu:
        peak = torch.cuda.max_memory_allocated()
    else:
        status = Path("/proc/self/status").read_text()
        peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
    print(json.dumps({"arm": arm, "bytes": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
