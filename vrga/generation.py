"""One question about one or several images, answered from end to end."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import nn

from vrga.config import VRGAConfig
from vrga.models import load
from vrga.patching import patch
from vrga.region import Region


def answer(
    model: str | None,
    paths: list[Path],
    question: str,
    config: VRGAConfig | None,
    *,
    max_new_tokens: int = 256,
) -> tuple[str, Region | None, list[Image.Image]]:
    """Load a checkpoint and let it answer greedily.

    Args:
        model: checkpoint folder or hub id; None is the embedded model.
        paths: image files.
        config: how to steer; None does not.

    Returns:
        (answer, region or None, images).

    Raises:
        OSError: an image that cannot be read; FileNotFoundError: no such checkpoint.
        ValueError: as of `load` and `patch`.
    """
    images = [read_image(path) for path in paths]
    loaded, processor = load(model)
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
    chat = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(text=[chat], images=images, return_tensors="pt").to(loaded.device)
    if config is None:
        return _generate(loaded, processor, inputs, max_new_tokens), None, images
    with patch(loaded, config) as steered:
        text = _generate(loaded, processor, inputs, max_new_tokens)
        return text, steered.region[0], images


def _generate(model: nn.Module, processor, inputs, max_new_tokens: int) -> str:
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new = tokens[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(new, skip_special_tokens=True)[0].strip()


def read_image(path: Path) -> Image.Image:
    """An image file as RGB.

    Raises:
        OSError: no such file, or one that is no image or a damaged one; the message names it.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise OSError(f"image {path} does not exist") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise OSError(f"image {path} cannot be read: {error}") from error
