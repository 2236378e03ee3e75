"""The inputs of generate() and of forward passes: what is refused, and how they are cut."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

# Beginnings of the names of inputs that come with images and videos.
MEDIA = ("pixel_values", "mm_encoder_outputs", "image_", "video_", "second_per_grid")
PIXELS = MEDIA[:2]  # sizes alone may come with every pass
TYPES = "mm_token_type_ids"
# Inputs with one column per token of the pass, in their last dimension; in their second one.
LAST, SECOND = ("position_ids", "cache_position"), ("input_ids", "inputs_embeds")


def columns(inputs: dict, chosen: slice, width: int, past: int) -> dict:
    """The inputs of a pass for some of its tokens; masks keep the keys before them."""
    found = dict(inputs)
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            continue
        if name == "attention_mask":
            if value.ndim != 2:
                raise ValueError(
                    f"assisted decoding needs an attention mask [B, S]; got {list(value.shape)}"
                )
            found[name] = value[:, : past + (width if chosen.stop is None else chosen.stop)]
        elif name in SECOND or name.endswith("token_type_ids"):
            found[name] = value[:, -width:][:, chosen]
        elif name in LAST:
            found[name] = value[..., -width:][..., chosen]
    return found


def refusal(method: str) -> Callable:
    """What stands in the place of a method that a patched model must not run."""

    def refused(*args, **kwargs):
        raise ValueError(
            f"{method} packs requests into one row and hides the cache, so a patched model cannot "
            "steer it: use model.generate, or vrga.unpatch(model) first"
        )

    return refused
