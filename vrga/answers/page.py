"""An answer as HTML: images under the map of the question, and both answers beside them."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vrga.heat import heat_colors, outline
from vrga.images import data_uri
from vrga.method.prompt import Grid
from vrga.method.region import Region
from vrga.text_diff import marked_words

if TYPE_CHECKING:
    from vrga.answers.answer import Answer

LONGEST_SIDE = 640  # pixels of an image


def drawn(answer: Answer) -> str:
    """The HTML of an answer, in one piece, without scripts."""
    region = answer.region
    images: list[Image.Image | None] = list(answer.images)
    if len(images) != len(region.grids):
        images = [None] * len(region.grids)  # cut into tiles, whose places are the model's
    pictures = "".join(picture(image, region, index) for index, image in enumerate(images))
    texts = {"with VRGA": escape(answer.text)}
    if answer.base is not None:
        base, steered = marked_words(answer.base, answer.text)
        texts = {"without VRGA": base, "with VRGA": steered}
    rows = "".join(
        f"<dt style='opacity:.7'>{name}</dt><dd style='margin:0 0 .7em;white-space:pre-wrap'>"
        f"{text}</dd>"
        for name, text in texts.items()
    )
    told = f"{answer.config.name}; {int(region.mask.sum())} of {int(region.image.sum())} image "
    told += f"tokens outlined; {answer.steps}"
    return (
        "<div style='display:flex;flex-wrap:wrap;gap:1em;font-family:sans-serif'>"
        f"<div>{pictures}</div><div style='flex:1 1 18em;max-width:44em'>"
        f"<b>{escape(answer.question)}</b><dl>{rows}</dl>"
        f"<small style='opacity:.7'>{escape(told)}</small></div></div>"
    )


def picture(image: Image.Image | None, region: Region, index: int) -> str:
    """One image with the relevance map over it and the region outlined, as SVG."""
    grid = region.grids[index]
    width, height = (grid.w * 28, grid.h * 28) if image is None else image.size
    scale = min(1.0, LONGEST_SIDE / max(width, height)) if image is not None else 1.0
    width, height = max(round(width * scale), 1), max(round(height * scale), 1)
    top = max(float(heat.max()) for heat in region.map)  # all images share one scale
    heat = region.map[index].float().numpy() / max(top, 1e-12)
    shade = np.rint(255 * heat_colors(heat)).astype(np.uint8)
    own = ""
    if image is not None:
        small = image if scale == 1 else image.resize((width, height))
        own = _image(small, width, height)
    drawn = "".join(
        f"<path d='{edges(region, grid)}' fill='none' stroke='{color}' stroke-width='{wide}' "
        "vector-effect='non-scaling-stroke'/>"
        for color, wide in (("white", 4), ("black", 1.5))
    )
    return (
        f"<svg viewBox='0 0 {width} {height}' width='{max(width, 320)}' "
        "style='max-width:100%;height:auto;background:white;margin:0 4px 4px 0' role='img' "
        "aria-label='the image, bright where the question looks, its region outlined'>"
        f"{own}{_image(Image.fromarray(shade), width, height, pixelated=True)}"
        f"<g transform='scale({width / grid.w:.5f} {height / grid.h:.5f})'>{drawn}</g></svg>"
    )


def edges(region: Region, grid: Grid) -> str:
    """The outline of T on a grid, as the path of an SVG in cells."""
    lines = outline(region.mask[grid.index].view(grid.h, grid.w).numpy())
    return "".join(f"M{x} {y}{'h' if y == y_end else 'v'}1" for (x, y), (_, y_end) in lines)


def _image(image: Image.Image, width: int, height: int, *, pixelated: bool = False) -> str:
    style = " style='image-rendering:pixelated'" if pixelated else ""
    return (
        f"<image href='{data_uri(image)}' width='{width}' height='{height}' "
        f"preserveAspectRatio='none'{style}/>"
    )
