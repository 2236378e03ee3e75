"""What a worker keeps of one steered request, from its first pass to its last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vrga.engine.plan import Plan
from vrga.engine.request import Box
from vrga.hf.layouts import Cells
from vrga.method.attention_rows import Sample, WholeRows
from vrga.method.back_spans import BackSpans
from vrga.method.key_groups import KeyGroups
from vrga.method.prompt import Grid
from vrga.method.region import Region, find_regions
from vrga.method.table import rules_of
from vrga.method.tag_table import TagTable

if TYPE_CHECKING:
    from vrga.engine.compiled_rows import Known

SLACK = 1e-3  # of a cell: how far a rounded edge may be off


class Steered:
    """One steered request.

    Args:
        plan: of it.
        cells: the token grid of each image.
        spans: of the vocabulary, where the plan follows <back> spans, else None.

    Attributes:
        region: what it looks at; None until its question's row has been seen.
        fault: why it cannot be steered, or None. It is then left alone, and ends with an error.
        told: whether the region went out with a report.
        known: what the compiled rows of a CPU make of it, once they come.

    Raises:
        ValueError: grids that do not fill the images' tokens.
    """

    def __init__(self, plan: Plan, cells: Sequence[Cells], spans: TagTable | None = None):
        self.plan = plan
        self.grids = [
            Grid(torch.arange(place, place + count), one.h, one.w)
            for (place, count), one in zip(plan.images, cells, strict=True)
        ]
        for grid in self.grids:
            if grid.h * grid.w != len(grid.index):
                raise ValueError(
                    f"an image takes {len(grid.index)} tokens, and its grid is {grid.h} x {grid.w}"
                )
        self.groups = KeyGroups.of(plan.config)
        self.region: Region | None = None
        self.fault: str | None = None
        self.told = False
        self.known: Known | None = None
        self._spans = (
            None if spans is None else BackSpans(spans, 1, torch.device("cpu"), plan.prompt)
        )
        self._inside: list[bool] = []  # of the answer's tokens, so far

    def locate(self, rows: Tensor) -> None:
        """Find the region.

        Args:
            rows: attention of the probed row, float32 [L, H, keys up to that row].
        """
        plan = self.plan
        layers, heads, seen = rows.shape
        whole = rows.new_zeros(layers, heads, plan.prompt)
        whole[..., :seen] = rows
        # What reproduces the released code averages over the whole row, see `Run`.
        visible = torch.ones(layers, plan.prompt, dtype=torch.bool)
        if not plan.config.reproduces:
            visible[:, plan.probed + 1 :] = False
        sample = Sample(self.grids, plan.query, visible)
        rules = rules_of(plan.config)
        found = find_regions(WholeRows([whole]), [sample], plan.config, rules)[0]
        if plan.given is not None:
            mask = torch.zeros_like(found.mask)
            for grid, boxes in zip(self.grids, plan.given, strict=True):
                mask[grid.index] = cells_of(boxes, grid.h, grid.w).flatten()
            found = replace(found, mask=mask)
        self.region = found
        self.flags = self.groups.flags([found])  # int32 [1, prompt]
        self.images = int(found.image.sum())

    @property
    def follows(self) -> bool:
        """Whether it needs the tokens of its answer."""
        return self._spans is not None

    @property
    def gate(self) -> Tensor | None:
        """Which heads are open, bool [L, H]; None where each step decides."""
        config = self.plan.config
        known = config.boosts and not config.reproduces and config.gate == "static"
        assert self.region is not None  # asked for at steps, whose prompt is through
        return self.region.visual if known else None

    def follow(self, ids: Sequence[int], past: int) -> list[bool] | None:
        """Which new tokens of the answer are steered; None for all.

        Args:
            ids: of the rows behind `past` keys. After a preemption they come again.
        """
        if self._spans is None:
            return None
        first = past - self.plan.prompt
        known = len(self._inside) - first
        for i, token in enumerate(ids[known:], known):
            self._spans.advance(torch.tensor([[token]]), past + i)
            self._inside.append(bool(self._spans.inside[0, 0]))
        return self._inside[first : first + len(ids)]


def cells_of(boxes: Sequence[Box], h: int, w: int) -> Tensor:
    """The cells of an h x w grid that boxes in shares of its sides touch, bool [h, w]."""
    cells = torch.zeros(h, w, dtype=torch.bool)
    for left, top, right, bottom in boxes:
        cells[_touched(top, bottom, h), _touched(left, right, w)] = True
    return cells


def _touched(first: float, end: float, count: int) -> slice:
    """Cells of a side of `count` that a span in shares of it touches, one at least.

    What ends at a cell's edge, but for rounding, does not touch the next one.
    """
    start = min(math.floor(first * count + SLACK), count - 1)
    return slice(start, max(math.ceil(end * count - SLACK), start + 1))
