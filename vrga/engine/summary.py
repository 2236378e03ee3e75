"""What comes back with a steered answer: where it looked, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vrga.engine.request import Box
from vrga.method.region import Region

DIGITS, EDGE_DIGITS = 4, 6  # of shares of attention; of boxes, which may be given again


def told_region(region: Region) -> dict[str, Any]:
    """A region in plain values.

    Returns:
        grids: [rows, columns] of each image's tokens; boxes: of each image, in shares of its
        sides, which cover T and nothing else; tokens: how many are in T; heads: [layer, head] of
        each visual head; query: position of the question's last token.
    """
    grids = region.grids
    parts = [region.mask[grid.index].view(grid.h, grid.w) for grid in grids]
    return {
        "grids": [[grid.h, grid.w] for grid in grids],
        "boxes": [boxes_of(part) for part in parts],
        "tokens": int(region.mask.sum()),
        "heads": region.visual.nonzero().tolist(),
        "query": region.query,
    }


def boxes_of(cells: Tensor) -> list[Box]:
    """Boxes in shares of the sides that cover the cells of a mask [h, w], and nothing else.

    Each is as wide as a row allows, and as high as rows are alike.
    """
    (h, w), rows = cells.shape, cells.tolist()
    done: list[tuple[int, int, int, int]] = []
    growing: dict[tuple[int, int], int] = {}  # (first, end) of columns -> first row
    for row in range(h + 1):
        runs = _runs(rows[row]) if row < h else []
        for run in [run for run in growing if run not in runs]:
            done.append((run[0], growing.pop(run), run[1], row))
        for run in runs:
            growing.setdefault(run, row)
    done.sort(key=lambda box: (box[1], box[0]))
    return [
        (_share(x, w), _share(y, h), _share(right, w), _share(bottom, h))
        for x, y, right, bottom in done
    ]


def _share(edge: int, count: int) -> float:
    return round(edge / count, EDGE_DIGITS)


def _runs(row: list[bool]) -> list[tuple[int, int]]:
    """Runs of true values, as (first, end)."""
    edges = [i for i, (one, next_) in enumerate(zip([False, *row], [*row, False], strict=True))
             if one != next_]  # fmt: skip
    return list(zip(edges[::2], edges[1::2], strict=True))


@dataclass
class Summary:
    """What became of one steered request, gathered from its workers' reports.

    Args:
        config: the method's numbers, by name.

    Attributes:
        region: as `told_region`, once it is known; shares: attention on it after steering, mean
            over the visual heads, of each steered step of the answer, which may come again after a
        preemption; fault: why it was not
            steered, or None.
    """

    config: str
    region: dict[str, Any] | None = None
    shares: dict[int, float] = field(default_factory=dict)
    fault: str | None = None

    def take(self, report: dict[str, Any] | None) -> None:
        """Take a worker's report of one pass; None where it gave none."""
        if report is None:
            self.fault = (
                "the worker gave no account of it: the plug-in is not loaded there, or its runner "
                "is another one"
            )
            return
        if "share" in report:
            self.shares.update(report["share"])
        if "region" in report:
            self.region = report["region"]
        if "fault" in report:
            self.fault = report["fault"]

    def to_dict(self) -> dict[str, Any]:
        """As it goes out with the answer."""
        if self.fault is not None:
            return {"steered": False, "config": self.config, "fault": self.fault}
        shares = [round(share, DIGITS) for _, share in sorted(self.shares.items())]
        mean = round(sum(shares) / len(shares), DIGITS) if shares else None
        return {
            "steered": True,
            "config": self.config,
            **(self.region or {}),
            "share": {"mean": mean, "steps": shares},
        }
