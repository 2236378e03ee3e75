"""What looking again costs: python -m benchmarks.looking --trained CHECKPOINT [--json FILE]

The same questions of two looks in ways that take turns, one question at a time: a plain chain;
<back> by which nothing new is shown (implicit: the model looks again at what it has); and a crop of
the original put in at each <back> (explicit). Small pictures of the same cards, in which all can be
read at once, are asked in the first two ways. Tokens, floating-point operations as torch counts
them, and the time of one thread over that of the plain chain.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

import vrga
from benchmarks.timing import ratio, spread, summary, write
from vrga.closer.closer import Pictures
from vrga.config import VRGAConfig
from vrga.demo.chain.arms import LONGEST, true_crops
from vrga.demo.chain.data import PROMPTS, ChainSample, chain_split_options, make_chain_samples
from vrga.demo.data import TEST_SEEDS
from vrga.demo.fine.settings import AT_BACK, FINDING
from vrga.hf.second_look import batch_inputs, most_pixels, seen_sizes, token_side, turn_of
from vrga.lookback import last_box

FIRST = TEST_SEEDS.start + 700_000  # of questions that no other table has
INSIDE = replace(FINDING, when="back", relocate="back")
PLAIN = "plain chain"


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def attention_flops(query, key, value, *rest, out_shape=None, **more) -> int:
    """Operations of torch's own attention on CPUs, of which it knows no formula and counts none.

    Args:
        query, key, value: shapes, [batch, heads, rows or keys, size] each.
    """
    batch, heads, rows, size = query
    return 2 * batch * heads * rows * key[2] * (size + value[3])


@dataclass(frozen=True)
class Told:
    """One answer.

    Args:
        prompt: tokens of prompts that were computed, those of pictures among them.
        visual: tokens of pictures and crops; answer: generated.
    """

    text: str
    prompt: int
    visual: int
    answer: int


Way = Callable[[ChainSample], Told]


def asked(
    loaded: tuple, sample: ChainSample, prompt: str, config: VRGAConfig | None, *, true=False
) -> Told:
    """One answer about the picture as the processor shrinks it, no crop or those of both cards."""
    model, processor = loaded
    text = PROMPTS[prompt].format(question=sample.question)
    images = shown(processor, sample) if true else [sample.image]
    chat = processor.apply_chat_template(turn_of(len(images), text), add_generation_prompt=True)
    most = max(image.width * image.height for image in images) if true else None
    inputs = batch_inputs(processor, [chat], images, most_pixels(processor, most))
    steering = nullcontext() if config is None else vrga.patch(
        model, config, tokenizer=processor.tokenizer
    )  # fmt: skip
    with steering as steered, torch.inference_mode():
        if steered is not None:
            steered.query = [sample.question]
        found = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
    length = inputs["input_ids"].shape[1]
    visual = int((inputs["input_ids"] == model.config.image_token_id).sum())
    said = processor.batch_decode(found[:, length:], skip_special_tokens=True)[0]
    return Told(said, length, visual, found.shape[1] - length)


def shown(processor, sample: ChainSample) -> list[Image.Image]:
    """The picture as the model sees it, and crops of both cards at their true places."""
    side = token_side(processor)
    inputs = batch_inputs(processor, ["<|image_pad|>"], [sample.image], {})
    resample = int(processor.image_processor.resample)
    own = Pictures([sample.image], seen_sizes(processor, inputs), resample)
    crops = true_crops(sample, own, AT_BACK, side)
    return [*own.shrunk(), *own.cropped(crops)]


def looked(loaded: tuple, sample: ChainSample, prompt: str) -> Told:
    """One answer with a crop at each <back>."""
    text = PROMPTS[prompt].format(question=sample.question)
    zoom = replace(AT_BACK, when="back")
    found = vrga.look_closer(*loaded, sample.image, text, INSIDE, zoom, max_new_tokens=LONGEST)
    cost = found.cost
    return Told(found.text, cost.prompt + cost.second, cost.seen + cost.crops, cost.answer)


def ways_of(base: tuple, trained: tuple) -> dict[str, dict[str, Way]]:
    """Split -> way -> how it asks."""
    return {
        "chain-small": {
            PLAIN: lambda s: asked(base, s, "cot", None),
            "trained to look back": lambda s: asked(trained, s, "cot", None),
            "trained, VRGA inside `<back>`": lambda s: asked(trained, s, "cot", INSIDE),
        },
        "chain": {
            PLAIN: lambda s: asked(base, s, "cot", None),
            "trained to look back": lambda s: asked(trained, s, "cot", None),
            "trained, VRGA inside `<back>`": lambda s: asked(trained, s, "cot", INSIDE),
            "trained, a crop at each `<back>`": lambda s: looked(trained, s, "cot"),
            "asked to look back, a crop at each `<back>`": lambda s: looked(base, s, "back"),
            "crops of both cards from the start": lambda s: asked(base, s, "cot", None, true=True),
        },
    }


def measure(ways: dict[str, Way], samples: Sequence[ChainSample]) -> dict:
    """Figures of each way: shares, medians, and its time over the first one's."""
    told: dict[str, list[Told]] = {name: [] for name in ways}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    flops: dict[str, list[int]] = {name: [] for name in ways}
    for way in ways.values():
        way(samples[0])  # what is made once is not counted
    for sample in samples:
        for name, way in ways.items():
            start = time.thread_time()
            told[name].append(way(sample))
            taken[name].append(time.thread_time() - start)
            with FlopCounterMode(display=False) as counter:
                way(sample)
            flops[name].append(counter.get_total_flops())
    first = next(iter(ways))
    right = {
        name: [last_box(one.text) == s.answer for one, s in zip(own, samples, strict=True)]
        for name, own in told.items()
    }
    return {
        name: {
            "right": "".join(str(int(hit)) for hit in right[name]),
            "looks": sum("<back>" in one.text for one in own) / len(own),
            **{x: summary([getattr(one, x) for one in own])
               for x in ("prompt", "visual", "answer")},
            "gigaflops": summary([x / 1e9 for x in flops[name]]),
            "time": ratio(taken[name], taken[first]),
        }
        for name, own in told.items()
    }  # fmt: skip


def main() -> None:
    """Measure, print, and write the JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trained", required=True, help="a checkpoint that writes <back>")
    parser.add_argument("--base", default="chain", help="the model that it was trained from")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    base, trained = (vrga.load(x, dtype=torch.float32) for x in (options.base, options.trained))
    found = {}
    for split, ways in ways_of(base, trained).items():
        samples = make_chain_samples(options.questions, seed=FIRST, **chain_split_options(split))
        found[split] = measure(ways, samples)
        for name, own in found[split].items():
            share = own["right"].count("1") / len(samples)
            print(f"{split}, {name}: {100 * share:.1f} %, time {spread(own['time'])}", flush=True)
    write(options.json, {"questions": options.questions, "splits": found})


if __name__ == "__main__":
    main()
