"""The inputs of generate() and of forward passes: what is refused, and how they are cut."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

# What versions of transformers call the key cache, among a model's inputs and in its output.
CACHES = ("cache", "past_key_values")

# Beginnings of the names of inputs that come with images and videos.
MEDIA = ("pixel_values", "mm_encoder_outputs", "image_", "video_", "second_per_grid")
PIXELS = MEDIA[:2]  # sizes alone may come with every pass
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


def option(inputs: dict, defaults: object, name: str) -> object:
    """An option of generate(): given on its own, in its config, or the model's."""
    value = inputs.get(name)
    return (
        getattr(inputs.get("generation_config") or defaults, name, None) if value is None else value
    )


def check_options(inputs: dict, defaults: object) -> None:
    """Refuse options of generate() under which nothing could be steered, or not rightly."""
    if option(inputs, defaults, "use_cache") is False:
        raise ValueError(
            "use_cache=False recomputes the whole prompt for every token, so there is no decode "
            "step to steer: leave the cache on, or vrga.unpatch(model) first"
        )
    if option(inputs, defaults, "assistant_early_exit"):
        raise ValueError(
            "assistant_early_exit runs the patched model with fewer layers as its own assistant, "
            "which steering cannot tell from the model itself: use assistant_model, or "
            "prompt_lookup_num_tokens"
        )
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and bool((mask[:, -1] == 0).any()):
        rows = (mask[:, -1] == 0).nonzero().flatten().tolist()
        raise ValueError(
            f"rows {rows} of the batch are padded on the right, where generation goes on: pad on "
            "the left (tokenizer.padding_side = 'left')"
        )


def check_inputs(inputs: dict, module: nn.Module) -> None:
    """Refuse forward arguments that steering cannot serve."""
    wanted = inputs.get("output_attentions")
    if wanted or (wanted is None and getattr(module.config, "output_attentions", False)):
        raise ValueError(
            "output_attentions=True is not available on a patched model, whose decode kernel "
            "never builds the attention matrix: use patch.record(), or patch.enabled = False"
        )


def cache_of(source: object) -> object | None:
    """The key cache among a model's inputs, or in its output; None where there is none."""
    found = source if isinstance(source, dict) else vars(source)
    return next((found[name] for name in CACHES if found.get(name) is not None), None)
