"""What one <back> is worth: whether to look closer at its place, and what is steered to then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vrga.closer.closer import Look, Pictures
from vrga.closer.crops import Box, Crop, Decision, crops_around, decide, find_spots, overlap
from vrga.closer.two_looks import nothing_to_gain, steered_cells
from vrga.closer.zoom import Zoom
from vrga.method.prompt import Grid
from vrga.method.region import Region

SEEN = 0.5  # share of a crop in an earlier one from which it shows nothing new


def at_back(
    region: Region,
    pictures: Pictures,
    zoom: Zoom,
    taken: tuple[Sequence[Crop], int],
    side: int,
    room: int | None = None,
) -> Decision:
    """Whether to look closer at what a <back> looks at.

    Args:
        region: of the prompt as it was, with the crops of the looks before behind the pictures.
        taken: these crops, and how many looks there were, refused ones among them.
        side, room: as of `decide`.
    """
    if pictures.shows_all:
        return nothing_to_gain(pictures)
    crops_before, count = taken
    if count >= zoom.looks:
        why = f"looked {count} time{'s' * (count > 1)} already: looks={zoom.looks} is the most"
        return Decision(False, why, (), 0.0, 1.0)
    own = len(pictures.originals)
    part = replace(region, map=region.map[:own], grids=region.grids[:own])
    crops = crops_around(find_spots(part, zoom), pictures.sizes, pictures.seen, zoom, side)
    fresh = tuple(
        crop
        for crop in crops
        if not any(c.image == crop.image and _shared(crop.box, c.box) >= SEEN for c in crops_before)
    )
    found = decide(fresh or crops, pictures.sizes, zoom, side=side, room=room)
    if crops and not fresh:
        return replace(found, zooms=False, reason="this place was looked at closer before")
    return found


def _shared(box: Box, other: Box) -> float:
    """The share of a box that lies in another."""
    if not overlap(box, other):
        return 0.0
    sides = [min(box[i + 2], other[i + 2]) - max(box[i], other[i]) for i in (0, 1)]
    return math.prod(sides) / ((box[2] - box[0]) * (box[3] - box[1]))


def looked_cells(
    grids: Sequence[Grid], region: Region, pictures: int, crops: int, zoom: Zoom
) -> list[Tensor]:
    """What ``steer="place"`` steers to: a look's region in the pictures, and all of its crops.

    Args:
        grids: of the prompt's images, the look's crops as the last of them.
        region: of the look; pictures: how many there are; crops: how many it took.
    """
    aimed = replace(region, grids=region.grids[:pictures])
    found = steered_cells(grids, aimed, crops, zoom)
    for place in range(pictures, len(found) - crops):  # crops of the looks before
        found[place] = torch.zeros_like(found[place])
    return found


def whole(looks: Sequence[Look]) -> Decision:
    """The decisions of all looks as one."""
    if not looks:
        return Decision(False, "no <back> in the answer", (), 0.0, 1.0)
    told = "; ".join(f"look {i}: {look.decision.reason}" for i, look in enumerate(looks, 1))
    taken = [look.decision for look in looks if look.decision.zooms]
    shown = taken or [look.decision for look in looks]
    return Decision(
        bool(taken),
        told,
        tuple(crop for one in shown for crop in one.crops),
        max(one.share for one in shown),
        max(one.magnification for one in shown),
    )
