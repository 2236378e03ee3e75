"""Make the pictures of a trained checkpoint: `python docs/trained.py out/train-demo/rl/model`.

Of the first held-out question to which it looks back, steered inside <back> to what it finds there:
the report's page in headless Chromium, and attention on image and region over the answer.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from screenshots_report import HERE, shot

import vrga
from vrga import VRGAConfig
from vrga.answers.answer import Answer
from vrga.demo.data import PROMPTS, SPLITS, TEST_SEEDS, make_samples

SIZE = (1400, 900)  # CSS pixels
INSIDE = VRGAConfig.sparing(when="back", relocate="back")


def asked(checkpoint: str) -> Answer:
    """The first answer with a <back> in it."""
    model, processor = vrga.load(checkpoint, dtype=torch.float32)
    for sample in make_samples(20, seed=TEST_SEEDS.start, **SPLITS["similar"]):
        text = PROMPTS["cot"].format(question=sample.question)
        answer = vrga.ask(model, processor, sample.image, text, INSIDE, max_new_tokens=128)
        if "<back>" in answer.text:
            return answer
    raise SystemExit(f"{checkpoint} looks back in none of 20 answers: train it first")


def main(checkpoint: str, folder: str | Path = HERE) -> None:
    """Draw them into a folder."""
    answer, folder = asked(checkpoint), Path(folder)
    answer.trace.plot().savefig(folder / "trained_trend.png", dpi=80)
    with tempfile.TemporaryDirectory() as made:
        page = answer.report(Path(made) / "report.html")
        palette = shot(page.as_uri(), SIZE).quantize(256, Image.Quantize.FASTOCTREE)
        palette.save(folder / "trained_report.png", optimize=True)
    print(answer.text, answer.steps, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
