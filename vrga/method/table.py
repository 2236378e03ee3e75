"""The methods by their names: how each finds, at the question, what is steered to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from vrga.method.region import PAPER, Rules
from vrga.method.released import RELEASED
from vrga.ranges import RANGES, READ_BY, REPRODUCED

if TYPE_CHECKING:
    from vrga.config import VRGAConfig

METHODS: dict[str, Rules] = {"vrga": PAPER} | dict.fromkeys(REPRODUCED, RELEASED)


def add_method(name: str, rules: Rules, reads: Iterable[str] = ("gain",)) -> None:
    """Make `VRGAConfig(method=name)` find its heads and region by rules of one's own.

    At every step the attention of the heads `Region.visual` to the keys `Region.mask` is then
    multiplied by the gain, as with the paper's static gate.

    Args:
        name: of no method so far.
        reads: fields of `VRGAConfig` that the rules or the steps read; others must keep their
            defaults. "gate" among them allows the dynamic gate, "when" and "relocate" <back> spans
            and, with "uncertainty", uncertain tokens.

    Raises:
        ValueError: the name is taken or empty, or a field is none of `VRGAConfig`'s.
    """
    if not isinstance(name, str) or not name or name in READ_BY:
        raise ValueError(f"method {name!r} is there already or no name; known: {sorted(READ_BY)}")
    fields = set(RANGES) | READ_BY["vrga"]
    unknown = sorted(set(reads) - fields)
    if unknown:
        raise ValueError(f"reads {unknown}, which are no fields of VRGAConfig: {sorted(fields)}")
    METHODS[name], READ_BY[name] = rules, {"gain", *reads}


def rules_of(config: VRGAConfig) -> Rules:
    """How a config's method finds its region; heads that are given need none of the released."""
    return PAPER if config.ablate == "given" else METHODS[config.method]
