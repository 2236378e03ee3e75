"""Loading checkpoints and their processors, without running code of theirs."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import torch

from vrga.foreign import Config, Model, Processor, Tokenizer
from vrga.hf.brought import fetch_file
from vrga.hf.families import FAMILIES
from vrga.hf.files import (
    check_model,
    check_weights,
    checkpoint_file,
    embedded,
    first_line,
    read_config,
)


def load(
    name: str | Path | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: str | dict | None = None,
    attn_implementation: str | None = None,
) -> tuple[Model, Processor]:
    """Load a checkpoint: the model in eval mode, and its processor.

    Args:
        name: a hub id, a local folder, a Look-Back checkpoint by its short name
            ("semantic-back-7b", "solution-back-7b"), or one of the small models inside this
            package: None, or "fine", which looks closer.
        dtype: of the weights; "auto" is the checkpoint's own.
        device_map: as in transformers; None loads to the CPU, or to the GPU of this process.
        attn_implementation: the attention backend of prefills, e.g. "flash_attention_2".

    Returns:
        (model, processor). Without torchvision the Qwen families' processors take images but no
        videos.

    Raises:
        FileNotFoundError: a local path that does not exist or holds no checkpoint.
        ValueError: pickled, damaged or infinite weights, missing or extra tensors, an index that
            names other files than safetensors beside it, an unsupported architecture, or a
            checkpoint that needs code of its own: none is ever run.
        OSError: a hub id that cannot be reached.
    """
    where = embedded() if name is None else check_model(name)
    found = read_config(where)  # before transformers reads anything: its files may name code
    check_weights(where, found)

    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText

    config = _config(where)
    device_map = _own_gpu() if device_map is None else device_map
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            where,
            config=config,
            dtype=dtype,
            device_map=device_map,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ValueError(
            f"a weight file of {where} is damaged or cut short ({error}): download it again"
        ) from error
    _check_tensors(where, report)
    check_finite(where, model)
    fetch_file(where)
    return model.eval(), load_processor(where)


def _own_gpu() -> dict[str, int] | None:
    """Where this process puts a model: its own GPU, of several processes; None is the CPU.

    None, too, under ZeRO-3, which places parts of the weights itself.
    """
    if not torch.cuda.is_available():
        return None
    from transformers.integrations import is_deepspeed_zero3_enabled

    return None if is_deepspeed_zero3_enabled() else {"": int(os.environ.get("LOCAL_RANK", 0))}


def _config(where: str | Path) -> Config:
    """The config of a checkpoint whose model_type is known.

    Raises:
        ValueError: one that transformers cannot make sense of.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(where, trust_remote_code=False)
    except OSError:
        raise
    except Exception as error:  # whatever a wrong type in it leads to
        raise ValueError(f"config.json of {where} makes no model: {first_line(error)}") from error


def check_finite(where: object, model: Model) -> None:
    """Refuse weights with NaN or infinity, which answer with noise.

    One pass over the weights, without a copy of any; those that are not in memory yet are left
    out.

    Raises:
        ValueError: naming the first such tensors.
    """
    checked: dict[torch.device, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() and tensor.device.type != "meta":
            try:
                low, high = torch.aminmax(tensor.detach())
            except RuntimeError:  # float8 has no such reduction
                low, high = torch.aminmax(tensor.detach().float())
            sound = (low.isfinite() & high.isfinite()).reshape(())
            checked.setdefault(tensor.device, []).append((name, sound))
    bad = []
    for found in checked.values():  # one wait for each device
        finite = torch.stack([flag for _, flag in found]).tolist()
        bad += [name for (name, _), ok in zip(found, finite, strict=True) if not ok]
    if bad:
        raise ValueError(
            f"the checkpoint {where} has NaN or infinity in {len(bad)} tensors, among them "
            f"{', '.join(bad[:3])}: it is damaged, or of a training that diverged, or its numbers "
            "do not fit into the dtype that was asked for"
        )


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
    template = tokenizer.chat_template or _old_chat_template(where)
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


def load_tokenizer(model: Model) -> Tokenizer:
    """The tokenizer saved beside a model's weights.

    Raises:
        ValueError: the model was not loaded from a checkpoint with a tokenizer.
    """
    found = tokenizer_beside(model)
    if found is None:
        raise ValueError(
            f"query as text and <back> spans need a tokenizer, and none was found at "
            f"{model.name_or_path!r}: pass "
            "vrga.patch(model, tokenizer=processor.tokenizer)"
        )
    return found


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
            template = _old_chat_template(model.name_or_path)
        except (OSError, ValueError):
            template = None
    return template if isinstance(template, str) else None


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


def _old_chat_template(where: str | Path) -> str | None:
    """The template of checkpoints that keep it in chat_template.json, as Qwen's own do."""
    found = checkpoint_file(where, "chat_template.json")
    try:
        return json.loads(found.read_text("utf-8"))["chat_template"] if found else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{found} holds no chat template: {error!r}") from error
