"""The model as a patch sees it: what this version of transformers calls things, found once."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from vrga.foreign import Config, Model, ModelOutput
from vrga.hf import attention
from vrga.hf.cache import NAMES, KeyCache, cache_among, cache_in
from vrga.hf.families import family_of, unwrapped
from vrga.hf.inputs import MEDIA, PIXELS, TYPES, columns, refusal

VERSION = transformers.__version__


@dataclass(frozen=True)
class ForwardInputs:
    """The inputs of one forward pass, or of one call of generate().

    Args:
        named: all of them by their names.
        ids: int64 [B, Q], or None; embeds: [B, Q, hidden], or None. One of them is there.
        mask: attention mask [B, S], or of four dimensions, or None.
        positions: rotary positions, or None.
        types: 1 on image and 2 on video tokens, [B, Q], or None.
        cache: the key cache, or None.
    """

    named: dict[str, Any]
    ids: Tensor | None
    embeds: Tensor | None
    mask: Tensor | None
    positions: Tensor | None
    types: Tensor | None
    cache: KeyCache | None

    @classmethod
    def of(cls, named: dict[str, Any]) -> ForwardInputs:
        """Inputs by their names.

        Raises:
            ValueError: neither input_ids nor inputs_embeds, or a cache of an unknown kind.
        """
        ids, embeds = named.get("input_ids"), named.get("inputs_embeds")
        if ids is None and embeds is None:
            raise ValueError("a prompt needs input_ids or inputs_embeds")
        mask = named.get("attention_mask")
        if isinstance(mask, dict):  # by the kind of layer; all of them hide the same padding
            mask = mask.get("full_attention", next(iter(mask.values())))
        raw = cache_among(named)
        return cls(
            named, ids, embeds, mask, named.get("position_ids"), named.get(TYPES),
            None if raw is None else KeyCache(raw),
        )  # fmt: skip

    @property
    def tokens(self) -> Tensor:
        """The ids, or the embeddings where there are none."""
        found = self.embeds if self.ids is None else self.ids
        assert found is not None  # `of` refuses inputs with neither
        return found

    @property
    def rows(self) -> int:
        """B."""
        return self.tokens.shape[0]

    @property
    def width(self) -> int:
        """Tokens of each row in these inputs."""
        return self.tokens.shape[1]

    @property
    def brings_images(self) -> bool:
        """Whether pixels come with them, and not sizes alone."""
        media = [value for name, value in self.named.items() if name.startswith(PIXELS)]
        return any(v is not None and (isinstance(v, Tensor) or bool(v)) for v in media)


@dataclass(frozen=True)
class GenerateOptions:
    """Options of one call of generate(), as it resolves them itself.

    Args:
        inputs: of the call; None where it brings neither ids nor embeddings.
        beams: whether it searches with beams; drafts: whether passes bring drafts, which may be
            taken back.
        end_tokens: ids that end an answer, as this call has them.
        own: whether it is transformers' own generate() that runs.
    """

    inputs: ForwardInputs | None
    beams: bool
    drafts: bool
    end_tokens: set[int]
    own: bool


class Host:
    """One loaded model, under the names that this version of transformers uses.

    Names are found from signatures and attributes, never from version numbers.

    Args:
        model: of a supported family; a PEFT model's base is taken.

    Attributes:
        model, outer, text: the model, its multimodal model, and the text model in that.
        shape: (L, H) of the text model.

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
        self.cache_name = self._cache_name()
        self._needs_types = TYPES in self.parameters
        config = self.text.config
        self.shape = config.num_hidden_layers, config.num_attention_heads
        self._check_layers()
        for name in ("set_attn_implementation", "_prepare_generation_config", "generate"):
            if not hasattr(self.model, name):
                raise self._missing(f"{type(self.model).__name__}.{name}")
        self.backend = config._attn_implementation
        self._registered: str | None = None
        self._handles: list = []
        self._own: dict[str, Any] = {}  # what stood on the model in place of its methods
        self._replaced: dict[str, object] = {}
        self._compiled: list[tuple[nn.Module, str, Any]] = []

    # --- what it is called ---

    def _missing(self, what: str) -> ValueError:
        return ValueError(
            f"transformers {transformers.__version__} has no {what}, which steering needs; run "
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
                    f"transformers {transformers.__version__}: {type(module).__name__}.forward "
                    f"takes no key cache under a known name ({', '.join(NAMES)}); it takes "
                    f"{', '.join(_parameters(module))}. Without it a step cannot be told from a "
                    "prompt, so this model cannot be patched: run `vrga doctor`, and report what "
                    "it prints"
                )
            found[names[0]] = type(module).__name__
        if len(found) > 1:
            told = ", ".join(f"{name!r} in {where}" for name, where in found.items())
            raise ValueError(
                f"transformers {transformers.__version__}: the key cache has several names, "
                f"{told}; a cache could be lost on its way, so this model cannot be patched"
            )
        return next(iter(found))

    def _check_layers(self) -> None:
        """The attention layers are told apart by their numbers."""
        numbers = {getattr(module, "layer_idx", None) for module in self.text.modules()}
        if not set(range(self.shape[0])) <= numbers:
            raise self._missing(f"layer_idx on {type(self.text).__name__}'s attention layers")

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
            ends |= _ids(getattr(config, "eos_token_id", None))
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

    def cut(self, inputs: ForwardInputs, chosen: slice, past: int) -> dict[str, Any]:
        """The inputs of a pass for some of its tokens, behind `past` keys."""
        return columns(inputs.named, chosen, inputs.width, past)

    def behind(self, inputs: ForwardInputs, chosen: slice, past: int, output: ModelOutput) -> dict:
        """The same, for tokens that follow a pass which gave `output`."""
        rest = self.cut(inputs, chosen, past)
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

    @staticmethod
    def cache_among(kwargs: dict) -> KeyCache | None:
        """The key cache among a pass's inputs, or None."""
        raw = cache_among(kwargs)
        return None if raw is None else KeyCache(raw)

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
        """The options of a call of generate(), resolved in its own order: keywords, the config
        given, the model's config.

        Raises:
            ValueError: options under which nothing could be steered, or not rightly.
        """
        named = _bound(type(self.model).generate, self.model, args, kwargs)
        given = named.pop("generation_config", None)
        prompt = named.pop("inputs", None)
        if prompt is not None and named.get("input_ids") is None:
            named["input_ids"] = prompt
        own = {
            k: v for k, v in named.items()
            if v is not None and (k.endswith("_token_id") or not isinstance(v, Tensor))
        }  # fmt: skip
        config = self.model._prepare_generation_config(given, **own)[0]
        _check_options(config, named)
        without = named.get("input_ids") is None and named.get("inputs_embeds") is None
        return GenerateOptions(
            inputs=None if without else ForwardInputs.of(named),
            beams=(config.num_beams or 1) > 1,
            drafts=config.prompt_lookup_num_tokens is not None
            or named.get("assistant_model") is not None,
            end_tokens=_ids(config.eos_token_id),
            own=named.get("custom_generate") is None and "generate" not in self._own,
        )

    def generate(self, args: tuple, kwargs: dict, between: Callable | None) -> object:
        """The model's own generate(), or what its user put in its place.

        Args:
            between: called like a stopping criterion after each token; None is nothing.
        """
        own = self._own.get("generate")
        if own is None:
            own = functools.partial(type(self.model).generate, self.model)
        if between is not None:
            criteria = [*(kwargs.get("stopping_criteria") or ()), between]
            stopping = transformers.StoppingCriteriaList(criteria)
            kwargs = {**kwargs, "stopping_criteria": stopping}
        return own(*args, **kwargs)

    # --- on the model, and off ---

    def attach(self, hooks: dict[str, Callable], generate: Callable) -> None:
        """Put hooks and methods on the model.

        Args:
            hooks: "before" and "behind" of the multimodal model, "inject" and "after" of the text
                model; bound methods, so that a deep copy of the model gets hooks of its own.

        Raises:
            ValueError: an attention backend that cannot be wrapped. The model is unchanged then.
        """
        self._registered = attention.register(self.backend)
        self._set_attention(self._registered)
        if not self.is_attached:
            raise ValueError(
                f"{type(self.text).__name__} does not let its attention be replaced; it has no "
                "attention interface in this version of transformers"
            )
        self.set_aside_compiled()
        self._handles = [
            self.outer.register_forward_pre_hook(hooks["before"], with_kwargs=True),
            self.outer.register_forward_hook(hooks["behind"], with_kwargs=True),
            self.text.register_forward_pre_hook(hooks["inject"], with_kwargs=True),
            self.text.register_forward_hook(hooks["after"], with_kwargs=True),
        ]
        self._replaced = {m: refusal(m) for m in self.family.refused if hasattr(self.model, m)}
        self._replaced["generate"] = generate
        own = self.model.__dict__
        self._own = {name: own[name] for name in self._replaced if name in own}
        own.update(self._replaced)

    def detach(self) -> None:
        """Take all of it off; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        if self._handles:
            own = self.model.__dict__
            for name in self._replaced:
                own.pop(name, None)
            own.update(self._own)
            for module, name, compiled in self._compiled:
                vars(module)[name] = compiled
            if self.is_attached:
                self._set_attention(self.backend)
        self._handles, self._own, self._compiled = [], {}, []

    @property
    def is_attached(self) -> bool:
        """Whether the text model's attention is ours."""
        return self.text.config._attn_implementation == self._registered

    @property
    def current_backend(self) -> str:
        """The text model's attention implementation as it is now."""
        return self.text.config._attn_implementation

    def _set_attention(self, name: str) -> None:
        # By the key of the sub-config, so that the vision tower keeps its own implementation.
        self.model.set_attn_implementation({self.family.text_config: name})

    def set_aside_compiled(self) -> None:
        """Run modules as they are written: compiled code was traced without our hooks, and may go
        on running without them; and a prompt's pass with them cannot be compiled."""
        before = len(self._compiled)
        towers = [self.model, self.outer, *self.text.modules()]
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


WRAPPED = (
    "whose code may run without a patch's hooks: patch the model itself, "
    "and let generate() compile its steps (cache_implementation='static')"
)
NEWEST_TESTED = "5.24"  # of transformers


@functools.cache
def warn_if_untested() -> None:
    """Say once that this version of transformers is newer than the newest that was tested."""
    found = transformers.__version__
    release = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if release > tuple(int(part) for part in NEWEST_TESTED.split(".")):
        warnings.warn(
            f"transformers {found} is newer than the newest that vrga was tested on "
            f"({NEWEST_TESTED}); its checks decide: run `vrga doctor` to see what holds here",
            stacklevel=4,
        )


def _parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    """Parameters of a module's forward(); of its class's, where a wrapper tells none."""
    found = dict(inspect.signature(module.forward).parameters)
    named = [p for p in found.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if named:
        return {p.name: p for p in named}
    of_class = list(inspect.signature(type(module).forward).parameters.values())[1:]
    return {p.name: p for p in of_class if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _ids(value: int | list[int] | tuple[int, ...] | Tensor | None) -> set[int]:
    """Token ids, of one, several, or a tensor of them; none for None."""
    if value is None:
        return set()
    value = value.tolist() if isinstance(value, Tensor) else value
    return set(value) if isinstance(value, (list, tuple)) else {value}


def _bound(function: Callable, owner: object, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Arguments of a method by their names, those of its **kwargs among them.

    Raises:
        ValueError: a positional argument that the method does not name.
    """
    signature = inspect.signature(function)
    try:
        found = dict(signature.bind_partial(owner, *args, **kwargs).arguments)
    except TypeError as error:
        raise ValueError(f"generate(): {error}") from None
    rest = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    for name in rest:
        found.update(found.pop(name, {}))
    found.pop(next(iter(signature.parameters)))
    return found


def _check_options(config: Config, named: dict) -> None:
    """Refuse what leaves nothing to steer, or what steering would get wrong."""
    if config.use_cache is False:
        raise ValueError(
            "use_cache=False recomputes the whole prompt for every token, so there is no decode "
            "step to steer: leave the cache on, or vrga.unpatch(model) first"
        )
    if config.assistant_early_exit:
        raise ValueError(
            "assistant_early_exit runs the patched model with fewer layers as its own assistant, "
            "which steering cannot tell from the model itself: use assistant_model, or "
            "prompt_lookup_num_tokens"
        )
    mask = named.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and bool((mask[:, -1] == 0).any()):
        rows = (mask[:, -1] == 0).nonzero().flatten().tolist()
        raise ValueError(
            f"rows {rows} of the batch are padded on the right, where generation goes on: pad on "
            "the left (tokenizer.padding_side = 'left')"
        )
