"""A Qwen2.5-VL processor that works without torchvision (draft for vrga/models.py)."""

import json
from pathlib import Path

from transformers import AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.utils import cached_file


class ImageOnlyProcessor(Qwen2_5_VLProcessor):
    """`Qwen2_5_VLProcessor` without its video half, which is the part that needs torchvision."""

    attributes = ["image_processor", "tokenizer"]  # read by transformers 4.x only

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    @property
    def model_input_names(self) -> list[str]:
        names = [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]
        return [*dict.fromkeys(names), "mm_token_type_ids"]


def image_processor_class() -> type:
    """The PIL/numpy image processor of Qwen2-VL: transformers 5.x and 4.x name it differently."""
    try:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil as Processor,
        )
    except ImportError:
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import (
            Qwen2VLImageProcessor as Processor,
        )
    return Processor


def load_processor(path: str, **kwargs) -> Qwen2_5_VLProcessor:
    """The processor of a Qwen2.5-VL checkpoint, image-only where torchvision is missing.

    Args:
        path: A local folder or a hub name.
        **kwargs: Passed on to every `from_pretrained` (`revision`, `local_files_only`, ...).
    """
    try:
        return AutoProcessor.from_pretrained(path, **kwargs)
    except (
        ImportError,
        ValueError,
        OSError,
        TypeError,
    ):  # what a missing torchvision raises varies
        image_processor = image_processor_class().from_pretrained(path, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(path, **kwargs)
    template = tokenizer.chat_template or _legacy_chat_template(path, **kwargs)
    return ImageOnlyProcessor(image_processor, tokenizer, chat_template=template)


def _legacy_chat_template(path: str, **kwargs) -> str | None:
    """The template of checkpoints that keep it in `chat_template.json` (as Qwen's own do)."""
    missing_is_none = {"_raise_exceptions_for_missing_entries": False}
    found = cached_file(path, "chat_template.json", **missing_is_none, **kwargs)
    return json.loads(Path(found).read_text("utf-8"))["chat_template"] if found else None
