"""Decode steps whose statistics are still to be computed.

A query can wait: the keys that it saw stay in the cache, so the statistics of many steps can be
computed at once, which reads the keys once. And a compiled step can hand nothing to the host, so
what it measured, or its query, waits in memory made beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vrga.hf.cache import KeyCache
from vrga.kernels.columns import GATE

CHUNK = 64  # steps that wait at most


@dataclass(frozen=True)
class LayerShape:
    """What a layer's attention is given: queries of (B, H, d), their dtype, device and scale."""

    shape: tuple[int, int, int]
    dtype: torch.dtype
    device: torch.device
    scale: float


@dataclass
class Waiting:
    """Consecutive steps of one layer; a pass of several queries, such as drafts, has several.

    Args:
        queries: of each pass, [B, H, Q, d].
        stats: of each pass, [B, H, Q, 3 + groups]; none where they are still to be computed.
        opened: of each pass without statistics, whether it is steered, or which of its query rows
            are, bool [B, Q].
        key: what the newest step saw, [B, H_kv, S, d]; mask: what hides some of it, as its
            attention backend was given it.
        window: keys that the layer sees at most, or None.
        plain: whether queries and keys are the model's own, see `AttentionCall.as_softmax`.
        past: position of the newest step.
    """

    scale: float
    window: int | None
    plain: bool = True
    queries: list[Tensor] = field(default_factory=list)
    stats: list[Tensor] = field(default_factory=list)
    opened: list[Tensor | bool] = field(default_factory=list)
    key: Tensor | None = None
    mask: Tensor | None = None
    past: int = -1

    @property
    def steered(self) -> bool:
        """Whether some step that waits for its statistics is steered."""
        return any(opened is not False for opened in self.opened)

    def shut_where_left(self, stats: Tensor) -> Tensor:
        """`stats` of all that waits, [B, H, rows, 3 + groups], with the gate shut, in place, where
        a query row is not steered."""
        first = 0
        for query, opened in zip(self.queries, self.opened, strict=True):
            rows = slice(first, first + query.shape[2])
            if opened is not True:
                stats[:, :, rows, GATE] *= (
                    opened[:, None].to(stats.device) if isinstance(opened, Tensor) else 0
                )
            first = rows.stop
        return stats


class Bank:
    """Memory for what compiled steps measure, at addresses that do not change.

    Args:
        layers: those that are measured.
        steps: that there is room for.
        columns: of the statistics that steps leave here; 0: none, they are computed later.
        queries: whether steps leave their queries.
        cache: holds the keys by then; a static one.
        visible: False on padding, bool [B, S] of the prompt, which fills the cache so far.
        follows: whether steps note which rows are inside a <back> span.
        hears: whether they note the entropy of what their tokens were drawn from.
    """

    def __init__(
        self,
        layers: Mapping[int, LayerShape],
        *,
        steps: int,
        columns: int,
        queries: bool,
        cache: KeyCache,
        visible: Tensor,
        follows: bool = False,
        hears: bool = False,
    ):
        self.layers, self._cache, self._visible = dict(layers), cache, visible
        self.follows, self.hears = follows, hears
        self._past = visible.shape[1]  # keys before the first step that waits
        first = next(iter(self.layers.values()))
        self.at = torch.zeros(1, dtype=torch.int64, device=first.device)  # steps that wait
        self.inside = torch.zeros(steps, first.shape[0], dtype=torch.bool, device=first.device)
        self.drawn = torch.zeros(steps, first.shape[0], device=first.device)
        self.queries: dict[int, Tensor] = {}
        self.stats: dict[int, Tensor] = {}
        for number, layer in self.layers.items():
            batch, heads, size = layer.shape
            if queries:
                shape = (steps, batch, heads, size)
                self.queries[number] = torch.zeros(shape, dtype=layer.dtype, device=layer.device)
            if columns:
                shape = (steps, batch, heads, columns)
                self.stats[number] = torch.zeros(shape, dtype=torch.float32, device=layer.device)
        noted = self.at, self.inside, self.drawn
        for tensor in (*noted, *self.queries.values(), *self.stats.values()):
            torch._dynamo.mark_static_address(tensor)

    def begin(self) -> None:
        """A compiled step begins."""
        self.at.add_(1)

    def note(self, inside: Tensor | None, drawn: Tensor | None) -> None:
        """Which rows are inside a <back> span, bool [B, 1], and the entropy of what their tokens
        were drawn from, float32 [B]; None where that is not followed."""
        if inside is not None:
            self.inside.index_copy_(0, self._place(inside), inside[None, :, -1])
        if drawn is not None:
            self.drawn.index_copy_(0, self._place(drawn), drawn[None])

    def put(self, layer: int, query: Tensor, stats: Tensor | None) -> None:
        """What a layer did: queries [B, H, 1, d], and statistics [B, H, 1, 3 + groups] if known."""
        if self.queries:
            self.queries[layer].index_copy_(0, self._place(query), query[None, :, :, 0])
        if stats is not None:
            self.stats[layer].index_copy_(0, self._place(stats), stats[None, :, :, 0])

    def _place(self, like: Tensor) -> Tensor:
        return (self.at - 1).to(like.device)

    def mask(self, end: int) -> Tensor:
        """Keys that the last of the first `end` steps that wait sees, bool [B, S]."""
        seen = self._past + end - self._visible.shape[1]
        return torch.nn.functional.pad(self._visible, (0, seen), value=True).to(self.at.device)

    def waiting(self, layer: int, first: int, end: int, mask: Tensor) -> Waiting:
        """Some of the steps that wait, `first` up to but not with `end`; mask: of the last one."""
        found = Waiting(self.layers[layer].scale, None, mask=mask, past=self._past + end - 1)
        if self.queries:
            found.queries = [self.queries[layer][first:end].permute(1, 2, 0, 3)]
            found.key = self._cache.keys(layer)
        if self.stats:
            # A copy: the next steps write here again.
            found.stats = [self.stats[layer][first:end].permute(1, 2, 0, 3).clone()]
        return found

    def empty(self) -> None:
        """Make room: what waits was read."""
        self._past += int(self.at)
        self.at.zero_()
