"""Heads whose attention a page shows as one, and their maps in the room that there is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from vrga.recording.trace import Trace


@dataclass
class Channel:
    """Heads whose attention is shown as one: a group, or a single head.

    Args:
        name: as shown; of the same name in both runs, it is compared.
        heads: bool [L, H], over the trace's layers.
        map: attention on the image's tokens, float [steps, n], or None where none was recorded.
        single: (layer, head) of a single head, or None.
    """

    name: str
    heads: Tensor
    map: Tensor | None
    single: tuple[int, int] | None = None


def channels_of(trace: Trace, row: int, single: bool = False) -> list[Channel]:
    """Groups of heads, single layers if wanted, then single heads with a map, those with the lowest
    EFR first."""
    own = trace.filled()
    _, layers, _, heads = own.image.shape
    steps = len(trace.steps_of(row))
    n, region = sum(grid.h * grid.w for grid in trace.regions[row].grids), trace.regions[row]
    numbers = own.layers.tolist()
    pairs = [] if trace.heads is None else [tuple(pair) for pair in trace.heads.tolist()]
    maps = None if trace.maps is None or not n else trace.maps[:steps, :, row, :n].float()
    everything = torch.ones(layers, heads, dtype=torch.bool)
    visual = region.visual[trace.layers]

    found = []
    if visual.any():
        whole = set(map(tuple, region.visual.nonzero().tolist())) <= set(pairs)
        found.append(Channel("visual heads", visual, trace.map_of(row) if whole and n else None))
    parts = {"all layers": range(layers)}
    if layers >= 3:
        edges = [round(layers * i / 3) for i in range(4)]
        for i, name in enumerate(("early", "middle", "late")):
            part = range(edges[i], edges[i + 1])
            span = f"{numbers[part[0]]} to {numbers[part[-1]]}"
            parts[f"{name} layers, {span}"] = part
    if single:
        parts |= {f"layer {numbers[i]}": range(i, i + 1) for i in range(layers)}
    for name, part in parts.items():
        chosen = torch.zeros_like(everything)
        chosen[list(part)] = True
        mean = None
        if trace.layer_maps is not None and n:
            mean = trace.layer_maps[:steps, list(part), row, :n].float().mean(1)
        found.append(Channel(name, chosen, mean))
    for i in sorted(range(len(pairs)), key=lambda i: float(region.heads.efr[pairs[i]])):
        layer, head = pairs[i]
        chosen = torch.zeros_like(everything)
        chosen[numbers.index(layer), head] = True
        shown = None if maps is None else maps[:, i]
        found.append(Channel(f"layer {layer}, head {head}", chosen, shown, (layer, head)))
    return found


def fitting(
    channels: list[Channel], grids: list[tuple[int, int]], steps: int, budget: float
) -> tuple[list[Channel], list[tuple[int, int]]]:
    """The channels whose maps fit into `budget` bytes, groups in any case, and the maps' sizes."""
    groups = sum(c.map is not None and c.single is None for c in channels)
    sizes = list(grids)
    while groups * steps * sum(h * w for h, w in sizes) > budget and sizes != [(1, 1)] * len(sizes):
        sizes = [(math.ceil(h / 2), math.ceil(w / 2)) for h, w in sizes]
    room = max(steps * sum(h * w for h, w in sizes), 1)
    singles = max(int(budget // room) - groups, 0)
    kept = [c for c in channels if c.single is None]
    return kept + [c for c in channels if c.single is not None][:singles], sizes


def levels(
    maps: Tensor | None, grids: list[tuple[int, int]], sizes: list[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Maps [steps, n] made coarser to `sizes`: uint8, 255 at the highest of each step, flat; and
    what 255 stands for, the mean attention on an image token there, float32 [steps]."""
    if maps is None:
        return np.zeros((0,), np.uint8), np.zeros((0,), np.float32)
    parts = []
    for part, (h, w), size in zip(
        maps.split([h * w for h, w in grids], 1), grids, sizes, strict=True
    ):
        part = part.view(len(part), 1, h, w)
        while part.shape[2:] != size:
            part = avg_pool2d(part, 2, ceil_mode=True)
        parts.append(part.flatten(1))
    joined = torch.cat(parts, 1)
    top = joined.amax(1, keepdim=True).clamp_min(1e-12)
    scaled = (joined / top * 255).round().to(torch.uint8).flatten().numpy()
    return scaled, top[:, 0].numpy().astype("<f4")
