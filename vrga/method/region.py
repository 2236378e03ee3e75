"""From a relevance map over the image tokens to the region T that is steered to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from vrga.method.attention_rows import AttentionRows, Sample, WholeRows
from vrga.method.heads import (
    EPS,
    HeadStatistics,
    ImageSums,
    background_heads,
    difference_map,
    statistics_of,
    visual_heads,
)
from vrga.method.prompt import Grid
from vrga.ranges import short

if TYPE_CHECKING:
    from vrga.config import VRGAConfig


@dataclass(frozen=True)
class Region:
    """Where one row's question looks, all on the CPU; empty for a row without an image.

    Args:
        query: position of the last question token in the padded row.
        focus: positions of T before dilation, ascending, int64.
        mask: T as steered, bool [S]; empty where the map is not clear enough (``abstain``).
        image: I, the tokens counted as image, bool [S].
        map: relevance, float [h, w] for each image (or video frame); sums to 1 over the row.
        grids: the token grid of each image.
        visual: H_v, bool [L, H].
        background: H_b, bool [L, H].
        heads: R, H_img and EFR of every head, [L, H] each; NaN without an image.
        question: the text that was taken for the question; None where no tokenizer is known.
    """

    query: int
    focus: Tensor
    mask: Tensor
    image: Tensor
    map: list[Tensor]
    grids: list[Grid]
    visual: Tensor
    background: Tensor
    heads: HeadStatistics
    question: str | None = None

    @property
    def certainty(self) -> float:
        """The map's highest share: near 1 where it is all on one token; 0 without an image.

        Of the scores that were tried it tells right maps from wrong ones best; see
        docs/look-closer.md, "Finding".
        """
        return max((float(part.max()) for part in self.map), default=0.0)

    def __repr__(self) -> str:
        chosen, tokens = int(self.mask.sum()), int(self.image.sum())
        grids = ", ".join(f"{grid.h} x {grid.w}" for grid in self.grids) or "no image"
        asked = "" if self.question is None else f", question {short(self.question)}"
        return (
            f"Region({grids}; T {chosen} of {tokens} tokens, {int(self.visual.sum())} of "
            f"{self.visual.numel()} heads, query at {self.query}{asked})"
        )


def empty_region(query: int, length: int, shape: tuple[int, int]) -> Region:
    """The region of a row of `length` tokens without an image, in a model of [L, H] heads."""
    nowhere, nothing = torch.zeros(length, dtype=torch.bool), torch.full(shape, float("nan"))
    none = torch.zeros(shape, dtype=torch.bool)
    index = torch.zeros(0, dtype=torch.int64)
    heads = HeadStatistics(nothing, nothing, nothing)
    return Region(query, index, nowhere, nowhere, [], [], none, none, heads)


@dataclass(frozen=True)
class ImageKeys:
    """Which keys count as image.

    Args:
        index: their positions, int64 [n].
        images: how many of them the query row sees in each layer; one number, [L], or [L, Q] of
            the rows of a whole question.
    """

    index: Tensor
    images: int | Tensor


@dataclass(frozen=True)
class Heads:
    """The heads of one row: what they do, and which were chosen, [L, H] each."""

    statistics: HeadStatistics
    visual: Tensor
    background: Tensor


@dataclass(frozen=True)
class Rules:
    """Phase 1 in three steps, between which attention is asked about.

    Args:
        image: which keys count as image.
        choose: H_v and H_b from what every head adds up to.
        region: the region, from the mean attention of H_v and of H_b on the image, float [n].
    """

    image: Callable[[Sample, VRGAConfig], ImageKeys]
    choose: Callable[[HeadStatistics, ImageSums, VRGAConfig], tuple[Tensor, Tensor]]
    region: Callable[[Sample, ImageKeys, Heads, Sequence[Tensor], VRGAConfig], Region]


def find_regions(
    rows: AttentionRows, samples: Sequence[Sample], config: VRGAConfig, rules: Rules
) -> list[Region]:
    """Phase 1 of the method, for some samples at once: steps 1 to 7, of which 1 is the same for
    all rules.

    Args:
        rows: attention from the samples' query rows.
    """
    images = [rules.image(sample, config) for sample in samples]
    places = [image.index for image in images]
    heads, asked = [], []
    for sample, image, sums in zip(samples, images, rows.sums(places), strict=True):
        stats = statistics_of(sums, sample.seen.sum(-1), image.images)
        row = None  # of a whole question, the one that each head is taken at, bool [L, H, Q]
        if stats.focus.ndim == 3:
            most = stats.focus.argmax(-1, keepdim=True)
            row = torch.zeros_like(stats.focus, dtype=torch.bool).scatter(-1, most, True)
            stats, sums = stats.at(most), sums.at(most)
        own = Heads(stats, *rules.choose(stats, sums, config))
        sets = own.visual, own.background
        asked.append(sets if row is None else [chosen[..., None] & row for chosen in sets])
        heads.append(own)
    means = rows.means(asked, places)
    found = zip(samples, images, heads, means, strict=True)
    return [_clear(rules.region(*one, config), config) for one in found]


def _clear(region: Region, config: VRGAConfig) -> Region:
    """The region, without T where its map is not clear enough to steer by."""
    if region.certainty < config.abstain:
        return replace(region, mask=torch.zeros_like(region.mask))
    return region


def find_region(
    rows: Tensor,
    grids: list[Grid],
    query: int,
    seen: Tensor,
    config: VRGAConfig,
    rules: Rules | None = None,
) -> Region:
    """Phase 1 for one row, whose attention is there in full.

    Args:
        rows: attention from the query row, float32 [L, H, S], on any device; with
            ``question="whole"`` from all rows of the question, [L, H, Q, S].
        grids, query, seen: see `Sample`.
        rules: None is `PAPER`.
    """
    sample = Sample(grids, query, seen)
    return find_regions(WholeRows([rows]), [sample], config, rules or PAPER)[0]


def _image(sample: Sample, config: VRGAConfig) -> ImageKeys:
    """I, and how much of it each layer sees."""
    index = torch.cat([grid.index for grid in sample.grids])  # I, in raster order image by image
    return ImageKeys(index, sample.seen[..., index].sum(-1))


def _choose(stats: HeadStatistics, sums: ImageSums, config: VRGAConfig) -> tuple[Tensor, Tensor]:
    """Steps 2 and 3."""
    return visual_heads(stats, config), background_heads(stats, config)


def _region(
    sample: Sample, keys: ImageKeys, heads: Heads, means: Sequence[Tensor], config: VRGAConfig
) -> Region:
    """Steps 4 to 7."""
    grids, index = sample.grids, keys.index
    of_visual, of_background = means
    relevance = difference_map(of_visual, of_background, config.background_weight)
    # Background heads show where attention sinks sit; without any there may be none.
    sinks = config.sink_border == "always" or bool(heads.background.any())
    share = config.sink_fraction if sinks else 0.0
    border = torch.cat([sink_border(grid.h, grid.w, share) for grid in grids])
    focus = above_threshold(relevance, ~border, config)
    counts = [grid.h * grid.w for grid in grids]
    grown = [
        dilate(part.view(grid.h, grid.w), config.dilation).flatten()
        for part, grid in zip(focus.split(counts), grids, strict=True)
    ]
    mask, image = torch.zeros(2, sample.seen.shape[-1], dtype=torch.bool, device="cpu")
    mask[index] = torch.cat(grown) & ~border
    image[index] = True
    return Region(
        query=sample.query,
        focus=index[focus].sort().values,
        mask=mask,
        image=image,
        map=[
            part.view(grid.h, grid.w)
            for part, grid in zip(relevance.split(counts), grids, strict=True)
        ],
        grids=grids,
        visual=heads.visual,
        background=heads.background,
        heads=heads.statistics,
    )


PAPER = Rules(_image, _choose, _region)


def sink_border(h: int, w: int, fraction: float) -> Tensor:
    """Step 5: the cells of an h x w grid where attention sinks sit, bool [h * w].

    The first floor(fraction * h * w) cells of `sink_order`.
    """
    border = torch.zeros(h * w, dtype=torch.bool, device="cpu")
    border[sink_order(h, w)[: int(fraction * h * w)]] = True
    return border


def sink_order(h: int, w: int) -> list[int]:
    """Raster indices of the 2 x 2 corner, the rest of the first row, and of the first column."""
    corner = [r * w + c for r in range(min(2, h)) for c in range(min(2, w))]
    return corner + list(range(2, w)) + [r * w for r in range(2, h)]


def above_threshold(relevance: Tensor, kept: Tensor, config: VRGAConfig) -> Tensor:
    """Step 6: T before dilation, bool [n], kept tokens whose relevance stands out.

    ratio = map / mean(map); T = {ratio > mean(ratio) + 0.6 std(ratio)}, means and std over kept
    tokens; fewer than 10: the 10 highest.

    Args:
        relevance: float [n]; kept: bool [n], False on the sink border.
    """
    ratio = relevance / (relevance[kept].mean() + EPS)
    spread = ratio[kept].std() if kept.sum() > 1 else 0.0
    chosen = kept & (ratio > ratio[kept].mean() + config.region_std * spread)
    if chosen.sum() < config.region_min:
        candidates = torch.where(kept, ratio, -torch.inf)
        chosen = torch.zeros_like(kept)
        # Stable: of equal ones the first in raster order, on any device.
        order = candidates.sort(descending=True, stable=True).indices
        chosen[order[: min(config.region_min, int(kept.sum()))]] = True
    return chosen


def dilate(cells: Tensor, steps: int) -> Tensor:
    """Step 7: T grown by `steps` cells in both dimensions (8-neighbourhood); bool [h, w]."""
    if not steps:
        return cells
    return max_pool2d(cells[None].float(), 2 * steps + 1, stride=1, padding=steps)[0] > 0
