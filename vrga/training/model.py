"""A checkpoint that is asked or trained, with what training needs of it checked."""

from __future__ import annotations

from pathlib import Path

import torch

from vrga.annotations import Model, Processor
from vrga.hf.checkpoints import load


def loaded(where: str | Path | None, tag: str) -> tuple[Model, Processor]:
    """The model of a checkpoint, in float32 without a GPU, and its processor.

    Args:
        where: see `vrga.load`; None is the embedded model.
        tag: the word that it looks back with.

    Raises:
        ValueError: as of `vrga.load`; a processor without a chat template, or a tag that is a
            special token.
    """
    model, processor = load(where, dtype="auto" if torch.cuda.is_available() else torch.float32)
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(
            f"the processor of {where} has no chat template, so that a question is no turn of a "
            "user: take an instruction-tuned checkpoint, or add chat_template.jinja to it"
        )
    tags = (f"<{tag}>", f"</{tag}>")
    special = [one for one in tags if one in processor.tokenizer.all_special_tokens]
    if special:
        raise ValueError(
            f"{', '.join(special)} is a special token of {where}: it is left out where answers "
            "become text, so that no span would be found; give another --tag"
        )
    return model, processor
