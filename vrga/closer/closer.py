"""Closer: an answer that may have taken a closer look, why, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

from PIL import Image

from vrga.closer.crops import Box, Crop, Decision
from vrga.closer.zoom import Zoom
from vrga.method.region import Region
from vrga.recording.trace import Trace


@dataclass(frozen=True)
class Cost:
    """What an answer took.

    Args:
        seen: visual tokens at the first look; crops: of the crops, 0 without.
        prompt: tokens of the first prompt; second: of the second one that were computed, 0 without.
        reused: tokens of the second prompt that the first look's cache held.
        answer: tokens generated, the first look's one included.
        first, total: seconds until the decision, and in all.
    """

    seen: int
    crops: int
    prompt: int
    second: int
    reused: int
    answer: int
    first: float
    total: float


@dataclass(frozen=True)
class Pictures:
    """Originals, and how a model sees them.

    Args:
        originals: RGB, in the order that they are asked about.
        seen: (width, height) in pixels of each as the model sees it.
        resample: how the processor shrinks them, of `PIL.Image.Resampling`.
    """

    originals: Sequence[Image.Image] = field(repr=False)
    seen: Sequence[tuple[int, int]]
    resample: int

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of each original in pixels."""
        return [image.size for image in self.originals]

    @property
    def shows_all(self) -> bool:
        """Whether the model sees every pixel of the originals, so that there is nothing to gain."""
        return all(
            width * height >= size[0] * size[1]
            for (width, height), size in zip(self.seen, self.sizes, strict=True)
        )

    def shrunk(self) -> list[Image.Image]:
        """The pictures as the model sees them."""
        return [
            as_shown(image, size, self.resample)
            for image, size in zip(self.originals, self.seen, strict=True)
        ]

    def cropped(self, crops: Sequence[Crop]) -> list[Image.Image]:
        """Crops of the originals, in the size that they are shown in."""
        return [
            as_shown(self.originals[crop.image].crop(crop.box), crop.size, self.resample)
            for crop in crops
        ]


def as_shown(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
    """An image of this size in pixels."""
    if image.size == tuple(size):
        return image
    return image.resize(size, Image.Resampling(resample))


@dataclass(frozen=True)
class Look:
    """One <back> of an answer, with ``Zoom(when="back")``.

    Args:
        at: tokens of the answer up to the <back>, that included; text: these.
        region: what is looked at closer, or would have been.
        decision: whether, why, and the crops.
    """

    at: int
    text: str
    region: Region
    decision: Decision


@dataclass(frozen=True)
class Closer:
    """An answer, and the closer look that it took, or why it took none.

    Args:
        text: the answer.
        decision: whether there was a closer look, why, and the crops.
        region: what the question looks at in the pictures.
        second: what it looks at in pictures and crops; None without a closer look, and with
            ``steer="off"`` where it is not recorded.
        pictures: what it was asked about.
        cost: in tokens and seconds.
        zoom: how it was decided.
        trace: with ``record=True``, of the answer, or of what follows its last look; its images
            are `images`.
        looks: with ``Zoom(when="back")``, each <back>; `decision` is of all of them together.
    """

    text: str
    decision: Decision
    region: Region
    second: Region | None
    pictures: Pictures
    cost: Cost
    zoom: Zoom
    trace: Trace | None = None
    looks: tuple[Look, ...] = ()

    @property
    def zoomed(self) -> bool:
        """Whether there was a closer look."""
        return self.decision.zooms

    @property
    def crops(self) -> tuple[Crop, ...]:
        """What was looked at; empty without a closer look."""
        return self.decision.crops if self.zoomed else ()

    @property
    def boxes(self) -> list[Box]:
        """The crops' boxes in pixels of their originals."""
        return [crop.box for crop in self.crops]

    @cached_property  # shrinking a photograph takes longer than a small model's look at it
    def images(self) -> list[Image.Image]:
        """The pictures as the model saw them, and the crops, in the order of the prompt."""
        crops = self.pictures.cropped(self.crops)
        return prompt_images(self.pictures.shrunk(), crops, self.zoom)

    def numbers(self) -> dict[str, object]:
        """Decision, crops, cost and zoom as plain numbers and words, for a file."""
        pairs = zip(self.pictures.sizes, self.pictures.seen, strict=True)
        looks = [
            {"at": look.at, "text": look.text, "decision": asdict(look.decision)}
            for look in self.looks
        ]
        return {
            "text": self.text,
            "decision": asdict(self.decision),
            "pictures": [{"size": list(size), "seen": list(seen)} for size, seen in pairs],
            "cost": asdict(self.cost),
            "zoom": self.zoom.settings(),
            "looks": looks,
        }


def prompt_images(seen: list, crops: list, zoom: Zoom) -> list:
    """Pictures and crops in the order of the second prompt."""
    return crops + seen if zoom.order == "crops" else seen + crops
