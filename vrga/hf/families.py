"""What differs between model families: where they keep what a patch needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vrga.annotations import Config, Model
from vrga.hf.layouts import (
    Layout,
    any_resolution,
    by_patches,
    patches_per_side,
    selected_patches,
    tiles,
)

REFUSED = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


@dataclass(frozen=True)
class Family:
    """Where a model family keeps what the patch needs; attribute paths and config fields.

    Args:
        text: the text model, below the multimodal model.
        layout: how the tokens of an image are laid out, see `vrga.hf.layouts`.
        inputs: the model's inputs that the layout reads, for errors.
        outer: the multimodal model below the language-model head, which sees `input_ids`.
        text_config: the key of the text model's sub-config.
        image_token, video_token: config fields of the placeholder tokens' ids.
        vision_tokens: config fields of all tokens that are not text.
        refused: methods that a patched model must not run.
        processor: class of its processor, where that can do without the torchvision that its
            video half needs.
        title: what the family is called.
        closes: whether its chat templates close a user's turn with a token that ends a sequence;
            read without a tokenizer alone, as are the next two.
        header: most tokens that its chat templates put between a closed question and the answer.
        unlisted: so many tokens close a question and begin the answer, where the family closes
            turns with a token that its configs do not list.
    """

    text: str = "language_model"
    layout: Layout = by_patches
    inputs: tuple[str, ...] = ("image_grid_thw", "video_grid_thw")
    outer: str = "model"
    text_config: str = "text_config"
    image_token: str = "image_token_id"
    video_token: str = "video_token_id"
    vision_tokens: tuple[str, ...] = (
        "image_token_id",
        "video_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
        "vision_token_id",
        "boi_token_id",
        "eoi_token_id",
    )
    refused: tuple[str, ...] = REFUSED
    processor: str | None = None
    title: str = ""
    closes: bool = True
    header: int = 8  # "\n<|im_start|>assistant\n", and an empty block of thoughts
    unlisted: int = 0

    def vision_ids(self, config: Config) -> set[int]:
        """Ids of the tokens that are not text: image placeholders and the marks around them."""
        found = [getattr(config, name, None) for name in self.vision_tokens]
        return {token for token in found if token is not None}


def _tiled(side: Callable[[Config], float], title: str, **more) -> Family:
    return Family(layout=tiles(side), inputs=(), title=title, **more)


def _shuffled(config: Config) -> float:
    return patches_per_side(config.vision_config) / config.scale_factor


def _of_square(config: Config) -> float:
    """InternVL's tokens along a side; its tiles are square.

    Raises:
        ValueError: a vision tower that takes other images.
    """
    size = config.vision_config.image_size
    if isinstance(size, (list, tuple)) and len(set(size)) > 1:
        raise ValueError(
            f"{config.model_type} with images of {size} pixels is not supported: its token grid "
            "is known of square images alone"
        )
    return config.image_seq_length**0.5


# Idefics closes turns with <end_of_utterance>, which its configs do not list.
_IDEFICS = dict(text="text_model", closes=False, unlisted=3)
# All that differs between the families, by model_type.
FAMILIES = {
    "qwen2_vl": Family(processor="Qwen2VLProcessor", title="Qwen2-VL"),
    "qwen2_5_vl": Family(processor="Qwen2_5_VLProcessor", title="Qwen2.5-VL"),
    "qwen3_vl": Family(processor="Qwen3VLProcessor", title="Qwen3-VL"),
    "qwen3_vl_moe": Family(processor="Qwen3VLProcessor", title="Qwen3-VL-MoE"),
    "llava_onevision": Family(
        layout=any_resolution, inputs=("image_sizes",), title="LLaVA-OneVision"
    ),
    # Its first templates close the model's turns alone, so that a question follows an end.
    "llava": Family(layout=selected_patches, inputs=(), title="LLaVA", closes=False, header=5),
    "internvl": _tiled(_of_square, "InternVL"),
    "gemma3": _tiled(lambda config: config.mm_tokens_per_image**0.5, "Gemma 3"),
    "idefics3": _tiled(_shuffled, "Idefics3", **_IDEFICS),
    "smolvlm": _tiled(_shuffled, "SmolVLM", **_IDEFICS),
}


def unwrapped(model: Model) -> Model:
    """The transformers model inside a PEFT one; any other model as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def family_of(model: Model) -> Family:
    """The family of a model.

    Raises:
        ValueError: a model that vrga does not know.
    """
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if kind in FAMILIES and hasattr(model, "generate"):
        return FAMILIES[kind]
    why = "is not supported"
    if getattr(config, "is_encoder_decoder", False):
        why = (
            "is an encoder-decoder model, whose decoder does not attend to image tokens as keys of "
            "its own; it is not supported"
        )
    raise ValueError(
        f"{type(model).__name__} (model_type {kind!r}) {why}; supported model types: "
        f"{', '.join(FAMILIES)}, as a class with generate(), such as "
        "Qwen2_5_VLForConditionalGeneration"
    )
