"""A pipeline of transformers in a model's place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from vrga.annotations import Model, Processor, Tokenizer

if TYPE_CHECKING:
    from transformers import Pipeline as Pipeline


def parts_of(model: Model | Pipeline) -> tuple[Model, Processor | None, Tokenizer | None]:
    """A model, and the processor and the tokenizer of a pipeline that stands in its place."""
    inner = None if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(inner, nn.Module):
        return model, None, None
    processor = getattr(model, "processor", None)
    tokenizer = getattr(model, "tokenizer", None) or getattr(processor, "tokenizer", None)
    return inner, processor, tokenizer
