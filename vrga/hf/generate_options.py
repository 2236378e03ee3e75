"""Options of one call of generate(), as it resolves them itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vrga.annotations import Config, Model
from vrga.hf.inputs import ForwardInputs


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

    @classmethod
    def of(cls, model: Model, args: tuple, kwargs: dict, *, replaced: bool) -> GenerateOptions:
        """Resolved in its own order: keywords, the config given, the model's config.

        Args:
            replaced: whether the model's user has put a generate() of theirs in its place.

        Raises:
            ValueError: options under which nothing could be steered, or not rightly.
        """
        named = _bound(type(model).generate, model, args, kwargs)
        given = named.pop("generation_config", None)
        prompt = named.pop("inputs", None)
        if prompt is not None and named.get("input_ids") is None:
            named["input_ids"] = prompt
        own = {
            k: v for k, v in named.items()
            if v is not None and (k.endswith("_token_id") or not isinstance(v, Tensor))
        }  # fmt: skip
        config = model._prepare_generation_config(given, **own)[0]
        _check_options(config, named)
        without = named.get("input_ids") is None and named.get("inputs_embeds") is None
        return cls(
            inputs=None if without else ForwardInputs.of(named),
            beams=(config.num_beams or 1) > 1,
            drafts=config.prompt_lookup_num_tokens is not None
            or named.get("assistant_model") is not None,
            end_tokens=token_ids(config.eos_token_id),
            own=named.get("custom_generate") is None and not replaced,
        )


def token_ids(value: int | list[int] | tuple[int, ...] | Tensor | None) -> set[int]:
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
