"""What a user sets on a patch, and what of it is in force for one prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vrga.config import VRGAConfig, check_fields
from vrga.hf.question_ends import Query
from vrga.method.prompt import GridCells

SETTABLE = ("config", "enabled", "query", "given", "ablated")


class Settings(Protocol):
    """What hooks read of a patch at every pass; see `Patch` for each."""

    config: VRGAConfig
    enabled: bool
    query: Query
    given: GridCells | None
    ablated: Tensor | Callable | None

    @property
    def impl(self) -> str:
        """ "auto", "torch" or "triton"."""


@dataclass(frozen=True)
class Options:
    """What a user had set when the prompt began.

    Args:
        ends: ids that end a turn, as this call has them.
    """

    config: VRGAConfig
    query: Query
    given: GridCells | None
    ablated: Tensor | Callable | None
    impl: str
    ends: frozenset[int]

    @classmethod
    def of(cls, set_now: Settings, ends: set[int]) -> Options:
        """What is set now."""
        return cls(
            set_now.config, set_now.query, set_now.given, set_now.ablated, set_now.impl,
            frozenset(ends),
        )  # fmt: skip


def check_setting(name: str, value: object) -> None:
    """Refuse what cannot be set on a patch.

    Raises:
        ValueError: a value that a setting does not take.
        AttributeError: a name that is none of `SETTABLE`, nor begins with an underscore.
    """
    if name == "config" and not isinstance(value, VRGAConfig):
        raise ValueError(f"config={value!r} is not a VRGAConfig")
    if name == "enabled" and not isinstance(value, bool):
        raise ValueError(f"enabled={value!r} is not True or False")
    if name == "query" and value is None:
        raise ValueError("query=None: give 'user_end' (the default), positions, or a text")
    if name not in SETTABLE and not name.startswith("_"):
        where = "patch.config = dataclasses.replace(patch.config, ...)"
        raise AttributeError(
            f"a patch has no {name!r} to be set: it has {', '.join(SETTABLE)}; numbers of the "
            f"method are set by {where}"
        )


def check_names(fields: Iterable[str]) -> None:
    """Raise TypeError, as Python does, for keywords that `patch` does not have."""
    try:
        check_fields(fields)
    except ValueError as error:
        raise TypeError(
            f"patch() takes query, impl, tokenizer and fields of a configuration: {error}"
        ) from None
