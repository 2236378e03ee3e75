"""Phase 1 as the authors' released code computes it, for reproducing published figures.

The "image" here is a slice of the row that starts at the vision-start token, so that it is off
by one against the token grid; `VRGAConfig.released()` keeps this and every other such point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vrga.method.attention_rows import Sample
from vrga.method.heads import (
    EPS,
    HeadStatistics,
    ImageSums,
    difference_map,
    normalised,
    visual_heads,
)
from vrga.method.region import Heads, ImageKeys, Region, Rules, sink_order

if TYPE_CHECKING:
    from vrga.config import VRGAConfig


BACKGROUND_HEADS = 63  # H_b is sought among this many heads, in layer-major order
MASK_FOCUS_ENTROPY = 0.3  # released_mask, phase 1: R > 0.3 * H_mass
MASK_STANDS_OUT = 2.0  # released_mask, phase 1: T = {map > 2 * mean(map)}


def _image(sample: Sample, config: VRGAConfig) -> ImageKeys:
    """From the vision-start token to the image's last."""
    grids = sample.grids
    if len(grids) != 1 or grids[0].index[0] == 0:
        raise ValueError(
            f"method={config.method!r} knows one image per row, after a vision-start token; the "
            f"row has {len(grids)} images: use VRGAConfig(), the paper's"
        )
    index = grids[0].index
    span = torch.arange(int(index[0]) - 1, int(index[-1]) + 1, device="cpu")
    return ImageKeys(span, len(span))


def _choose(stats: HeadStatistics, sums: ImageSums, config: VRGAConfig) -> tuple[Tensor, Tensor]:
    visual = background = torch.zeros_like(stats.focus, dtype=torch.bool)
    if config.method == "released":
        visual = visual_heads(stats, config)
        background = stats.focus < config.background_focus
        background.view(-1)[BACKGROUND_HEADS:] = False
    elif config.method == "released_mask":
        visual = (stats.focus > config.gate_focus) & (
            stats.focus > MASK_FOCUS_ENTROPY * sums.mass_entropy
        )
    return visual, background


def _region(
    sample: Sample, keys: ImageKeys, heads: Heads, means: Sequence[Tensor], config: VRGAConfig
) -> Region:
    grid, span = sample.grids[0], keys.index
    looked, sinks = means
    if config.method == "released":
        relevance = difference_map(looked, sinks, config.background_weight)
        local = _threshold(relevance, grid.w, config)
    elif config.method == "released_mask":
        relevance = normalised(looked)
        local = (relevance > MASK_STANDS_OUT * relevance.mean()).nonzero().flatten()
    else:
        relevance, local = torch.zeros_like(looked), span[:0]

    shown = relevance[1:]
    mask, image = torch.zeros(2, sample.seen.shape[1], dtype=torch.bool, device="cpu")
    image[span] = True
    mask[span[_dilate(local, len(span), config.dilation)]] = True
    return Region(
        query=sample.query,
        focus=span[local],
        mask=mask,
        image=image,
        # Without the vision-start token, which is on no grid.
        map=[(shown / (shown.sum() + EPS)).view(grid.h, grid.w)],
        grids=sample.grids,
        visual=heads.visual,
        background=heads.background,
        heads=heads.statistics,
    )


RELEASED = Rules(_image, _choose, _region)


def _threshold(relevance: Tensor, width: int, config: VRGAConfig) -> Tensor:
    """Local indices of T; the threshold is that of the border's mirror images."""
    count = len(relevance)
    border = sink_order(count // width, width)[: int(config.sink_fraction * count)]
    kept = torch.ones(count, dtype=torch.bool, device="cpu")
    kept[border] = False
    ratio = relevance / (relevance[kept].sum() / (count - len(border)) + EPS)
    ratio[border] = -1e9
    mirror = ratio[count - 1 - torch.tensor(border, dtype=torch.int64, device="cpu")]
    above = ratio > mirror.mean() + config.region_std * mirror.std()
    if above.sum() < config.region_min:
        return ratio.topk(min(config.region_min, count)).indices  # in the released code's order
    return above.nonzero().flatten()


def _dilate(local: Tensor, count: int, steps: int) -> Tensor:
    """T grown by `steps` in one dimension; its first three indices count for nothing."""
    grown = local[local >= 3, None] + torch.arange(-steps, steps + 1, device="cpu")
    return grown.clamp(0, count - 1).unique()
