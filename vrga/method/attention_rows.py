"""Attention of one query row per sample, as phase 1 of the method asks about it.

Phase 1 asks twice: what every head adds up to on the image, and, of the heads that were chosen by
these sums, the mean attention on each image token. So nobody has to keep the rows themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vrga.method.heads import ImageSums, image_sums
from vrga.method.prompt import Grid


@dataclass(frozen=True)
class Sample:
    """A query row whose region is sought.

    Args:
        grids: the row's images, at least one.
        query: position of the last question token.
        seen: keys over which mean attention is taken in each layer, bool [L, S]; with sliding
            windows the layers differ. With the rows of a whole question, bool [L, Q, S].
    """

    grids: list[Grid]
    query: int
    seen: Tensor


class AttentionRows(Protocol):
    """Attention of one query row per sample from all layers, however it comes about.

    Where a sample has the rows of a whole question, heads are [L, H, Q] in place of [L, H].
    """

    def sums(self, images: Sequence[Tensor]) -> list[ImageSums]:
        """What each head adds up to on each sample's image keys, int64 [n]; on the CPU."""

    def means(
        self, heads: Sequence[Sequence[Tensor]], images: Sequence[Tensor]
    ) -> list[list[Tensor]]:
        """Mean attention on each sample's image keys, float [n], over each of its sets of heads,
        bool [L, H]; zeros for a set without heads. On the CPU."""


class WholeRows:
    """Rows that are there in full.

    Args:
        rows: of each sample, attention probabilities, float [L, H, S] or [L, H, Q, S].
    """

    def __init__(self, rows: Sequence[Tensor]):
        self._rows = rows

    def sums(self, images: Sequence[Tensor]) -> list[ImageSums]:
        """See `AttentionRows`."""
        pairs = zip(self._rows, images, strict=True)
        return [image_sums(rows, image.to(rows.device)).cpu() for rows, image in pairs]

    def means(
        self, heads: Sequence[Sequence[Tensor]], images: Sequence[Tensor]
    ) -> list[list[Tensor]]:
        """See `AttentionRows`."""
        triples = zip(self._rows, heads, images, strict=True)
        return [
            [self._mean(rows, chosen.to(rows.device), image.to(rows.device)) for chosen in sets]
            for rows, sets, image in triples
        ]

    @staticmethod
    def _mean(rows: Tensor, heads: Tensor, image: Tensor) -> Tensor:
        if not heads.any():
            return torch.zeros(len(image), dtype=rows.dtype, device="cpu")
        return rows[heads][:, image].mean(0).cpu()
