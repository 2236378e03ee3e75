"""The attention given to transformers: the model's own backend, or what a forward pass brings.

`register` makes an attention implementation that does what the model's own one does, unless the
forward pass brings, as the keyword argument `KEYWORD`, an object whose `attend` takes an
`AttentionCall`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vrga.hf.backends import register_backend
from vrga.method.call import AttentionCall

KEYWORD = "vrga"
# Backends that are a plain softmax over the keys which their mask shows.
SDPA = torch._C._nn.scaled_dot_product_attention
TRANSFORMERS = str(Path(transformers.__file__).parent) + os.sep
PLAIN = ("eager", "sdpa", "flash_attention")


def register(delegate: str) -> str:
    """Register the implementation that wraps the attention backend `delegate`; its name.

    Raises:
        ValueError: a backend without a mask function: padding would silently be attended to.
    """
    if delegate == "flex_attention":
        raise ValueError(
            "attn_implementation='flex_attention' hides its mask in a BlockMask, so vrga cannot "
            "tell which keys are visible; load the model with 'sdpa', 'eager' or "
            "'flash_attention_2'"
        )
    if delegate not in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys():
        known = ", ".join(sorted(ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()))
        raise ValueError(
            f"attn_implementation={delegate!r} has no mask function that vrga could use; "
            f"load the model with one of: {known}"
        )
    name = f"{KEYWORD}_{delegate.replace('/', '_').replace('|', '_')}"

    def attend(module, query, key, value, attention_mask, **kwargs):
        step = kwargs.pop(KEYWORD, None)
        if delegate == "eager":  # which lives in the model's own file
            own = sys.modules[type(module).__module__].eager_attention_forward
        else:
            own = ALL_ATTENTION_FUNCTIONS[delegate]
        if delegate not in ("eager", "sdpa"):
            # Flash attention looks its kernel up by the name in the module's config.
            module = _Seen(module, config=_Seen(module.config, _attn_implementation=delegate))

        def attention(query, key, value, mask):
            return own(module, query, key, value, mask, **kwargs)

        if step is None:
            return attention(query, key, value, attention_mask)
        call = AttentionCall(
            module.layer_idx, query, key, value, attention_mask, kwargs["scaling"],
            kwargs.get("sliding_window"), attention, _is_plain(delegate, own), kwargs,
        )  # fmt: skip
        if call.plain and not torch.compiler.is_compiling():
            call.plain = not step.biased(call)
        return step.attend(call)

    register_backend(name, attend, masks_of=delegate)
    return name


class _Seen:
    """An object as somebody else is to see it: with some attributes replaced."""

    def __init__(self, target: object, **replaced: object):
        self.__dict__.update(replaced, _target=target)

    def __getattr__(self, name: str) -> object:
        return getattr(self._target, name)


def _is_plain(delegate: str, function: Callable) -> bool:
    """Whether a backend is known to be a plain softmax; a function put in its place is not."""
    if not (delegate.startswith(PLAIN) or "flash-attn" in delegate):
        return False
    if delegate == "sdpa" and torch.nn.functional.scaled_dot_product_attention is not SDPA:
        return False  # another kernel was put in its place
    code = getattr(getattr(function, "func", function), "__code__", None)
    # By where it is written: a wrapper borrows the name of what it wraps.
    return code is not None and code.co_filename.startswith(TRANSFORMERS)
