"""Whether the parts of a trace fit together, so that nothing that reads one needs to ask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from vrga.method.region import Region
from vrga.recording.trace import MEASURES, SHARES, Trace

ROUNDING = 0.01  # by which shares of attention may leave [0, 1]
LARGEST = 2**31 - 1
COSTS = ("seen", "crops", "prompt", "second", "reused", "answer", "first", "total")


def check_trace(trace: Trace, images: Sequence[int] | None) -> None:
    """Raise ValueError unless a filled trace is what its docstring says.

    Args:
        images: how many images each row has; None where none are kept.
    """
    steps, layers, rows, heads = _measures(trace)
    numbers = _ascending("steps", trace.steps, steps)
    measured = _ascending("layers", trace.layers, layers)
    _regions(trace, measured, rows, heads)
    _maps(trace, measured, (steps, layers, rows, heads))
    _answers(trace, int(numbers[-1]), rows)
    if trace.inside is not None:
        _tensor("inside", trace.inside, (steps, rows), torch.bool)
    if trace.uncertainty is not None:
        _tensor("uncertainty", trace.uncertainty, (steps, rows))
        if _bounds("uncertainty", trace.uncertainty)[0] < 0:
            raise ValueError("uncertainty is negative, and no entropy")
    wanted = [len(region.grids) for region in trace.regions]
    if images is not None and (
        not isinstance(images, list) or any(isinstance(x, bool) for x in images) or images != wanted
    ):
        raise ValueError(f"images are {images!r:.80}; the grids of the rows are {wanted}")
    if trace.closer is not None and not _is_closer(trace.closer):
        raise ValueError("closer is no decision of a closer look with its crops and its cost")
    for name in ("config", "versions"):
        words = getattr(trace, name)
        if not isinstance(words, dict) or not _is_finite(words):
            raise ValueError(f"{name} is no object of finite values")


def _is_closer(found: Any) -> bool:
    """Whether this is what `Closer.numbers` gives, as far as a page shows it."""
    try:
        decision, pictures, cost = (found[name] for name in ("decision", "pictures", "cost"))
        sizes = [one[name] for one in pictures for name in ("size", "seen")]
        sizes += [one["size"] for one in decision["crops"]]
        boxes = [one["box"] for one in decision["crops"]]
        numbers = [one["magnification"] for one in decision["crops"]]
        return (
            isinstance(decision["zooms"], bool)
            and isinstance(decision["reason"], str)
            and found["zoom"]["order"] in ("overview", "crops")
            and all(len(size) == 2 and min(size) > 0 for size in sizes)
            and all(len(box) == 4 and box[0] < box[2] and box[1] < box[3] for box in boxes)
            and all(0 <= one["image"] < len(pictures) for one in decision["crops"])
            and all(isinstance(x, (int, float)) for x in (*numbers, *chain(*boxes, *sizes)))
            and all(isinstance(cost[name], (int, float)) for name in COSTS)
            and _is_finite(found)
        )
    except (KeyError, TypeError, AttributeError):
        return False


def _measures(trace: Trace) -> tuple[int, int, int, int]:
    if trace.image is None or trace.image.ndim != 4 or not trace.image.numel():
        raise ValueError("image is not [steps, layers, rows, heads]")
    steps, layers, rows, heads = shape = trace.image.shape
    for name in MEASURES:
        found = getattr(trace, name)
        if found is None:
            if name in ("image", "region", "entropy", "gate"):
                raise ValueError(f"{name} is missing")
            continue
        _tensor(name, found, tuple(shape))
        if name == "spread":  # NaN where a head gives the image nothing
            if bool(found.isinf().any()):
                raise ValueError(f"{name} is not finite")
            continue
        low, high = _bounds(name, found)
        if low < -ROUNDING or (name in (*SHARES, "gate") and high > 1 + ROUNDING):
            raise ValueError(f"{name} is from {low:g} to {high:g}, and no share of attention")
    return steps, layers, rows, heads


def _maps(trace: Trace, measured: Tensor, shape: tuple[int, int, int, int]) -> None:
    """`measured` are the numbers of the layers, `shape` is of the measures."""
    steps, layers, rows, heads = shape
    if (trace.maps is None) != (trace.heads is None):
        raise ValueError("maps come with heads, or both are missing")
    most = max(sum(grid.h * grid.w for grid in region.grids) for region in trace.regions)
    for name in ("maps", "layer_maps"):
        found = getattr(trace, name)
        if found is None:
            continue
        middle = layers
        if name == "maps" and trace.heads is not None:
            middle = len(trace.heads)
        if found.ndim != 4 or found.shape[3] < most:
            raise ValueError(f"{name} has shape {list(found.shape)}; {most} image tokens are named")
        _tensor(name, found, (steps, middle, rows, found.shape[3]))
        if found.numel():
            low, high = _bounds(name, found)
            if low < -ROUNDING or high > 1 + ROUNDING:
                raise ValueError(f"{name} is from {low:g} to {high:g}, and no share of attention")
    if trace.heads is None:
        return
    _tensor("heads", trace.heads, (len(trace.heads), 2), torch.int64)
    pairs, known = trace.heads.tolist(), set(measured.tolist())
    if any(layer not in known or not 0 <= head < heads for layer, head in pairs):
        raise ValueError("heads names one that is not measured")
    if len({tuple(pair) for pair in pairs}) < len(pairs):
        raise ValueError("heads names one twice")


def _answers(trace: Trace, last: int, rows: int) -> None:
    """`last` is the last recorded step."""
    if trace.ids is not None:
        _tensor("ids", trace.ids, (rows, trace.ids.shape[-1]), torch.int64)
        if trace.ids.shape[1] <= last or int(trace.ids.min()) < 0:
            raise ValueError(f"ids has {trace.ids.shape[1]} tokens a row; step {last} is named")
    if trace.ends is not None:
        _tensor("ends", trace.ends, (rows,), torch.int64)
        most = LARGEST if trace.ids is None else trace.ids.shape[1] - 1
        if not 0 <= int(trace.ends.min()) <= int(trace.ends.max()) <= most:
            raise ValueError(f"ends is not of 0 to {most}")
    if trace.texts is not None:
        if not isinstance(trace.texts, list) or len(trace.texts) != rows:
            raise ValueError(f"texts is no list of {rows} rows")
        for row, texts in enumerate(trace.texts):
            _strings(f"texts of row {row}", texts)
            needed = last + 1 if trace.ends is None else int(trace.ends[row])
            if len(texts) < needed:
                raise ValueError(f"row {row} has {len(texts)} texts of {needed} tokens")
    if trace.asked is not None:
        _strings("asked", trace.asked)
        if len(trace.asked) != rows:
            raise ValueError(f"asked has {len(trace.asked)} rows of {rows}")


def _regions(trace: Trace, measured: Tensor, rows: int, heads: int) -> None:
    if len(trace.regions) != rows:
        raise ValueError(f"{rows} rows were measured, {len(trace.regions)} regions are described")
    found = trace.regions[0].visual.shape
    if len(found) != 2 or found[1] != heads or int(measured[-1]) >= found[0]:
        raise ValueError(f"the regions are of a model of {list(found)} layers and heads")
    shape = found[0], found[1]
    for row, region in enumerate(trace.regions):
        _region(f"region {row}", region, shape)
    before = 0
    for number, later in enumerate(trace.relocated):
        name = f"relocated region {number}"
        for field, value, end in (("row", later.row, rows), ("step", later.step, LARGEST)):
            _whole(f"{field} of {name}", value, 0, end)
        if later.step < before:
            raise ValueError(f"{name} comes before the one before it")
        before = later.step
        _region(name, later.region, shape)
        first = trace.regions[later.row]
        if len(later.region.mask) < len(first.mask):
            raise ValueError(f"{name} is of {len(later.region.mask)} tokens")


def _region(name: str, region: Region, shape: tuple[int, int]) -> None:
    length = len(region.mask) if region.mask.ndim == 1 else -1
    for field in ("mask", "image"):
        _tensor(f"{field} of {name}", getattr(region, field), (length,), torch.bool)
    for field in ("visual", "background"):
        _tensor(f"{field} of {name}", getattr(region, field), shape, torch.bool)
    _whole(f"query of {name}", region.query, 0, LARGEST)
    if not isinstance(region.question, str | None):
        raise ValueError(f"question of {name} is {region.question!r}, and no text")
    _tensor(f"focus of {name}", region.focus, (len(region.focus),), torch.int64)
    _places(f"focus of {name}", region.focus, length)
    for grid, relevance in zip(region.grids, region.map, strict=True):
        _whole(f"a grid's rows of {name}", grid.h, 1, LARGEST)
        _whole(f"a grid's columns of {name}", grid.w, 1, LARGEST)
        if not isinstance(grid.video, bool):
            raise ValueError(f"a grid of {name} has video={grid.video!r}")
        _tensor(f"a grid of {name}", grid.index, (grid.h * grid.w,), torch.int64)
        _places(f"a grid of {name}", grid.index, length)
        _tensor(f"the map of {name}", relevance, (grid.h, grid.w))
        if _bounds(f"the map of {name}", relevance)[0] < -ROUNDING:
            raise ValueError(f"the map of {name} is negative")
    for field in ("focus", "entropy", "efr"):
        found = getattr(region.heads, field)
        _tensor(f"{field} of the heads of {name}", found, shape)
        if region.grids:  # without an image they are NaN
            _bounds(f"{field} of the heads of {name}", found)


def _tensor(
    name: str, found: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> None:
    """Of this shape, and of this dtype or, for None, of floating point."""
    if tuple(found.shape) != shape:
        raise ValueError(f"{name} has shape {list(found.shape)}, wanted {list(shape)}")
    if (found.dtype != dtype) if dtype is not None else not found.dtype.is_floating_point:
        raise ValueError(f"{name} is {found.dtype}")
    if dtype is None and found.dtype.itemsize < 2:
        raise ValueError(f"{name} is {found.dtype}")


def _bounds(name: str, found: Tensor) -> tuple[float, float]:
    low, high = (float(x) for x in torch.aminmax(found))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} is not finite")
    return low, high


def _ascending(name: str, found: Tensor | None, count: int) -> Tensor:
    """Whole numbers from 0 on, each larger than the one before it."""
    if found is None:
        raise ValueError(f"{name} is missing")
    _tensor(name, found, (count,), torch.int64)
    if int(found[0]) < 0 or int(found[-1]) > LARGEST or not bool((found[1:] > found[:-1]).all()):
        raise ValueError(f"{name} does not ascend from 0 on")
    return found


def _places(name: str, found: Tensor, length: int) -> None:
    if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < length:
        raise ValueError(f"{name} names a token that is not among {length}")


def _whole(name: str, value: object, low: int, end: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < end:
        raise ValueError(f"{name} is {value!r}")


def _strings(name: str, found: object) -> None:
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{name} is no list of texts")


def _is_finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_finite(one) for key, one in value.items())
    return all(map(_is_finite, value)) if isinstance(value, list) else True
