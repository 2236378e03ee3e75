"""From a region to crops of the original picture, and whether they are worth a closer look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vrga.closer.zoom import Zoom
from vrga.method.region import Region

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Spot:
    """Connected cells of a picture that stand out.

    Args:
        image: number of the picture.
        cells: bool [h, w] on its token grid.
        weight: their share of the relevance map, over all pictures.
    """

    image: int
    cells: Tensor
    weight: float


@dataclass(frozen=True)
class Crop:
    """A part of an original picture, and how it is shown.

    Args:
        image: number of the picture.
        box: left, top, right, bottom in pixels of the original, right and bottom exclusive.
        size: (width, height) in pixels as the model sees it.
        magnification: how many times larger, in length, than at the first look.
        weight: share of the relevance map of the spots in it.
    """

    image: int
    box: Box
    size: tuple[int, int]
    magnification: float
    weight: float

    def tokens(self, side: int) -> int:
        """Visual tokens of it, each of `side` x `side` pixels."""
        return math.prod(self.size) // side**2


@dataclass(frozen=True)
class Decision:
    """Whether to look closer.

    Args:
        zooms: whether.
        reason: why, in words, with the numbers.
        crops: what is looked at, or would have been.
        share: of the pictures' area that the crops cover; the largest over the pictures.
        magnification: the crops' largest.
    """

    zooms: bool
    reason: str
    crops: tuple[Crop, ...]
    share: float
    magnification: float


def find_spots(region: Region, zoom: Zoom) -> list[Spot]:
    """The spots of a region, the weightiest first; none where nothing stands out.

    Args:
        region: of one row; its map and, with ``within="region"``, its T are read.
    """
    maps = [part.float() for part in region.map]
    allowed = [torch.ones_like(part, dtype=torch.bool) for part in maps]
    if zoom.within == "region":
        allowed = [region.mask[grid.index].view(grid.h, grid.w) for grid in region.grids]
    tops = [float(part[mask].max()) for part, mask in zip(maps, allowed, strict=True) if mask.any()]
    top = max(tops, default=0.0)
    if not top > 0:
        return []
    found = []
    for image, (part, mask) in enumerate(zip(maps, allowed, strict=True)):
        for cells in _connected(mask & (part > 0) & (part >= zoom.threshold * top)):
            found.append(Spot(image, cells, float(part[cells].sum())))
    return sorted(found, key=lambda spot: -spot.weight)  # stable: of equal ones in raster order


def _connected(cells: Tensor) -> list[Tensor]:
    """The parts of a mask [h, w] that hang together, corners included, in raster order."""
    left = {(r, c) for r, c in cells.nonzero().tolist()}
    parts = []
    for start in sorted(left):
        if start not in left:
            continue
        left.discard(start)
        part, edge = torch.zeros_like(cells), [start]
        while edge:
            r, c = edge.pop()
            part[r, c] = True
            near = {(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge += near
        parts.append(part)
    return parts


def crops_around(
    spots: Sequence[Spot],
    sizes: Sequence[tuple[int, int]],
    seen: Sequence[tuple[int, int]],
    zoom: Zoom,
    side: int = 28,
) -> tuple[Crop, ...]:
    """At most `zoom.crops` crops around the weightiest spots, in reading order.

    Args:
        spots: the weightiest first.
        sizes: (width, height) of each original in pixels.
        seen: the same as the model saw it.
        zoom: how large crops are.
        side: pixels of a visual token; crops are shown in multiples of it.
    """
    chosen: list[tuple[int, Box, float]] = []
    for spot in spots[: zoom.crops]:
        chosen.append((spot.image, _box(spot.cells, sizes[spot.image], zoom), spot.weight))
    chosen = sorted(_joined(chosen, sizes, zoom), key=lambda one: (one[0], one[1][1], one[1][0]))
    area = sum(_area(box) for _, box, _ in chosen)
    scale = min(zoom.enlarge, math.sqrt(zoom.pixels / area)) if area else 1.0
    shown = _rounded([_sides(box) for _, box, _ in chosen], scale, zoom.pixels, side)
    found = []
    for (image, box, weight), own in zip(chosen, shown, strict=True):
        before = math.sqrt(math.prod(seen[image]) / math.prod(sizes[image]))
        now = math.sqrt(math.prod(own) / _area(box))
        found.append(Crop(image, box, own, now / before, weight))
    return tuple(found)


def crop_boxes(
    boxes: Sequence[Box], size: tuple[int, int], seen: tuple[int, int], zoom: Zoom, side: int = 28
) -> tuple[Crop, ...]:
    """Crops around given boxes of one picture, as around the cells that they touch.

    Args:
        boxes: in pixels of the original; size, seen, zoom, side: as of `crops_around`.
    """
    rows, columns = seen[1] // side, seen[0] // side
    spots = []
    for box in boxes:
        cells = torch.zeros(rows, columns, dtype=torch.bool)
        left, right = (x * columns / size[0] for x in (box[0], box[2]))
        top, bottom = (y * rows / size[1] for y in (box[1], box[3]))
        cells[int(top) : math.ceil(bottom), int(left) : math.ceil(right)] = True
        spots.append(Spot(0, cells, 0.0))
    return crops_around(spots, [size], [seen], zoom, side)


def _box(cells: Tensor, size: tuple[int, int], zoom: Zoom) -> Box:
    """The box around cells of a grid, with its margin, least side and aspect, in the picture."""
    rows, columns = cells.any(1).nonzero().flatten(), cells.any(0).nonzero().flatten()
    spans = []
    for found, count, length in (
        (columns, cells.shape[1], size[0]),
        (rows, cells.shape[0], size[1]),
    ):
        first, end = int(found[0]) * length / count, (int(found[-1]) + 1) * length / count
        grown = (end - first) * zoom.margin
        spans.append([first - grown, end + grown])
    wanted = [max(end - first, zoom.least) for first, end in spans]
    wanted = [max(one, max(wanted) / zoom.aspect) for one in wanted]
    return _placed(spans, wanted, size)


def _placed(
    spans: Sequence[Sequence[float]], wanted: Sequence[float], size: tuple[int, int]
) -> Box:
    """A box of the wanted sides around the middle of spans, pushed into the picture."""
    edges = []
    for (first, end), side, length in zip(spans, wanted, size, strict=True):
        first, end = max(first, 0.0), min(end, float(length))  # a margin ends at the edge
        side = min(max(end - first, side), float(length))
        start = min(max((first + end - side) / 2, 0.0), length - side)
        edges.append((round(start), round(start + side)))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def _joined(
    chosen: list[tuple[int, Box, float]], sizes: Sequence[tuple[int, int]], zoom: Zoom
) -> list[tuple[int, Box, float]]:
    """Boxes of which those that overlap have become one, until none does."""
    left, apart = list(chosen), []
    while left:
        image, box, weight = left.pop(0)
        other = next((one for one in left if one[0] == image and overlap(box, one[1])), None)
        if other is None:
            apart.append((image, box, weight))
            continue
        left.remove(other)
        spans = [[min(box[i], other[1][i]), max(box[i + 2], other[1][i + 2])] for i in (0, 1)]
        longest = max(end - first for first, end in spans)
        wanted = [max(end - first, longest / zoom.aspect) for first, end in spans]
        joined = image, _placed(spans, wanted, sizes[image]), weight + other[2]
        # The joined box is larger than both: it may overlap one that stood apart until now.
        left, apart = [*left, *apart, joined], []
    return apart


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes have pixels in common."""
    return all(a[i] < b[i + 2] and b[i] < a[i + 2] for i in (0, 1))


def _rounded(
    sides: Sequence[tuple[int, int]], scale: float, pixels: int, step: int
) -> list[tuple[int, int]]:
    """Scaled sides in multiples of `step`, together of at most `pixels` where that is possible."""
    found = [[max(step, round(x * scale / step) * step) for x in own] for own in sides]
    while sum(math.prod(own) for own in found) > pixels:
        shrinking = [i for i, own in enumerate(found) if max(own) > step]
        if not shrinking:
            break
        # The largest of them, on the side that rounding favoured more.
        own = max(shrinking, key=lambda i: math.prod(found[i]))
        ratio = [found[own][i] / sides[own][i] if found[own][i] > step else 0 for i in (0, 1)]
        found[own][ratio.index(max(ratio))] -= step
    return [(width, height) for width, height in found]


def _sides(box: Box) -> tuple[int, int]:
    return box[2] - box[0], box[3] - box[1]


def _area(box: Box) -> int:
    return math.prod(_sides(box))


def decide(
    crops: tuple[Crop, ...],
    sizes: Sequence[tuple[int, int]],
    zoom: Zoom,
    *,
    side: int = 28,
    room: int | None = None,
) -> Decision:
    """Whether to look at the crops: they are small, and show more than was seen.

    Args:
        crops: none where nothing stands out.
        sizes: (width, height) of each original in pixels.
        side: pixels of a side of a visual token.
        room: tokens that the crops may take in the model's context; None is as many as they like.
    """
    if not crops:
        return Decision(False, "nothing stands out in the map", crops, 0.0, 1.0)
    covered = {one.image: 0 for one in crops}
    for one in crops:
        covered[one.image] += _area(one.box)
    share = max(area / math.prod(sizes[image]) for image, area in covered.items())
    most = max(one.magnification for one in crops)
    told = f"{len(crops)} crop{'s' * (len(crops) > 1)} of {100 * share:.0f} % of the picture"
    told += f", {most:.1f} times larger than seen"
    # Each crop stands between two tokens that begin and end an image.
    tokens, why = sum(2 + one.tokens(side) for one in crops), ""
    if share > zoom.share:
        why = f"not small against the picture: {told}; share={zoom.share} is the most"
    elif most < zoom.gain:
        why = f"not enough more to see: {told}; gain={zoom.gain} is the least"
    elif room is not None and tokens > room:
        why = f"no room: {told}, of {tokens} tokens; the model's context has {max(room, 0)} left"
    return Decision(not why, why or told, crops, share, most)
