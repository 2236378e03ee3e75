"""Untrained models of the embedded kind."""

import functools

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from vrga import Zoom
from vrga.demo import build
from vrga.demo.fine.data import sentences

# An untrained map is flat: its highest cell alone, a small crop.
NARROW = Zoom(crops=1, threshold=1.0, within="map", margin=0.0, pixels=36 * 784)


@functools.cache
def untrained():
    torch.manual_seed(3)
    tokenizer = build.build_tokenizer(sentences())
    model = Qwen2_5_VLForConditionalGeneration(build.build_config(tokenizer))
    model.generation_config = build.build_generation_config(tokenizer)
    with torch.no_grad():  # peaked attention and varied tokens
        for name, parameter in model.model.language_model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(3)
    return model.eval(), build.build_processor(tokenizer, 36)
