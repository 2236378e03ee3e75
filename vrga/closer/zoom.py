"""Zoom: when a closer look is taken, at how much of a picture, and what is steered to then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

Within = Literal["region", "map"]
Steer = Literal["place", "anew", "off"]
Order = Literal["overview", "crops"]
When = Literal["question", "back"]

# Inclusive bounds of each numeric field; None is unbounded.
RANGES: dict[str, tuple[float, float | None]] = {
    "crops": (1, None),
    "threshold": (0.0, 1.0),
    "margin": (0.0, None),
    "least": (1, None),
    "aspect": (1.0, None),
    "pixels": (1, None),
    "enlarge": (1.0, None),
    "share": (0.0, 1.0),
    "gain": (1.0, None),
    "overview_pixels": (1, None),
    "looks": (1, None),
}
INTEGERS = {"crops", "least", "pixels", "overview_pixels", "looks"}
CHOICES = {
    "within": get_args(Within),
    "steer": get_args(Steer),
    "order": get_args(Order),
    "when": get_args(When),
    "seek": get_args(When),
}


@dataclass(frozen=True)
class Zoom:
    """When to look closer, at how much, and what to steer to then.

    Args:
        crops: most crops of a look.
        threshold: a spot holds cells whose relevance is at least this share of the map's highest.
            Unlike a threshold in standard deviations it means the same on a grid of 36 cells and
            on one of 1,000.
        within: ``"region"`` seeks spots in the region T, which leaves the sink border out;
            ``"map"`` in the whole map.
        margin: by what share of its own sides a spot is enlarged, on each side.
        least: smallest side of a crop, in pixels of the original.
        aspect: longest side of a crop over its shortest, at most: the shortest grows. A crop is
            never distorted.
        pixels: of a look's crops together, as the model sees them; beyond it they are shrunk.
        enlarge: largest factor by which crops are enlarged, where `pixels` allows it.
        share: crops that would cover more of their pictures than this are not looked at.
        gain: nor those that would show the place less than this many times larger, in length.
        overview_pixels: of a picture at the first look; None is what the processor allows.
        steer: with the crops in the prompt, ``"place"`` steers to the region in the overview and to
            all of each crop; ``"anew"`` to what the question finds in both; ``"off"`` to nothing,
            so that the second look takes no longer than the unpatched model would.
        order: ``"overview"`` puts the pictures before the crops, so that the first look's cache is
            a beginning of the second's; ``"crops"`` puts the crops first.
        reuse: go on from the first look's cache; needs ``order="overview"``.
        when: ``"question"`` looks closer before the answer, where the question looks; ``"back"``
            amid it, at each <back> that the model writes (`VRGAConfig.tag`).
        seek: with ``when="back"``, whose place that is: of the ``"back"`` itself, found anew each
            time, or of the ``"question"``.
        looks: with ``when="back"``, most looks of an answer.

    Raises:
        ValueError: a value out of range; the message names field, value and range.
    """

    crops: int = 2
    threshold: float = 0.35
    within: Within = "region"
    margin: float = 0.25
    least: int = 112
    aspect: float = 3.0
    pixels: int = 512 * 28 * 28
    enlarge: float = 1.0
    share: float = 0.5
    gain: float = 1.5
    overview_pixels: int | None = None
    steer: Steer = "place"
    order: Order = "overview"
    reuse: bool = True
    when: When = "question"
    seek: When = "back"
    looks: int = 4

    def __post_init__(self):
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in choices:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is None and name == "overview_pixels":
                continue
            kind = int if name in INTEGERS else (int, float)
            if isinstance(value, bool) or not isinstance(value, kind):
                wanted = "an integer" if name in INTEGERS else "a number"
                raise ValueError(f"{name}={value!r} is not {wanted}")
            # Written so that NaN and infinity fail as well.
            if not (value >= low and (high is None or value <= high) and value < math.inf):
                bounds = f"[{low}, {'inf' if high is None else high}]"
                raise ValueError(f"{name}={value!r} is out of range: finite, in {bounds}")
        if not isinstance(self.reuse, bool):
            raise ValueError(f"reuse={self.reuse!r} is not one of True, False")
        if self.reuse and self.order == "crops":
            raise ValueError(
                "reuse=True needs order='overview', whose prompt begins as the first look's does: "
                "with order='crops' set reuse=False"
            )

        if self.when == "question" and (self.seek, self.looks) != ("back", 4):
            raise ValueError(
                f"seek={self.seek!r} and looks={self.looks} are read with when='back' alone: set "
                "it, or leave them out"
            )
        if self.when == "back" and self.order == "crops":
            raise ValueError(
                "when='back' needs order='overview': each look's crops stand behind those before"
            )
        if self.when == "back" and self.steer == "off":
            raise ValueError(
                "when='back' needs steer='place' or 'anew': the next <back> finds its place in the "
                "steps that are steered"
            )

    def settings(self) -> dict[str, object]:
        """All fields by name, for a file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def zoom_with(zoom: Zoom, given: Sequence[str]) -> Zoom:
    """A zoom with some fields replaced, each given as "field=value".

    Raises:
        ValueError: another form, an unknown field, or a value that is none of the field's.
    """
    kinds = {field.name: field.default for field in fields(Zoom)}
    changed: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in kinds:
            raise ValueError(f"zoom {text!r}: give field=value, of {', '.join(kinds)}")
        if name in changed:
            raise ValueError(f"zoom {text!r}: {name} is given twice")
        changed[name] = _read(name, value)
    return replace(zoom, **changed)


def _read(name: str, value: str) -> object:
    """A field's value from its text; what is none is left as text, for Zoom to refuse."""
    if name in CHOICES:
        return value
    if name == "reuse":
        return {"true": True, "false": False}.get(value.lower(), value)
    if name == "overview_pixels" and value.lower() == "none":
        return None
    try:
        return int(value) if name in INTEGERS else float(value)
    except ValueError:
        return value
