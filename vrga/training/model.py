"""A checkpoint that is asked or trained, with what training needs of it checked."""

from __future__ import annotations

from pathlib import Path

import torch

from vrga.annotations import Model, Processor
from vrga.hf.checkpoints import load


def loaded(where: str | Path | None, tag: str, *, exact: bool = False) -> tuple[Model, Processor]:
    """The model of a checkpoint, in float32 without a GPU, and its processor.

    Args:
        where: see `vrga.load`; None is the embedded model.
        tag: the word that it looks back with.
        exact: in float32 on a GPU too, for weights that are trained: bfloat16 rounds small steps
            away.

    Raises:
        ValueError: as of `vrga.load`; a processor without a chat template, or a tag that is a
            special token.
    """
    as_saved = torch.cuda.is_available() and not exact
    model, processor = load(where, dtype="auto" if as_saved else torch.float32)
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
