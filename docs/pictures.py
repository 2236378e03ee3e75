"""Make the pictures of docs/why.md: `python docs/pictures.py`, on the embedded models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure

import vrga
from vrga import VRGAConfig
from vrga.analysis.figures import dispersion_figure, recovery_figure
from vrga.closer_plots import closer_figure
from vrga.demo.data import SPLITS, TEST_SEEDS, make_samples, prepare
from vrga.demo.fine.data import FINE_SPLITS, make_fine_samples
from vrga.demo.fine.settings import CLOSER, FINDING
from vrga.plots import compare_figure, region_figure

HERE = Path(__file__).parent / "pictures"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "analyze"


def main(folder: Path = HERE) -> None:
    """Draw them into a folder."""
    folder.mkdir(exist_ok=True)
    model, processor = vrga.load(dtype=torch.float32)
    (sample,) = make_samples(1, seed=TEST_SEEDS.start + 7, **SPLITS["noise"])
    inputs = prepare(processor, [sample], "cot")
    traces = {}
    for name, config in (("base", VRGAConfig(gain=1)), ("steered", VRGAConfig())):
        with vrga.patch(model, config, tokenizer=processor.tokenizer) as patch:
            patch.query = sample.question
            with patch.record(maps="visual") as trace:
                model.generate(**inputs, max_new_tokens=96, do_sample=False)
            region = patch.region[0]
        traces[name] = trace.attach(images=[[sample.image]])
    dispersion, recovery = (
        json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("dispersion-noise", "recovery-long-seed3")
    )
    figures = {
        "closer": closer_picture(),
        "region": region_figure([sample.image], region, title=sample.question),
        "compare": compare_figure(traces["base"], traces["steered"]),
        "dispersion": dispersion_figure(dispersion["courses"]),
        "recovery": recovery_figure(recovery["configs"]),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=80)  # noise in PNG is large


def closer_picture() -> Figure:
    """A question of `fine-hard`, asked once and with a closer look."""
    model, processor = vrga.load("fine", dtype=torch.float32)
    (sample,) = make_fine_samples(1, seed=TEST_SEEDS.start, **FINE_SPLITS["fine-hard"])
    told = {}
    for name, zoom in (("asked once", replace(CLOSER, gain=1e6)), ("zoomed", CLOSER)):
        found = vrga.look_closer(
            model, processor, sample.image, sample.question, FINDING, zoom, max_new_tokens=28
        )
        told[name] = found.text
    return closer_figure([sample.image], found, title=sample.question, answers=told)


if __name__ == "__main__":
    main()
