"""The tokenizer and the chat template that lie beside a model's weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

from vrga.annotations import Model, Tokenizer
from vrga.hf.files import checkpoint_file

TAG_FORM = re.compile(r"</?[a-z]+>")  # <think>, <back> and the like
TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "spiece.model",
    "sentencepiece*",
    "tekken*",
)


def tokenizer_beside(model: Model) -> Tokenizer | None:
    """The tokenizer saved beside a model's weights; None where there is none that can be loaded."""
    from transformers import AutoTokenizer

    where = model.name_or_path
    if not where:
        return None
    folder = Path(where)
    if folder.is_dir() and not any(any(folder.glob(name)) for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except Exception:  # whatever a foreign tokenizer, or a package it lacks, makes its loader say
        return None


def template_beside(model: Model, tokenizer: Tokenizer) -> str | None:
    """The chat template of a tokenizer, or one saved beside the model's weights."""
    template = getattr(tokenizer, "chat_template", None)
    if template is None and model.name_or_path:
        try:
            template = old_chat_template(model.name_or_path)
        except (OSError, ValueError):
            template = None
    return template if isinstance(template, str) else None


def old_chat_template(where: str | Path) -> str | None:
    """The template of checkpoints that keep it in chat_template.json, as Qwen's own do."""
    found = checkpoint_file(where, "chat_template.json")
    try:
        return json.loads(found.read_text("utf-8"))["chat_template"] if found else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{found} holds no chat template: {error!r}") from error


def check_text(name: str, text: str, tokenizer: Tokenizer) -> None:
    """Refuse what a user says with a token in it that is the model's own, such as an image's place.

    Args:
        name: of the text, for the message.

    Raises:
        ValueError: there is one; a reasoning model's <think> and tags of that form are none.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    for token in (str(one) for one in added if one.special):
        if token in text and not TAG_FORM.fullmatch(token):
            raise ValueError(
                f"the {name} contains {token}, a control token of this model, which would end a "
                "turn or stand for an image: leave it out, or write it with a space in it"
            )
