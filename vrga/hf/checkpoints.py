"""Loading checkpoints and their processors."""

from __future__ import annotations

import functools
import importlib.resources
import json
from pathlib import Path

import torch
from torch import nn

from vrga.hf.families import FAMILIES, Family
from vrga.lookback import ALIASES

# The small models inside this package, by name: where their weights are.
EMBEDDED = {None: ("demo", "weights"), "fine": ("demo", "fine", "weights")}
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def load(
    name: str | Path | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: str | dict | None = None,
    attn_implementation: str | None = None,
) -> tuple[nn.Module, object]:
    """Load a checkpoint: the model in eval mode, and its processor.

    Args:
        name: a hub id, a local folder, a Look-Back checkpoint by its short name
            ("semantic-back-7b", "solution-back-7b"), or one of the small models inside this
            package: None, or "fine", which looks closer.
        dtype: of the weights; "auto" is the checkpoint's own.
        device_map: as in transformers; None loads to the CPU, or to the one GPU there is.
        attn_implementation: the attention backend of prefills, e.g. "flash_attention_2".

    Returns:
        (model, processor). Without torchvision the Qwen families' processors take images but no
        videos.

    Raises:
        FileNotFoundError: a local path that does not exist or holds no checkpoint.
        ValueError: pickled or damaged weights, missing or extra tensors, or an unsupported
            architecture.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageTextToText

    where = embedded(name) if name in EMBEDDED else ALIASES.get(str(name).lower(), name)
    _check_folder(where)
    config = AutoConfig.from_pretrained(where)
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"{where} is a {config.model_type!r} model; supported: {', '.join(FAMILIES)}"
        )
    if device_map is None and torch.cuda.is_available():
        device_map = {"": 0}
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            where,
            dtype=dtype,
            device_map=device_map,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ValueError(
            f"a weight file of {where} is damaged or cut short ({error}): download it again"
        ) from error
    _check_tensors(where, report)
    return model.eval(), load_processor(where)


def _check_tensors(where: str | Path, report: dict) -> None:
    """Refuse weights that transformers would fill with random numbers, or leave out, in silence."""
    for kind, told in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "has unknown"),
        ("mismatched_keys", "has misshapen"),
    ):
        found = sorted(str(key) for key in report.get(kind) or ())
        if found:
            raise ValueError(
                f"the checkpoint {where} {told} {len(found)} tensors, among them "
                f"{', '.join(found[:3])}: it is not complete, or of another architecture than its "
                "config.json says"
            )


def embedded(name: str | None = None) -> Path:
    """The folder of a small trained model inside this package, by its name in `EMBEDDED`."""
    return Path(str(importlib.resources.files("vrga"))).joinpath(*EMBEDDED[name])


def load_processor(where: str | Path) -> object:
    """The processor of a checkpoint; of the Qwen families for images alone without torchvision.

    Raises:
        ValueError: another family's processor that needs torchvision, which is missing.
    """
    from transformers import AutoConfig, AutoProcessor, AutoTokenizer
    from transformers.utils import is_torchvision_available

    kind = AutoConfig.from_pretrained(where).model_type
    family = FAMILIES.get(kind, Family())
    if is_torchvision_available():
        return AutoProcessor.from_pretrained(where)
    if family.processor is None:
        try:
            return AutoProcessor.from_pretrained(where)
        except (ImportError, ValueError) as error:
            raise ValueError(
                f"the processor of {kind!r} at {where} cannot be loaded; it may need torchvision, "
                f"which is not installed: {str(error).strip().splitlines()[0]}"
            ) from error
    # Its video half needs torchvision; without it AutoProcessor fails with a misleading error.
    images = image_processor_class().from_pretrained(where)
    tokenizer = AutoTokenizer.from_pretrained(where)
    template = tokenizer.chat_template or _old_chat_template(where)
    return image_only_processor_class(family.processor)(images, tokenizer, chat_template=template)


def load_tokenizer(model: nn.Module) -> object:
    """The tokenizer saved beside a model's weights.

    Raises:
        ValueError: the model was not loaded from a checkpoint with a tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model.name_or_path)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"query as text and <back> spans need a tokenizer, and none was found at "
            f"{model.name_or_path!r}: pass "
            "vrga.patch(model, tokenizer=processor.tokenizer)"
        ) from error


def image_processor_class() -> type:
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
def image_only_processor_class(base: str = "Qwen2_5_VLProcessor") -> type:
    """A Qwen-VL processor class without its video half, which needs torchvision."""
    import transformers

    class ImageOnlyProcessor(getattr(transformers, base)):
        """Images and text alone."""

        attributes = ["image_processor", "tokenizer"]  # read by transformers 4 alone

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


def _old_chat_template(where: str | Path) -> str | None:
    """The template of checkpoints that keep it in chat_template.json, as Qwen's own do."""
    from transformers.utils import cached_file

    found = cached_file(where, "chat_template.json", _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(found).read_text("utf-8"))["chat_template"] if found else None


def _check_folder(where: str | Path) -> None:
    """Refuse local checkpoints that transformers would reject with a riddle."""
    path = Path(where)
    if not path.exists():
        looks_local = isinstance(where, Path) or str(where).startswith((".", "/", "~"))
        if looks_local or str(where).count("/") != 1:
            raise FileNotFoundError(
                f"no checkpoint at {where!s}: give a local folder, or a hub id such as "
                "Qwen/Qwen2.5-VL-7B-Instruct"
            )
        return
    if not path.is_dir() or not (path / "config.json").exists():
        raise FileNotFoundError(f"{where!s} is not a checkpoint folder: it has no config.json")
    if not list(path.glob("*.safetensors")):
        pickled = [f.name for pattern in PICKLED for f in path.glob(pattern)]
        if pickled:
            raise ValueError(
                f"{where!s} holds pickled weights ({', '.join(sorted(pickled)[:3])}), which can "
                "run code when loaded: convert them to safetensors"
            )
        raise FileNotFoundError(f"{where!s} holds no *.safetensors weights")
