"""How a prefill and a token grow with the prompt, patched and unpatched.

    python -m benchmarks.growth [--shape small] [--keys 256 512 ...] [--json FILE]

Two models that share their weights, one of them patched, take turns: a prefill each, then a token
each. On a CPU what is counted is the time of one thread, which other programs disturb less than the
clock on the wall; only ratios of it mean something. Memory is the largest sum of living tensors on
top of the weights, and operators are what torch ran in a prefill: neither varies between runs.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import vrga
from benchmarks.shapes import SHAPES, image_prompt, random_model, sharing
from benchmarks.timing import ratio, summary, write
from benchmarks.turns import now
from vrga import VRGAConfig
from vrga.hf.cache import cache_in
from vrga.hf.host import Host

GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
ARMS = ("unpatched", "patched")
KEYS = (256, 512, 1024, 2048, 4096, 8192, 16384)
SHARE, LARGEST = 0.75, 32  # of the prompt that images take; tokens along the side of one


class Arm:
    """One model and the cache of its last prefill.

    Args:
        batch: rows of the prompts.
    """

    def __init__(self, model: nn.Module, batch: int):
        self.model, self._name = model, Host(model).cache_name
        self._token = torch.full((batch, 1), 100, device=DEVICE)
        self._cache: object | None = None

    def prefill(self, inputs: dict[str, Tensor]) -> None:
        """Read the prompt."""
        self.forget()
        self._cache = cache_in(self.model(**inputs, use_cache=True, logits_to_keep=1))

    def forget(self) -> None:
        """Let go of the cache."""
        self._cache = None

    def step(self) -> None:
        """One token more."""
        place = torch.full((3, len(self._token), 1), self._cache.get_seq_length(), device=DEVICE)
        given = {self._name: self._cache, "position_ids": place}
        self.model(input_ids=self._token, **given, use_cache=True)


def prompt(keys: int, batch: int) -> dict[str, Tensor]:
    """Inputs of so many tokens a row, three quarters of them of images where that goes."""
    side = min(LARGEST, math.isqrt(int(SHARE * keys)))
    images = max(1, int(SHARE * keys) // side**2)
    more = keys - images * (side**2 + 2) - 43
    return image_prompt(batch, side, DEVICE, DTYPE, images=images, more=more)


def seconds(call: Callable[[], None]) -> float:
    """Time of one call: on a GPU until its work is done, on a CPU that of this process."""
    start = now()
    call()
    return now() - start


def weight(call: Callable[[], None]) -> dict[str, int]:
    """Bytes of living tensors at their peak beyond those before a call, and operators it ran."""
    activities = [ProfilerActivity.CPU]
    with profile(activities=activities, profile_memory=not GPU) as measured:
        if GPU:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        call()
    found = sum(event.count for event in measured.key_averages() if event.key.startswith("aten::"))
    peak = torch.cuda.max_memory_allocated() - before if GPU else highest(measured)
    return {"bytes": peak, "operators": found}


def highest(measured: profile) -> int:
    """The largest total of bytes allocated and not yet freed since the profile began; resident
    memory varies by some percent between runs of the same code."""
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


def measure(arms: dict[str, Arm], keys: int, batch: int, prefills: int, tokens: int) -> dict:
    """Both arms at one length."""
    inputs = prompt(keys, batch)
    assert inputs["input_ids"].shape[1] == keys
    first: dict[str, list[float]] = {name: [] for name in ARMS}
    later: dict[str, list[float]] = {name: [] for name in ARMS}
    for arm in arms.values():
        arm.forget()
    weights = {name: weight(lambda arm=arms[name]: arm.prefill(inputs)) for name in ARMS}
    for times, rounds, call in (
        (first, prefills, lambda arm: arm.prefill(inputs)),
        (later, tokens, lambda arm: arm.step()),
    ):
        for i in range(rounds):
            for name in ARMS if i % 2 else reversed(ARMS):
                times[name].append(seconds(lambda name=name, call=call: call(arms[name])))
    return {
        "keys": keys,
        "prefill": weights,
        "seconds_to_first_token": {name: summary(first[name]) for name in ARMS},
        "seconds_per_token": {name: summary(later[name]) for name in ARMS},
        "ratio_first_token": ratio(first["patched"], first["unpatched"]),
        "ratio_per_token": ratio(later["patched"], later["unpatched"]),
    }


@torch.inference_mode()
def run(shape: str, lengths: list[int], batch: int, prefills: int, tokens: int) -> dict:
    """Every length in turn; what is measured stands in seconds, bytes and counts."""
    plain = random_model(shape, DEVICE, DTYPE)
    arms = {name: Arm(model, batch) for name, model in sharing(plain, ARMS).items()}
    found = []
    with vrga.patch(arms["patched"].model, VRGAConfig.paper()):
        for arm in arms.values():  # what is made once
            arm.prefill(prompt(min(lengths), batch))
            arm.step()
        for keys in lengths:
            # Longer prefills are fewer, and steadier.
            rounds = max(min(3, prefills), min(prefills, prefills * 2048 // keys))
            found.append(measure(arms, keys, batch, rounds, tokens))
            print(told(found[-1]), flush=True)
    return {"shape": shape, "batch": batch, "lengths": found}


def told(found: dict) -> str:
    """One length in a line."""
    weights = found["prefill"]
    extra = weights["patched"]["bytes"] - weights["unpatched"]["bytes"]
    counts = " and ".join(str(weights[name]["operators"]) for name in ARMS)
    ratios = (found["ratio_first_token"], found["ratio_per_token"])
    spread = ("{median:.4f} ({low:.4f} to {high:.4f}, {n})".format(**one) for one in ratios)
    return f"{found['keys']} keys: {'; '.join(spread)}; {extra} bytes more; {counts} operators"


def main() -> None:
    """Measure, print, and write the JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="7b" if GPU else "small")
    parser.add_argument("--keys", type=int, nargs="+", default=list(KEYS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prefills", type=int, default=16, help="pairs of them, at short prompts")
    parser.add_argument("--tokens", type=int, default=40, help="pairs of them")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    if not GPU:
        torch.set_num_threads(1)
    found = run(options.shape, options.keys, options.batch, options.prefills, options.tokens)
    write(options.json, found)


if __name__ == "__main__":
    main()
