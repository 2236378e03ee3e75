"""Where the heads looked while one answer was spoken, in a few figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vrga.config import VRGAConfig
from vrga.method.heads import visual_heads
from vrga.method.region import Region
from vrga.recording.trace import Trace

PUBLISHED = VRGAConfig.published()


@dataclass(frozen=True)
class Looks:
    """Figures of one answer, means over its tokens; NaN where there is nothing to average.

    Args:
        rrar: relevant-region attention ratio: attention on the true box / on the image, mean over
            the visual heads (paper, section on RRAR); NaN without a box. They are chosen by the
            published percentiles whatever the config, so that arms are compared on equal heads.
        image: attention on the image, mean over all heads.
        image_inside, image_outside: the same over tokens inside and outside <back> spans; NaN
            where there are none.
        hit: the box meets the region T; peak: the relevance map is highest in the box; None
            without a box.
        coverage: share of the image's tokens that are in T.
    """

    rrar: float
    image: float
    image_inside: float
    image_outside: float
    hit: bool | None
    peak: bool | None
    coverage: float


def looks_of(
    trace: Trace, row: int, steps: int, region: Region, truth: list[Tensor] | None
) -> Looks:
    """The figures of one row of a trace.

    Args:
        steps: tokens of the answer that the trace holds for this row.
        truth: cells of the box on each image's grid, bool [h, w], or None.
    """
    image = trace.filled().image[:steps, :, row]  # [T, L, H]
    image_inside = image_outside = math.nan
    if trace.inside is not None:
        inside = trace.inside[:steps, row].bool()
        image_inside, image_outside = _mean(image[inside]), _mean(image[~inside])
    rrar, hit, peak = math.nan, None, None
    if truth is not None and any(bool(cells.any()) for cells in truth):
        assert trace.watched is not None  # the box's cells
        share = trace.watched[:steps, :, row] / image.clamp_min(1e-12)
        rrar = _mean(share[:, visual_heads(region.heads, PUBLISHED)])
        cells = torch.cat([cells.flatten() for cells in truth])
        masks = torch.cat([region.mask[grid.index] for grid in region.grids])
        hit = bool((cells & masks).any())
        peak = bool(cells[torch.cat([m.flatten() for m in region.map]).argmax()])
    tokens = torch.cat([grid.index for grid in region.grids])
    return Looks(
        rrar=rrar,
        image=_mean(image),
        image_inside=image_inside,
        image_outside=image_outside,
        hit=hit,
        peak=peak,
        coverage=float(region.mask[tokens].float().mean()),
    )


def cells_in(
    box: tuple[float, float, float, float], size: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """The cells of an image's token grid that a box meets, bool [h, w].

    Args:
        box: left, top, right, bottom (exclusive) in pixels.
        size: width and height of the image in pixels.
        grid: (h, w).

    Raises:
        ValueError: a box that is empty or outside its image.
    """
    (left, top, right, bottom), (width, height) = box, size
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f"box {box} is not inside an image of {width} x {height} pixels")
    rows, columns = grid
    y, x = torch.arange(rows), torch.arange(columns)
    down = (y + 1) * height / rows > top
    down &= y * height / rows < bottom
    across = (x + 1) * width / columns > left
    across &= x * width / columns < right
    return down[:, None] & across


def _mean(values: Tensor) -> float:
    return float(values.float().mean()) if values.numel() else math.nan
