"""Make the pictures of README.md and docs/: `python docs/pictures.py`.

Of the embedded models, and of measured results; docs/house.py draws the house.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure

import vrga
from vrga import VRGAConfig
from vrga.analysis.figures import dispersion_figure, recovery_figure
from vrga.closer.plots import closer_figure
from vrga.demo.chain.data import CHAIN_SPLITS, make_chain_samples
from vrga.demo.chain.data import PROMPTS as CHAIN_PROMPTS
from vrga.demo.data import SPLITS, TEST_SEEDS, Sample, make_samples, prepare
from vrga.demo.fine.data import FINE_SPLITS, is_right, make_fine_samples
from vrga.demo.fine.settings import AT_BACK, CLOSER, FINDING
from vrga.plots import compare_figure, region_figure
from vrga.plots.pictures import COLORS, mask_of, picture
from vrga.recording.trace import Trace

HERE = Path(__file__).parent / "pictures"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def first_figure(sample: Sample, traces: dict[str, Trace]) -> Figure:
    """The image, the region found in it, and the attention on that region at each word."""
    base, steered = traces["base"], traces["steered"]
    region = steered.regions[0]
    (grid,), (relevance,) = region.grids, region.map
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    image, found, course = figure.subplots(1, 3, width_ratios=[1, 1, 2.1])
    picture(image, sample.image, grid)
    image.set_title(f'"{sample.question}"', fontsize=10)
    picture(found, sample.image, grid, relevance.numpy(), mask_of(region, grid))
    found.set_title("where the question looks", fontsize=10)
    words = [word.strip() or word for word in steered.texts[0]]
    for trace, name, style, color in ((base, "without VRGA", ":", "black"),
                                      (steered, "steered", "-", COLORS[1])):  # fmt: skip
        shares = trace.region[:, :, 0][:, region.visual[trace.layers]].mean(1)  # [steps]
        course.plot(range(len(shares)), shares.numpy(), style, color=color, label=name)
    course.set_xticks(range(len(words)), words, rotation=90, fontsize=7)
    course.set(ylabel="share of attention", ylim=(0, None))
    course.set_title("attention on the outlined region, word by word", fontsize=10)
    course.legend(fontsize=8)
    return figure


def growth_figure(run: dict) -> Figure:
    """Time and memory against the prompt's length, patched and unpatched; times as multiples of the
    unpatched model's at the shortest."""
    lengths = run["lengths"]
    keys = [found["keys"] for found in lengths]
    arms = {"unpatched": ("-", "black"), "patched": ("--", COLORS[1])}
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    prefill, token, memory = figure.subplots(1, 3)
    for axis, name in ((prefill, "seconds_to_first_token"), (token, "seconds_per_token")):
        one = lengths[0][name]["unpatched"]["median"]
        for arm, (style, color) in arms.items():
            axis.plot(keys, [found[name][arm]["median"] / one for found in lengths], style,
                      color=color, label=arm)  # fmt: skip
        if axis is prefill:
            linear = [count / keys[0] for count in keys]
            axis.plot(keys, linear, ":", color="0.5", label="in proportion")
    for arm, (style, color) in arms.items():
        bytes_ = [found["prefill"][arm]["bytes"] / 1e6 for found in lengths]
        memory.plot(keys, bytes_, style, color=color, label=arm)
    for axis, title, label in (
        (prefill, "prefill", f"time, {keys[0]} keys unpatched = 1"),
        (token, "one token", f"time, {keys[0]} keys unpatched = 1"),
        (memory, "peak of the prefill", "MB above the weights"),
    ):
        axis.set_xscale("log", base=2)
        axis.set_xticks(keys, [str(count) for count in keys], rotation=90, fontsize=7)
        axis.set(xlabel="keys", ylabel=label, title=title)
        axis.legend(fontsize=8)
    prefill.set_yscale("log")
    memory.set_yscale("log")
    token.set_ylim(0, None)
    return figure


def main(folder: Path = HERE) -> None:
    """Draw them into a folder."""
    folder.mkdir(exist_ok=True)
    model, processor = vrga.load(dtype=torch.float32)
    (sample,) = make_samples(1, seed=TEST_SEEDS.start + 7, **SPLITS["noise"])
    inputs = prepare(processor, [sample], "cot")
    traces = {}
    for name, config in (("base", VRGAConfig.sparing(gain=1)), ("steered", VRGAConfig.sparing())):
        with vrga.patch(model, config, tokenizer=processor.tokenizer) as patch:
            patch.query = sample.question
            with patch.record(maps="visual") as trace:
                model.generate(**inputs, max_new_tokens=96, do_sample=False)
            region = patch.region[0]
        traces[name] = trace.attach(images=[[sample.image]])
    dispersion, recovery = (
        json.loads((RESULTS / "analyze" / f"{name}.json").read_text())
        for name in ("dispersion-noise", "recovery-long-seed3")
    )
    figures = {
        "first": first_figure(sample, traces),
        "closer": closer_picture(),
        "looks": looks_picture(),
        "region": region_figure([sample.image], region, title=sample.question),
        "compare": compare_figure(traces["base"], traces["steered"]),
        "dispersion": dispersion_figure(dispersion["courses"]),
        "recovery": recovery_figure(recovery["configs"]),
        "growth": growth_figure(json.loads((RESULTS / "growth.json").read_text())),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=80)  # noise in PNG is large


def closer_picture() -> Figure:
    """The first question of `fine-hard` that is wrong asked once and right with a closer look."""
    model, processor = vrga.load("fine", dtype=torch.float32)
    for sample in make_fine_samples(20, seed=TEST_SEEDS.start, **FINE_SPLITS["fine-hard"]):
        told = {}
        for name, zoom in (("asked once", replace(CLOSER, gain=1e6)), ("zoomed", CLOSER)):
            found = vrga.look_closer(
                model, processor, sample.image, sample.question, FINDING, zoom, max_new_tokens=28
            )
            told[name] = found.text
        if [is_right(text, sample) for text in told.values()] == [False, True]:
            return closer_figure([sample.image], found, title=sample.question, answers=told)
    raise RuntimeError("a closer look turns none of the first questions of fine-hard right")


def looks_picture() -> Figure:
    """A question of `chain`, whose second look hangs on what the first one reads."""
    model, processor = vrga.load("chain", dtype=torch.float32)
    (sample,) = make_chain_samples(1, seed=TEST_SEEDS.start, **CHAIN_SPLITS["chain"])
    question = CHAIN_PROMPTS["back"].format(question=sample.question)
    told = {}
    for name, looks in (("asked without looks", {"gain": 1e6}), ("a look at each <back>", {})):
        found = vrga.look_closer(
            model, processor, sample.image, question, replace(FINDING, when="back"),
            replace(AT_BACK, when="back", **looks), max_new_tokens=96,
        )  # fmt: skip
        told[name] = found.text
    return closer_figure([sample.image], found, title=sample.question, answers=told)


if __name__ == "__main__":
    main()
