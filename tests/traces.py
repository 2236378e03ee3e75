"""Traces of a tiny model, with all that a trace can carry."""

from families import FAMILIES
from PIL import Image
from tiny import generate

import vrga
from vrga import VRGAConfig


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
