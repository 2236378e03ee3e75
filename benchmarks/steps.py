"""What a step of an answer costs on a CPU: python -m benchmarks.steps [--json FILE]

Models that share their weights, one unpatched, one unpatched again and the others patched each in
its way, generate at the same time and take turns token by token; what is compared ran side by side.
What is counted is the time of one thread, which other programs on the machine disturb less than the
clock on the wall, and, where nothing can disturb it, the operators of a step and the bytes of the
tensors that they take and make. Prompts take turns likewise; that of an answer whose tokens count
goes without its MLPs, which takes an eighth of the time. Random weights at the 0.5B text shape,
one image of 32 x 32 tokens; some ten minutes on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vrga
from benchmarks.shapes import image_prompt, random_model, sharing
from benchmarks.timing import both, compared, summary, write
from benchmarks.turns import Turn, generate, now
from vrga import VRGAConfig

# name -> (config, whether it is recorded), or None: not patched
ARMS: dict[str, tuple[VRGAConfig, bool] | None] = {
    "unpatched": None,
    "unpatched again": None,
    "static gate": (VRGAConfig.paper(), False),
    "dynamic gate": (VRGAConfig.published(), False),
    "static gate, recorded": (VRGAConfig.paper(), True),
    "gain 1, recorded": (VRGAConfig.paper(gain=1.0), True),
}
PROMPTS = ["unpatched", "unpatched again", "static gate", "dynamic gate"]
SKIPPED = 4  # tokens before the first that counts, the prefill's among them


class Operators(TorchDispatchMode):
    """Counts operators, and bytes of the tensors that they take and make; views move none."""

    def __init__(self):
        super().__init__()
        self.count = self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.count += 1
            tensors = (x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor))
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return out


@contextmanager
def patched(model: nn.Module, arm: tuple[VRGAConfig, bool] | None):
    """The model as an arm has it."""
    with nullcontext() if arm is None else vrga.patch(model, arm[0]) as patch:
        with patch.record() if arm is not None and arm[1] else nullcontext():
            yield


def leave_out_mlps(model: nn.Module) -> Callable[[], None]:
    """Let the text model go without its MLPs, until what is returned is called."""
    mlps = [layer.mlp for layer in model.model.language_model.layers]
    for mlp in mlps:
        mlp.forward = lambda states: states

    def put_back() -> None:
        for mlp in mlps:
            vars(mlp).pop("forward", None)

    return put_back


def turn_of(model: nn.Module, inputs: dict, name: str, tokens: int) -> Turn:
    """An arm's generation, which waits for its turns."""

    def call(stop) -> None:
        with torch.inference_mode(), patched(model, ARMS[name]):
            generate(model, inputs, tokens, stop)

    return Turn(call)


def operators(model: nn.Module, inputs: dict, name: str) -> dict[str, float]:
    """Of one step: how many, and the bytes they take and make."""
    seen, put_back = [], leave_out_mlps(model)
    with torch.inference_mode(), patched(model, ARMS[name]), Operators() as counted:

        def stop(ids, scores, **kwargs):
            put_back()
            seen.append((counted.count, counted.bytes))
            return torch.zeros(len(ids), dtype=torch.bool)

        generate(model, inputs, SKIPPED + 2, stop)
    (count, moved), (later, more) = seen[-2:]
    return {"operators": later - count, "bytes": more - moved}


def prompts(models: dict[str, nn.Module], inputs: dict, rounds: int) -> dict[str, list[float]]:
    """Seconds of a prompt up to its first token, in each of the rounds."""
    times: dict[str, list[float]] = {name: [] for name in PROMPTS}
    for i in range(-1, rounds):  # the first is warm-up
        for name in PROMPTS if i % 2 else reversed(PROMPTS):
            with torch.inference_mode(), patched(models[name], ARMS[name]):
                start = now()
                generate(models[name], inputs, 1)
                spent = now() - start
            if i >= 0:
                times[name].append(spent)
    return times


def measure(shape: str, side: int, tokens: int, rounds: int) -> dict:
    """Every arm's seconds and operators per token, its time over the unpatched model's, and the
    same of `rounds` prompts."""
    plain = random_model(shape, "cpu", torch.float32)
    inputs = image_prompt(1, side, "cpu", torch.float32)
    models = sharing(plain, ARMS)
    counted = {name: operators(models[name], inputs, name) for name in ARMS}
    put_back = [leave_out_mlps(model) for model in models.values()]
    turns = {name: turn_of(models[name], inputs, name, tokens + SKIPPED) for name in ARMS}
    arms = list(ARMS)
    for i in range(tokens + SKIPPED):
        if i == 1:
            for put in put_back:
                put()
        # Every arm comes first equally often, forwards and backwards: what comes before an arm
        # leaves it another cache.
        order = arms[i % len(arms) :] + arms[: i % len(arms)]
        for name in order if i % 2 else reversed(order):
            turns[name].go()
    for turn in turns.values():
        turn.end()
    times = {name: turn.times[SKIPPED:] for name, turn in turns.items()}
    first = prompts(models, inputs, rounds)
    base = arms[0]
    return {
        "case": f"{shape}-{side}x{side}-b1",
        "keys": inputs["input_ids"].shape[1] + tokens,
        "seconds_per_token": {name: summary(times[name]) for name in arms},
        "operators_per_token": counted,
        "ratio_per_token": {name: compared(times[name], times[base]) for name in arms[1:]},
        "ratio_per_prompt": {name: compared(first[name], first[base]) for name in PROMPTS[1:]},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="0.5b")
    parser.add_argument("--side", type=int, default=32, help="of the image, in tokens")
    parser.add_argument("--tokens", type=int, default=192, help="of each answer that count")
    parser.add_argument("--prompts", type=int, default=8, help="of each arm that count")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(chosen.shape, chosen.side, chosen.tokens, chosen.prompts)
    print(f"{found['case']}, {found['keys']} keys, time of one thread over the unpatched model's:")
    for name in ARMS:
        counted = found["operators_per_token"][name]
        told = f"{counted['operators']} operators, {counted['bytes'] / 1e6:.1f} MB"
        if name in found["ratio_per_token"]:
            one = found["ratio_per_token"][name]
            told = f"{both(one)}, {told}"
        print(f"  {name}: {told}")
    print("of a prompt:")
    for name, one in found["ratio_per_prompt"].items():
        print(f"  {name}: {both(one)}")
    write(chosen.json, found)


if __name__ == "__main__":
    main()
