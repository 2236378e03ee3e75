"""What a layer leaves of the probed rows: queries that wait to be scored, or scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TOGETHER = 32  # query rows of a KV head, its heads times the question's rows, scored at once


@dataclass(frozen=True)
class LateScores:
    """Queries and keys of one layer, to be scored when they are asked for.

    Heads times rows are counted as heads, row by row within each head: H * Q.

    Args:
        query: of the probed rows alone, [B, H, Q, d].
        key: as attention saw them, [B, H_kv, S, d].
        last: the last of each sample's rows; hidden: keys that none of them sees; offset, scale: as
            `probe_scores_reference` takes them.
        unseen: keys that each row does not see, bool [B, Q, S].
        rows: of the pass.
        score: `probe_scores_reference`, or its like.
    """

    query: Tensor
    key: Tensor
    last: Tensor
    hidden: Tensor
    unseen: Tensor
    offset: int
    rows: int
    scale: float
    score: Callable

    @property
    def heads(self) -> tuple[int, int]:
        """H * Q and H_kv."""
        return self.query.shape[1] * self.query.shape[2], self.key.shape[1]

    @property
    def device(self) -> torch.device:
        """Of the layer."""
        return self.query.device

    def write(self, samples: slice, kv_heads: slice, out: Tensor) -> None:
        """Scores of some samples' queries with some KV heads' keys, into [b, h * Q, S]."""
        group = self.query.shape[1] // self.key.shape[1]
        heads = slice(kv_heads.start * group, kv_heads.stop * group)
        query = self.query[samples, heads]  # [b, h, Q, d]
        if query.shape[2] == 1:
            self._score(query[:, :, 0], samples, kv_heads, out)
            return
        at_once = max(1, TOGETHER // group)
        of_rows = out.view(len(out), query.shape[1], query.shape[2], -1)
        for first in range(0, query.shape[2], at_once):
            part = query[:, :, first : first + at_once]
            own = torch.full(
                (len(out), part.shape[1] * part.shape[2], out.shape[2]), -torch.inf,
                device=out.device, dtype=out.dtype,
            )  # fmt: skip
            self._score(part.flatten(1, 2), samples, kv_heads, own)
            unseen = self.unseen[samples, None, first : first + at_once]
            own = own.view(*part.shape[:3], -1).masked_fill_(unseen, -torch.inf)
            of_rows[:, :, first : first + at_once] = own

    def _score(self, query: Tensor, samples: slice, kv_heads: slice, out: Tensor) -> None:
        """Scores of [b, h, d] into [b, h, S]."""
        query = query[:, :, None].expand(-1, -1, self.rows, -1)  # whichever row is read
        self.score(
            query, self.key[samples, kv_heads], self.last[samples], self.hidden[samples], out,
            offset=self.offset, scale=self.scale,
        )  # fmt: skip


@dataclass(frozen=True)
class KeptScores:
    """Scores of one layer, [B, H * Q, S], whose keys are not kept as attention saw them."""

    scores: Tensor
    kv_heads: int
    width: int = 1  # Q

    @property
    def heads(self) -> tuple[int, int]:
        """H * Q and H_kv."""
        return self.scores.shape[1], self.kv_heads

    @property
    def device(self) -> torch.device:
        """Of the layer."""
        return self.scores.device

    @property
    def of_rows(self) -> Tensor:
        """The same, [B, H, Q, S]."""
        batch, heads, length = self.scores.shape
        return self.scores.view(batch, heads // self.width, self.width, length)

    def write(self, samples: slice, kv_heads: slice, out: Tensor) -> None:
        """See `LateScores.write`."""
        group = self.scores.shape[1] // self.kv_heads
        out.copy_(self.scores[samples, kv_heads.start * group : kv_heads.stop * group])
