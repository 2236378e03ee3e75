"""Which rows of a prompt are probed: the question's last token alone, or all of its words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vrga.steering.probe_scores import KeptScores, LateScores


class QueryRows:
    """The probed rows of a batch; samples with fewer rows than others are filled up in front.

    Args:
        query: query position of each sample, counted from the first key; -1 leaves it out.
        visible: False on padding, bool [B, S] of the whole prompt.
        words: positions of each sample's rows, ascending, the query as the last; None: it alone.

    Attributes:
        batch: B; width: Q, the most rows of a sample; length: S.
        alone: whether it is the query alone.
    """

    def __init__(
        self, query: Sequence[int], visible: Tensor, words: Sequence[Sequence[int]] | None
    ):
        self._visible, self.alone = visible, words is None
        given = [[place] for place in query] if words is None else words
        self._words = [list(own) if at >= 0 else [] for own, at in zip(given, query, strict=True)]
        self.batch, self.length = visible.shape
        self.width = max([1, *map(len, self._words)])

    def count(self, row: int) -> int:
        """How many rows a sample has."""
        return len(self._words[row])

    def among(self, offset: int, width: int) -> list[tuple[int, int, int]]:
        """The rows in a pass of `width` tokens behind `offset` keys: (sample, which of the Q,
        position)."""
        return [
            (row, self.width - len(own) + i, place)
            for row, own in enumerate(self._words)
            for i, place in enumerate(own)
            if 0 <= place - offset < width
        ]

    def goes_on(self, offset: int, width: int) -> bool:
        """Whether a sample has rows in such a pass or before it, and others behind it."""
        end = offset + width
        return any(own and own[0] < end <= own[-1] for own in self._words)

    def within(self, offset: int, width: int) -> tuple[Tensor, Tensor]:
        """The last row of each sample in a pass, as a position, int32 [B], or -1 if there is none;
        and which of the pass's tokens its rows are, int64 [B, Q], any for rows of other passes."""
        last = torch.full((len(self._words),), -1, dtype=torch.int32, device="cpu")
        at = torch.zeros(len(self._words), self.width, dtype=torch.int64, device="cpu")
        for row, number, place in self.among(offset, width):
            last[row], at[row, number] = max(int(last[row]), place), place - offset
        return last, at

    def sees(self, row: int, window: int | None) -> Tensor:
        """Keys that each row of a sample sees through a window, bool [Q, S]; [S] of the query
        alone."""
        place = torch.arange(self.length, device="cpu")
        last = torch.tensor(self._words[row] or [-1], device="cpu")[:, None]
        seen = self._visible[row] & (place <= last)
        seen = seen if window is None else seen & (place > last - window)
        return seen[0] if self.alone else seen

    def hidden(self, window: int | None) -> tuple[Tensor, Tensor]:
        """Keys that no row of a sample sees, bool [B, S], and those that each row does not see,
        bool [B, Q, S]; the rows that fill up see what the first does."""
        found = []
        for row in range(len(self._words)):
            seen = self.sees(row, window).view(-1, self.length)
            found.append(torch.cat([seen[:1].expand(self.width - len(seen), -1), seen]))
        seen = torch.stack(found)
        return ~seen.any(1), ~seen

    def made(self, scored: LateScores | KeptScores) -> KeptScores:
        """The scores of a layer, made now."""
        if isinstance(scored, KeptScores):
            return scored
        heads, kv_heads = scored.heads
        batch = len(self._words)
        scores = torch.full((batch, heads, self.length), -torch.inf, device=scored.device)
        scored.write(slice(0, batch), slice(0, kv_heads), scores)
        return KeptScores(scores, kv_heads, self.width)
