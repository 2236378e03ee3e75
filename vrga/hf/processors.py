"""Processors of checkpoints, loaded and saved; the Qwen families' without torchvision too."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from vrga.annotations import BatchFeature, Model, Processor
from vrga.hf.families import FAMILIES, unwrapped
from vrga.hf.files import first_line, read_config
from vrga.hf.tokenizers import old_chat_template


def load_processor(where: str | Path) -> Processor:
    """The processor of a checkpoint; of the Qwen families for images alone without torchvision.

    Raises:
        ValueError: an unsupported architecture, a processor that is code of the checkpoint's, or
            another family's that needs torchvision, which is missing.
    """
    from transformers import AutoProcessor, AutoTokenizer
    from transformers.utils import is_torchvision_available

    kind = read_config(where)["model_type"]
    family = FAMILIES[kind]
    if family.processor is None or is_torchvision_available():
        try:
            return AutoProcessor.from_pretrained(where, trust_remote_code=False)
        except (ImportError, ValueError) as error:
            if "trust_remote_code" in str(error):
                raise ValueError(
                    f"the processor of {where} is code of its own (auto_map), which is not run: "
                    f"use a checkpoint with transformers' own processor of {kind!r}"
                ) from error
            if is_torchvision_available():
                raise
            raise ValueError(
                f"the processor of {kind!r} at {where} cannot be loaded; it may need torchvision, "
                f"which is not installed: {first_line(error)}"
            ) from error
    # Its video half needs torchvision; without it AutoProcessor fails with a misleading error.
    images = image_processor_class().from_pretrained(where)
    tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    template = tokenizer.chat_template or old_chat_template(where)
    return image_only_processor_class(family.processor)(images, tokenizer, chat_template=template)


def save_processor(processor: Processor, folder: Path) -> None:
    """Write a processor so that AutoProcessor and `load_processor` find it again.

    One for images alone is written as its whole family's, under names that all versions know: a
    class of this package's would be read as its tokenizer, in silence.
    """
    whole = getattr(type(processor), "whole", None)
    if whole is None:
        processor.save_pretrained(folder)
        return
    (folder / "processor_config.json").unlink(missing_ok=True)
    processor.tokenizer.chat_template = processor.chat_template
    processor.tokenizer.save_pretrained(folder)
    images = processor.image_processor.to_dict()
    images["image_processor_type"] = "Qwen2VLImageProcessor"
    words = folder / "tokenizer_config.json"
    for path, kept in (
        (folder / "preprocessor_config.json", images),
        (words, json.loads(words.read_text("utf-8"))),
    ):
        kept = kept | {"processor_class": whole}
        path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", "utf-8")


def processed(
    model: Model,
    processor: Processor,
    chats: list[str],
    images: list[list[Image.Image]],
    bounds: Mapping[str, object],
) -> BatchFeature:
    """A model's inputs of a batch of chats, padded.

    Args:
        images: of each chat; bounds: options of the image processor, see `vrga.images.bounded`.

    Raises:
        ValueError: images that the processor does not take.
    """
    shown: list = images
    kind = unwrapped(model).config.model_type
    if kind in FAMILIES and FAMILIES[kind].processor is not None:
        shown = [image for row in images for image in row]  # Qwen's take one flat list
    more = {"images_kwargs": dict(bounds)} if bounds and any(images) else {}
    try:
        return processor(
            text=chats, images=shown if any(images) else None, padding=len(chats) > 1,
            return_tensors="pt", **more,
        )  # fmt: skip
    except ValueError as error:
        sizes = ", ".join(f"{one.width} x {one.height}" for row in images for one in row)
        raise ValueError(
            f"{type(processor).__name__} does not take these chats, whose images are of "
            f"{sizes or 'no'} pixels ({error}): change the images, or their bounds in pixels"
        ) from error


def image_processor_class() -> type[Any]:
    """The image processor that works on PIL images; transformers 4 and 5 name it differently."""
    try:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )
    except ImportError:
        from transformers import Qwen2VLImageProcessor

        return Qwen2VLImageProcessor
    return Qwen2VLImageProcessorPil


@functools.cache
def image_only_processor_class(base: str = "Qwen2_5_VLProcessor") -> type[Any]:
    """A Qwen-VL processor class without its video half, which needs torchvision."""
    import transformers

    with_videos: Any = getattr(transformers, base)

    class ImageOnlyProcessor(with_videos):
        """Images and text alone."""

        attributes = ["image_processor", "tokenizer"]  # read by transformers 4 alone
        whole = base

        def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.vision_start_token, self.vision_end_token = "<|vision_start|>", "<|vision_end|>"
            for name in ("image_token", "video_token", "vision_start_token", "vision_end_token"):
                token = tokenizer.convert_tokens_to_ids(getattr(self, name))
                setattr(self, f"{name}_id", token)
            transformers.ProcessorMixin.__init__(
                self, image_processor, tokenizer, chat_template=chat_template
            )

        @property
        def model_input_names(self) -> list[str]:
            names = [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]
            return [*dict.fromkeys(names), "mm_token_type_ids"]

    return ImageOnlyProcessor
