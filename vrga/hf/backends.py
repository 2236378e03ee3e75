"""A model's attention backend: which one it is, setting another, and registering one's own."""

from __future__ import annotations

from collections.abc import Callable

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vrga.annotations import Model


def backend_of(model: Model) -> str:
    """The name of the text model's attention backend."""
    return model.config.get_text_config()._attn_implementation


def backends_of(model: Model) -> list[str | None]:
    """The backend in the config of every module that has one."""
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    return [getattr(config, "_attn_implementation", None) for config in configs]


def set_backend(model: Model, name: str, *, everywhere: bool = False) -> None:
    """Make the text model's attention, or with `everywhere` all of it, run on another backend."""
    model.set_attn_implementation(name if everywhere else {"text_config": name})


def known_backends() -> list[str]:
    """Names of the backends that transformers knows here; eager is one of every model's own."""
    return ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]


def register_backend(name: str, attend: Callable, masks_of: str | None = None) -> None:
    """Make a function an attention backend.

    Args:
        attend: as every attention function of transformers.
        masks_of: the backend whose masks it is given; None leaves those that it has.
    """
    AttentionInterface.register(name, attend)
    if masks_of is not None:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[masks_of])
