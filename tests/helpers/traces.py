"""Traces of a tiny model, with all that a trace can carry."""

import torch
from families import FAMILIES
from PIL import Image
from tiny import generate

import vrga
from vrga import VRGAConfig
from vrga.recording.trace import MEASURES

CLOSE = dict(rtol=2e-3, atol=1e-5, equal_nan=True)


class Letters:
    """A tokenizer whose token n is the text "<n>"."""

    added_tokens_encoder: dict = {}

    def __len__(self):
        return 100

    def convert_ids_to_tokens(self, ids):
        return [f"<{i}>" for i in ids]

    def decode(self, ids, **options):
        return "".join(f"<{i}>" for i in ids)


def filled_trace(gain=3.0, tokens=5, counts=(1, 2), config=None, **options):
    """A trace of rows with the given numbers of images, each image in a colour of its own."""
    config = VRGAConfig.published(gain=gain) if config is None else config
    family = FAMILIES["qwen2_5_vl"]
    options = {"maps": "visual", "layer_maps": True} | options
    with vrga.patch(family.shared, config, tokenizer=Letters()) as patch:
        with patch.record(**options) as trace:
            generate(family.shared, family.batch(list(counts)).inputs, tokens)
    images = [
        [Image.new("RGB", (28 * g.w, 28 * g.h), (200, 90 * i, 9)) for i, g in enumerate(r.grids)]
        for r in patch.region
    ]
    return trace.attach(images=images)


def assert_same(found, wanted):
    """Two traces say the same of the same steps, up to the order of sums."""
    assert torch.equal(found.steps, wanted.steps) and torch.equal(found.layers, wanted.layers)
    for name in (*MEASURES, "maps", "layer_maps"):
        one, two = getattr(found, name), getattr(wanted, name)
        assert (one is None) == (two is None), name
        if one is not None:
            torch.testing.assert_close(one.float(), two.float(), **CLOSE)
    assert (found.inside is None) == (wanted.inside is None)
    if found.inside is not None:
        assert torch.equal(found.inside, wanted.inside)
