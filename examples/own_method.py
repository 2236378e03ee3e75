"""Steer by rules of your own: the heads of the middle layers, to all of the image.

Run: python examples/own_method.py

The paper's own rules are `PAPER` in vrga/method/region.py: which keys count as image, which heads
are chosen by what they add up to at the question, and which region comes of what they look at.
"""

from dataclasses import replace

import torch

import vrga
from vrga.demo.data import make_samples
from vrga.method.region import PAPER
from vrga.method.table import add_method


def middle_heads(stats, sums, config):
    """H_v: every head of the middle third of the layers; H_b: none. Both bool [L, H]."""
    visual, background = torch.zeros(2, *stats.focus.shape, dtype=torch.bool, device="cpu")
    layers = len(visual)
    visual[layers // 3 : -(-2 * layers // 3)] = True
    return visual, background


def whole_image(sample, keys, heads, means, config):
    """T: every image token; the map stays what those heads look at."""
    found = PAPER.region(sample, keys, heads, means, config)
    return replace(found, mask=found.image, focus=keys.index)


MIDDLE = replace(PAPER, choose=middle_heads, region=whole_image)


if __name__ == "__main__":
    add_method("middle layers", MIDDLE)
    model, processor = vrga.load()
    sample = make_samples(1, seed=100)[0]
    config = vrga.VRGAConfig(method="middle layers", gain=2)
    answer = vrga.ask(model, processor, sample.image, sample.question, config)
    print(answer.base, "->", answer.text)
    print(answer.region)
