"""What a patch puts on a model, and takes off again: hooks, methods, the attention function."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from vrga.annotations import Model
from vrga.hf import attention
from vrga.hf.families import Family
from vrga.hf.inputs import refusal

WRAPPED = (
    "whose code may run without a patch's hooks: patch the model itself, "
    "and let generate() compile its steps (cache_implementation='static')"
)


class Attachment:
    """What a patch puts on one model; nothing, before `attach` and behind `detach`.

    Args:
        model, outer, text: the model, its multimodal model, and the text model in that.
        family: of the model.

    Attributes:
        own: what the model's user had put in place of its methods, by their names.
    """

    def __init__(self, model: Model, outer: Model, text: Model, family: Family):
        self._model, self._outer, self._text, self._family = model, outer, text, family
        self._backend = text.config._attn_implementation
        self._registered: str | None = None
        self._handles: list = []
        self.own: dict[str, Any] = {}
        self._replaced: dict[str, object] = {}
        self._compiled: list[tuple[nn.Module, str, Any]] = []

    def attach(self, hooks: dict[str, Callable], generate: Callable) -> None:
        """Put hooks and methods on the model.

        Args:
            hooks: "before" and "behind" of the multimodal model, "inject" and "after" of the text
                model, "hear" behind the whole model; bound methods, so that a deep copy of the
                model gets hooks of its own.

        Raises:
            ValueError: an attention backend that cannot be wrapped. The model is unchanged then.
        """
        self._registered = attention.register(self._backend)
        self._set_attention(self._registered)
        if not self.is_attached:
            raise ValueError(
                f"{type(self._text).__name__} does not let its attention be replaced; it has no "
                "attention interface in this version of transformers"
            )
        self.set_aside_compiled()
        self._handles = [
            self._outer.register_forward_pre_hook(hooks["before"], with_kwargs=True),
            self._outer.register_forward_hook(hooks["behind"], with_kwargs=True),
            self._text.register_forward_pre_hook(hooks["inject"], with_kwargs=True),
            self._text.register_forward_hook(hooks["after"], with_kwargs=True),
            self._model.register_forward_hook(hooks["hear"], with_kwargs=True),
        ]
        self._replaced = {m: refusal(m) for m in self._family.refused if hasattr(self._model, m)}
        self._replaced["generate"] = generate
        own = self._model.__dict__
        self.own = {name: own[name] for name in self._replaced if name in own}
        own.update(self._replaced)

    def detach(self) -> None:
        """Take all of it off; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        if self._handles:
            own = self._model.__dict__
            for name in self._replaced:
                own.pop(name, None)
            own.update(self.own)
            for module, name, compiled in self._compiled:
                vars(module)[name] = compiled
            if self.is_attached:
                self._set_attention(self._backend)
        self._handles, self.own, self._compiled = [], {}, []

    @property
    def is_attached(self) -> bool:
        """Whether the text model's attention is ours."""
        return self._text.config._attn_implementation == self._registered

    def check(self) -> None:
        """Raise RuntimeError where the text model's attention is another's by now."""
        if not self.is_attached:
            raise RuntimeError(
                "the attention implementation was changed to "
                f"{self._text.config._attn_implementation!r} while the model is patched: call "
                "vrga.unpatch(model) first"
            )

    def _set_attention(self, name: str) -> None:
        # By the key of the sub-config, so that the vision tower keeps its own implementation.
        self._model.set_attn_implementation({self._family.text_config: name})

    def set_aside_compiled(self) -> None:
        """Run modules as they are written: compiled code was traced without our hooks, and may go
        on running without them; and a prompt's pass with them cannot be compiled."""
        before = len(self._compiled)
        towers = [self._model, self._outer, *self._text.modules()]
        for module in towers:
            own = vars(module)
            forward = own.get("forward")
            plain = getattr(forward, "_torchdynamo_orig_callable", None)
            if plain is not None:
                self._compiled.append((module, "forward", forward))
                if getattr(plain, "__func__", None) is type(module).forward:
                    del own["forward"]
                else:
                    own["forward"] = plain
            if own.get("_compiled_call_impl") is not None:
                self._compiled.append((module, "_compiled_call_impl", own["_compiled_call_impl"]))
                own["_compiled_call_impl"] = None
        if len(self._compiled) > before:
            warnings.warn(
                "the model, or a part of it, is compiled (torch.compile, model.compile()): such "
                "code does not go with a patch, so the model runs uncompiled until "
                "vrga.unpatch(model); generate() compiles steered steps itself, with "
                "cache_implementation='static'",
                stacklevel=5,
            )
