"""A picture of a closer look: the original with its crops, what was seen, and the crops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from PIL import Image

from vrga.closer.closer import Closer
from vrga.plots.pictures import OUTLINE, plain


def closer_figure(
    originals: Sequence[Image.Image],
    closer: Closer,
    *,
    title: str = "",
    answers: Mapping[str, str] | None = None,
) -> Figure:
    """The originals with the crops' boxes, the pictures as the model saw them, and the crops.

    Args:
        originals: in the order that they were asked about.
        closer: of `vrga.look_closer`.
        title: such as the question.
        answers: name -> text, written below.

    Raises:
        ValueError: another number of originals than there are pictures in the answer.
    """
    crops, seen = closer.crops, closer.pictures.shrunk()
    if len(originals) != len(seen):
        raise ValueError(f"{len(originals)} originals for an answer about {len(seen)} pictures")
    cut = [originals[crop.image].crop(crop.box).resize(crop.size) for crop in crops]
    panels = [(image, f"original, {image.width} x {image.height}") for image in originals]
    panels += [(image, f"as seen, {image.width} x {image.height}") for image in seen]
    panels += [(image, f"crop, {image.width} x {image.height}") for image in cut]
    lines = [f"{name}: {text}" for name, text in (answers or {}).items()]
    lines.append(
        ("looked closer: " if closer.zoomed else "not looked closer: ") + closer.decision.reason
    )
    figure = Figure(figsize=(2.9 * len(panels), 3.4 + 0.25 * len(lines)), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for number, (axis, (image, name)) in enumerate(zip(axes, panels, strict=True)):
        axis.imshow(image, interpolation="nearest", extent=(0, image.width, image.height, 0))
        axis.set(xticks=[], yticks=[])
        axis.set_title(name, fontsize=9)
        if number < len(originals):
            for crop in crops:
                if crop.image == number:
                    _outline(axis, crop.box)
    if title:
        figure.suptitle(plain(title), fontsize=11)
    figure.supxlabel(plain("\n".join(lines)), fontsize=9, x=0.01, ha="left")
    return figure


def _outline(axis, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    xs, ys = (left, right, right, left, left), (top, top, bottom, bottom, top)
    for color, width in OUTLINE:
        axis.plot(xs, ys, color=color, linewidth=width)
