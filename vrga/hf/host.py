"""The model as a patch sees it: what this version of transformers calls things, found once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from vrga.annotations import Model, ModelOutput
from vrga.hf.attachment import WRAPPED, Attachment
from vrga.hf.cache import NAMES, KeyCache, cache_among, cache_in
from vrga.hf.families import family_of, unwrapped
from vrga.hf.generate_options import GenerateOptions, token_ids
from vrga.hf.inputs import MEDIA, TYPES, ForwardInputs
from vrga.hf.versions import VERSION


class Host:
    """One loaded model, under the names that this version of transformers uses.

    Names are found from signatures and attributes, never from version numbers.

    Args:
        model: of a supported family; a PEFT model's base is taken.

    Attributes:
        model, outer, text: the model, its multimodal model, and the text model in that.
        shape: (L, H) of the text model.
        attachment: puts hooks on it, and takes them off.

    Raises:
        ValueError: an unsupported model; or a name that this version has not, and the version.
    """

    def __init__(self, model: Model):
        if hasattr(model, "_orig_mod"):
            raise ValueError(f"the model is wrapped by torch.compile, {WRAPPED}")
        self.model: Model = unwrapped(model)
        self.family = family_of(self.model)
        self.outer: Model = self._part(self.model, self.family.outer)
        self.text: Model = self._part(self.outer, self.family.text)
        self.parameters = list(_parameters(self.outer))
        self._whole = list(_parameters(self.model))
        self.cache_name = self._cache_name()
        self._needs_types = TYPES in self.parameters
        config = self.text.config
        self.shape = config.num_hidden_layers, config.num_attention_heads
        # The attention layers are told apart by their numbers.
        numbers = {getattr(module, "layer_idx", None) for module in self.text.modules()}
        if not set(range(self.shape[0])) <= numbers:
            raise self._missing(f"layer_idx on {type(self.text).__name__}'s attention layers")
        for name in ("set_attn_implementation", "_prepare_generation_config", "generate"):
            if not hasattr(self.model, name):
                raise self._missing(f"{type(self.model).__name__}.{name}")
        self.attachment = Attachment(self.model, self.outer, self.text, self.family)

    # --- what it is called ---

    def _missing(self, what: str) -> ValueError:
        return ValueError(
            f"transformers {VERSION} has no {what}, which steering needs; run "
            "`vrga doctor`, and report what it prints"
        )

    def _part(self, module: Model, name: str) -> Model:
        try:
            found = module.get_submodule(name)
        except AttributeError:
            raise self._missing(f"{type(module).__name__}.{name}") from None
        if hasattr(found, "_orig_mod"):
            raise ValueError(
                f"{type(module).__name__}.{name} is wrapped by torch.compile, {WRAPPED}"
            )
        return found

    def check_parts(self) -> None:
        """The parts that hooks stand on must still be the model's.

        Raises:
            ValueError: one was replaced since, by a compiled wrapper or another module.
        """
        outer = self.model.get_submodule(self.family.outer)
        text = outer.get_submodule(self.family.text)
        for name, now, mine in (
            (self.family.outer, outer, self.outer),
            (self.family.text, text, self.text),
        ):
            if now is not mine and hasattr(now, "_orig_mod"):
                raise ValueError(
                    f"{name} of the patched model is wrapped by torch.compile, {WRAPPED}"
                )
            if now is not mine:
                raise ValueError(
                    f"{name} of the patched model is another module than the one that was patched: "
                    "call vrga.unpatch(model), and patch it anew"
                )

    def _cache_name(self) -> str:
        """What forward() calls the key cache: one name in all models that hand it down."""
        found = {}
        for module in (self.model, self.outer, self.text):
            names = [name for name in NAMES if name in _parameters(module)]
            if not names:
                raise ValueError(
                    f"transformers {VERSION}: {type(module).__name__}.forward "
                    f"takes no key cache under a known name ({', '.join(NAMES)}); it takes "
                    f"{', '.join(_parameters(module))}. Without it a step cannot be told from a "
                    "prompt, so this model cannot be patched: run `vrga doctor`, and report what "
                    "it prints"
                )
            found[names[0]] = type(module).__name__
        if len(found) > 1:
            told = ", ".join(f"{name!r} in {where}" for name, where in found.items())
            raise ValueError(
                f"transformers {VERSION}: the key cache has several names, "
                f"{told}; a cache could be lost on its way, so this model cannot be patched"
            )
        return next(iter(found))

    @property
    def device(self) -> torch.device:
        """Of the first weights."""
        return next(self.model.parameters()).device

    @property
    def vocabulary(self) -> int:
        """Ids that the model has."""
        return self.text.get_input_embeddings().num_embeddings

    @property
    def pad_token(self) -> int | None:
        """The id of padding, if one is set."""
        return self.model.generation_config.pad_token_id

    @property
    def end_tokens(self) -> set[int]:
        """Ids that end a sequence: those of the configs, of generation and of the text model."""
        ends: set[int] = set()
        for config in (self.model.generation_config, self.model.config.get_text_config()):
            ends |= token_ids(getattr(config, "eos_token_id", None))
        return ends

    @property
    def vision_tokens(self) -> set[int]:
        """Ids of image placeholders and the marks around them."""
        return self.family.vision_ids(self.model.config)

    # --- what a pass brings ---

    def named(self, args: tuple, kwargs: dict) -> dict[str, Any]:
        """Inputs of a pass of the multimodal model by their names."""
        return {**dict(zip(self.parameters, args, strict=False)), **kwargs}

    def read(self, args: tuple, kwargs: dict) -> ForwardInputs:
        """The inputs of a pass of the multimodal model.

        Raises:
            ValueError: an argument that steering cannot serve.
        """
        named = self.named(args, kwargs)
        wanted = named.get("output_attentions")
        config = self.outer.config
        if wanted or (wanted is None and getattr(config, "output_attentions", False)):
            raise ValueError(
                "output_attentions=True is not available on a patched model, whose decode kernel "
                "never builds the attention matrix: use patch.record(), or patch.enabled = False"
            )
        return ForwardInputs.of(named)

    def behind(self, inputs: ForwardInputs, chosen: slice, past: int, output: ModelOutput) -> dict:
        """`ForwardInputs.cut`, for tokens that follow a pass which gave `output`."""
        rest = inputs.cut(chosen, past)
        rest = {k: v for k, v in rest.items() if not k.startswith(MEDIA) and k not in NAMES}
        return rest | {self.cache_name: cache_in(output)}

    def cache_of(self, output: ModelOutput) -> KeyCache | None:
        """The key cache in the text model's output; None where the pass was told to keep none."""
        raw = cache_in(output)
        return None if raw is None else KeyCache(raw)

    def holds(self, inputs: ForwardInputs) -> Callable[[int, Tensor], bool]:
        """What tells, of a pass, whether (layer, keys) are those in its cache, see `KeyCache`.

        Of a cache that the model makes itself, within the pass, it cannot be seen: in eval mode it
        is a plain one.
        """
        if inputs.cache is not None:
            return inputs.cache.holds
        wanted = inputs.named.get("use_cache")
        wanted = self.text.config.use_cache if wanted is None else wanted
        made = bool(wanted) and not self.text.training
        return lambda layer, key: made

    def run_of_call(self, args: tuple, kwargs: dict) -> Any | None:
        """What the cache among the whole model's inputs belongs to; for compiled steps."""
        return self.run_in({**dict(zip(self._whole, args, strict=False)), **kwargs})

    def run_in(self, kwargs: dict) -> Any | None:
        """What the cache among a pass's inputs belongs to; for compiled steps."""
        return KeyCache.run_of(cache_among(kwargs))

    @staticmethod
    def join(head: ModelOutput, rest: ModelOutput) -> ModelOutput:
        """The multimodal model's output of two passes put together, as of one."""
        rest.last_hidden_state = torch.cat([head.last_hidden_state, rest.last_hidden_state], 1)
        if rest.hidden_states is not None:
            pairs = zip(head.hidden_states, rest.hidden_states, strict=True)
            rest.hidden_states = tuple(torch.cat(pair, 1) for pair in pairs)
        return rest

    def check_positions(self, given: ForwardInputs, has_images: bool) -> None:
        """Refuse images that the model would silently number like plain text."""
        flat = given.positions is None or given.positions.ndim != 3
        if self._needs_types and has_images and given.types is None and flat:
            raise ValueError(
                f"the inputs lack {TYPES}, without which this version of transformers gives image "
                "tokens the positions of plain text: pass what the processor returned"
            )

    # --- generate() ---

    def options(self, args: tuple, kwargs: dict) -> GenerateOptions:
        """Of a call of generate(); raises as `GenerateOptions.of`."""
        replaced = "generate" in self.attachment.own
        return GenerateOptions.of(self.model, args, kwargs, replaced=replaced)

    def generate(self, args: tuple, kwargs: dict, between: Callable | None) -> object:
        """The model's own generate(), or what its user put in its place.

        Args:
            between: called like a stopping criterion after each token; None is nothing.
        """
        own = self.attachment.own.get("generate")
        if own is None:
            own = functools.partial(type(self.model).generate, self.model)
        if between is not None:
            criteria = [*(kwargs.get("stopping_criteria") or ()), between]
            stopping = transformers.StoppingCriteriaList(criteria)
            kwargs = {**kwargs, "stopping_criteria": stopping}
        return own(*args, **kwargs)


def _parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    """Parameters of a module's forward(); of its class's, where a wrapper tells none."""
    found = dict(inspect.signature(module.forward).parameters)
    named = [p for p in found.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if named:
        return {p.name: p for p in named}
    of_class = list(inspect.signature(type(module).forward).parameters.values())[1:]
    return {p.name: p for p in of_class if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
