"""Phase 1 in plain loops: from the attention of a question's last token to the region T."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vrga.config import VRGAConfig

Heads = set[tuple[int, int]]  # pairs (layer, head)


@dataclass(frozen=True)
class Picture:
    """The tokens of one image: their positions in the row, in raster order, h rows of w."""

    positions: list[int]
    h: int
    w: int


@dataclass(frozen=True)
class Look:
    """Where a question looks.

    Args:
        visual: H_v; focus: T before dilation, and region: T as steered, positions in the row.
        map: relevance of each image token; ratio: to the mean, NaN on the sink border.
        threshold: of `ratio`, above which a token is in T.
        head_focus, efr: R and EFR of every head, [L, H]; high, low: their limits for H_v.
    """

    visual: Heads
    focus: set[int]
    region: set[int]
    map: np.ndarray
    ratio: np.ndarray
    threshold: float
    head_focus: np.ndarray
    efr: np.ndarray
    high: float
    low: float


def look(
    attention: np.ndarray,
    seen: np.ndarray,
    pictures: list[Picture],
    config: VRGAConfig,
    visual: Heads | None = None,
) -> Look:
    """Phase 1: from the attention of the question's last token to the region T.

    Args:
        attention: [L, H, S] in float64, zero on keys that the question does not see.
        seen: keys that it sees in each layer, bool [L, S].
        visual: H_v, where it is known already.
    """
    layers, heads, _ = attention.shape
    image = [position for picture in pictures for position in picture.positions]
    head_focus, efr = np.zeros((layers, heads)), np.zeros((layers, heads))
    for layer in range(layers):
        visible = [position for position in image if seen[layer, position]]
        for head in range(heads):
            a = attention[layer, head]
            on_image = a[visible]
            entropy = 0.0
            if visible:
                head_focus[layer, head] = on_image.mean() / (a.sum() / seen[layer].sum())
                share = on_image / on_image.sum()
                entropy = -sum(x * np.log(x) for x in share if x > 0)
            efr[layer, head] = entropy / (head_focus[layer, head] + 1e-12)
    every_head = [(layer, head) for layer in range(layers) for head in range(heads)]
    low = float(np.percentile(efr, config.efr_percentile))
    high = float(np.percentile(head_focus, config.focus_percentile))
    if visual is None:
        focused = {at for at in every_head if head_focus[at] >= high}
        visual = {at for at in focused if efr[at] <= low} or focused
    first_layers = max(1, int(config.background_layers * layers)) if config.background_layers else 0
    background = {
        at for at in every_head if at[0] < first_layers and head_focus[at] < config.background_focus
    }
    looked, sinks = (_mean_map(attention, heads, image) for heads in (visual, background))
    relevance = np.maximum(looked - config.background_weight * sinks, 0)
    relevance = relevance / (relevance.sum() + 1e-12)

    bordered = config.sink_border == "always" or bool(background)
    border = _sink_border(pictures, config.sink_fraction) if bordered else set()
    kept = [i for i in range(len(image)) if i not in border]
    ratio = np.full(len(image), np.nan)
    ratio[kept] = relevance[kept] / (relevance[kept].mean() + 1e-12)
    spread = ratio[kept].std(ddof=1) if len(kept) > 1 else 0.0
    threshold = float(ratio[kept].mean() + config.region_std * spread)
    chosen = {i for i in kept if ratio[i] > threshold}
    if len(chosen) < config.region_min:
        ordered = sorted(kept, key=lambda i: -ratio[i])
        chosen = set(ordered[: config.region_min])
        threshold = float(ratio[ordered[len(chosen) - 1]])
    grown = _dilated(pictures, chosen, config.dilation) - border
    return Look(
        visual, {image[i] for i in chosen}, {image[i] for i in grown}, relevance, ratio, threshold,
        head_focus, efr, high, low,
    )  # fmt: skip


def _mean_map(attention: np.ndarray, heads: Heads, image: list[int]) -> np.ndarray:
    """Mean attention of some heads on each image token, normalised; zeros for no head."""
    total = np.zeros(len(image))
    for layer, head in heads:
        total += attention[layer, head][image] / len(heads)
    return total / (total.sum() + 1e-12)


def _sink_border(pictures: list[Picture], fraction: float) -> set[int]:
    """Image tokens where attention sinks sit: the corner, the first row, the first column."""
    border, first = set(), 0
    for picture in pictures:
        h, w = picture.h, picture.w
        order = [(0, 0), (0, 1), (1, 0), (1, 1)]
        order += [(0, c) for c in range(2, w)] + [(r, 0) for r in range(2, h)]
        inside = [first + r * w + c for r, c in order if r < h and c < w]
        border |= set(inside[: int(fraction * h * w)])
        first += h * w
    return border


def _dilated(pictures: list[Picture], chosen: set[int], steps: int) -> set[int]:
    """Image tokens at most `steps` rows and columns from a chosen one of the same image."""
    # (image, row, column) of every image token, in order.
    cells = [(n, r, c) for n, p in enumerate(pictures) for r in range(p.h) for c in range(p.w)]
    grown = set()
    for i, (image, r, c) in enumerate(cells):
        for j in chosen:
            other, y, x = cells[j]
            if image == other and abs(r - y) <= steps and abs(c - x) <= steps:
                grown.add(i)
    return grown
