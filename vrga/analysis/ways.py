"""Ways of making a map of a question's rows, compared by `vrga analyze finding`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vrga.analysis.asked_rows import AskedRows
from vrga.config import VRGAConfig
from vrga.method.heads import head_statistics, normalised, visual_heads
from vrga.method.region import Region, above_threshold, find_region

LAST, NAMED, WHOLE = "last token of the turn", "last token of the question, named", "whole turn"
NAMED_WHOLE = "words of the question, named"
BORDER, OPEN = "named, released border", "named, no border"
MEAN, FOCUSED, SHARP = "mean of the words", "words by R", "words by exp(-2 entropy)"
HIGHEST, PRODUCT, COMPETE = "highest of the words", "product of the words", "heads of all words"
LAYERS, LAYERS_ALL = "named, product of layers", "named, least of layers"
# In the order of tables; the first four, and the borders, are fields of a configuration.
NAMES = (LAST, NAMED, WHOLE, NAMED_WHOLE, MEAN, FOCUSED, SHARP, HIGHEST, PRODUCT, COMPETE, LAYERS,
         LAYERS_ALL, BORDER, OPEN)  # fmt: skip
LEAST = 1e-6  # share of a cell in a product, so that one row or layer alone forbids nothing


@dataclass(frozen=True)
class Found:
    """A map, and the T that it gives.

    Args:
        map: float [n], sums to 1; chosen: T, bool [n].
    """

    map: Tensor
    chosen: Tensor

    @classmethod
    def of(cls, region: Region) -> Found:
        """What the library finds."""
        index = torch.cat([grid.index for grid in region.grids])
        return cls(torch.cat([part.flatten() for part in region.map]), region.mask[index])

    @classmethod
    def made(cls, relevance: Tensor, config: VRGAConfig) -> Found:
        """What another map would give, without a border and dilation."""
        relevance = normalised(relevance)
        everywhere = torch.ones_like(relevance, dtype=torch.bool)
        return cls(relevance, above_threshold(relevance, everywhere, config))


def region_at(asked: AskedRows, row: int, config: VRGAConfig) -> Region:
    """The region of one row's own."""
    return find_region(asked.rows[:, :, row], asked.grids, 0, asked.seen[:, row], config)


def region_of(asked: AskedRows, end: int, config: VRGAConfig) -> Region:
    """The region of all rows up to `end`, as with ``question="whole"``."""
    own = slice(0, end + 1)
    return find_region(asked.rows[:, :, own], asked.grids, 0, asked.seen[:, own], config)


def ways(asked: AskedRows, config: VRGAConfig) -> dict[str, Found]:
    """What each way finds; the words are the turn's."""
    last, named = asked.rows.shape[2] - 1, asked.named
    library = {
        LAST: region_at(asked, last, config),
        NAMED: region_at(asked, named, config),
        WHOLE: region_of(asked, last, config),
        NAMED_WHOLE: region_of(asked, named, config),
        BORDER: region_at(asked, named, replace(config, sink_border="always", sink_fraction=0.2)),
        OPEN: region_at(asked, named, replace(config, sink_fraction=0.0)),
    }
    found = {name: Found.of(region) for name, region in library.items()}
    made = _of_words(asked, config) | _of_layers(asked, library[NAMED].visual)
    return found | {name: Found.made(relevance, config) for name, relevance in made.items()}


def _of_words(asked: AskedRows, config: VRGAConfig) -> dict[str, Tensor]:
    """Maps of all words' own maps, or of all words' heads together."""
    regions = [region_at(asked, row, config) for row in range(asked.rows.shape[2])]
    maps = torch.stack([region.map[0].flatten() for region in regions])  # [Q, n]
    focus = torch.stack([region.heads.focus[region.visual].mean() for region in regions])
    entropy = -torch.xlogy(maps, maps).sum(1)

    def weighted(weight: Tensor) -> Tensor:
        return (weight[:, None] * maps).sum(0)

    every = head_statistics(
        asked.rows.transpose(1, 2).flatten(0, 1), asked.grids[0].index,
        asked.seen.sum(-1).flatten(),
    )  # of [L * Q, H]  # fmt: skip
    chosen = visual_heads(every, config).view(len(asked.rows), -1, asked.rows.shape[1])
    on_image = asked.rows[..., asked.grids[0].index].transpose(1, 2)  # [L, Q, H, n]
    return {
        MEAN: maps.mean(0),
        FOCUSED: weighted(focus),
        SHARP: weighted((-2 * entropy).exp()),
        HIGHEST: maps.amax(0),
        PRODUCT: maps.clamp_min(LEAST).log().mean(0).exp(),
        COMPETE: on_image[chosen].mean(0),
    }


def _of_layers(asked: AskedRows, visual: Tensor) -> dict[str, Tensor]:
    """Maps on which the layers of the question's own row agree."""
    own = asked.rows[:, :, asked.named][..., asked.grids[0].index]
    layers = torch.stack(
        [normalised(own[i][visual[i]].mean(0)) for i in range(len(own)) if visual[i].any()]
    )
    return {LAYERS: layers.clamp_min(LEAST).log().mean(0).exp(), LAYERS_ALL: layers.amin(0)}


def _ratio(relevance: Tensor, region: Region) -> float:
    """The highest token over the highest that does not touch it."""
    grid = region.grids[0]
    cells = relevance.view(grid.h, grid.w).clone()
    row, column = divmod(int(relevance.argmax()), grid.w)
    top = float(relevance.max())
    cells[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = 0
    return top / (float(cells.max()) + 1e-4)


# Scores of how sure a map is: of the map, and of the region with its heads.
SCORES: Mapping[str, Callable[[Tensor, Region], float]] = {
    "highest share": lambda relevance, region: float(relevance.max()),
    "highest over next spot": _ratio,
    "small entropy": lambda relevance, region: (
        float(torch.xlogy(relevance, relevance).sum()) + math.log(len(relevance))
    ),
    "R of its heads": lambda relevance, region: float(region.heads.focus[region.visual].mean()),
}


def heads_agree(asked: AskedRows, region: Region, row: int) -> float:
    """Mean product of the maps of two heads that were chosen: 1 where all are on one token."""
    own = asked.rows[:, :, row][..., asked.grids[0].index][region.visual]
    maps = own / own.sum(1, keepdim=True).clamp_min(1e-12)
    if len(maps) == 1:
        return float(maps[0] @ maps[0])
    total = maps.sum(0)
    return float((total @ total - (maps * maps).sum()) / (len(maps) * (len(maps) - 1)))
