"""What the rows of a batch are steered to, and what was found for each of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vrga.evaluation.region_attention import cells_in
from vrga.evaluation.request import Ready
from vrga.method.prompt import Grid
from vrga.method.region import Region
from vrga.steering.patching import Patch


class Boxes:
    """The cells that a batch's boxes meet, once the grids of its images are known."""

    def __init__(self, batch: list[Ready]):
        self.batch = batch
        self.cells: list[list[Tensor]] = []

    def __call__(self, grids: list[list[Grid]]) -> list[list[Tensor]]:
        self.cells = []
        times = len(grids) // len(self.batch)  # beams
        requests = [one for one in self.batch for _ in range(times)]
        for one, row in zip(requests, grids, strict=True):
            cells = [torch.zeros(grid.h, grid.w, dtype=torch.bool) for grid in row]
            if one.request.box is not None and row:
                cells[0] = cells_in(one.request.box, one.images[0].size, (row[0].h, row[0].w))
            self.cells.append(cells)
        return self.cells


def each_row(
    choose: Callable[[str, Region], Tensor], ids: list[str], regions: list[Region]
) -> Tensor:
    """What is chosen for each row of a batch, which `generate` may repeat."""
    times = len(regions) // len(ids)
    chosen = [
        choose(ids[i // times], region) if region.grids else region.visual
        for i, region in enumerate(regions)
    ]
    return torch.stack(chosen)


def asked_region(steered: Patch, row: int) -> Region:
    """The region that a row's question looks at, also where a <back> has found another since."""
    before = [episode.before for episode in steered.episodes if episode.row == row]
    return before[0] if before else steered.region[row]


def summary(region: Region) -> dict[str, int]:
    """The numbers of a region that a sample keeps."""
    return {
        "image_tokens": int(region.image.sum()),
        "region_tokens": int(region.mask.sum()),
        "visual_heads": int(region.visual.sum()),
        "query": region.query,
    }
