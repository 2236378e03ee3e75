"""Attention of the probed query rows, made of what the layers left when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vrga.method.attention_rows import AttentionRows
from vrga.method.heads import ImageSums, image_attention, image_sums

AT_ONCE = 1 << 17  # scores that are made at once: 512 kB in float32


@dataclass(frozen=True)
class LateScores:
    """Queries and keys of one layer, to be scored when they are asked for.

    Args:
        query: of the probed rows alone, [B, H, d].
        key: as attention saw them, [B, H_kv, S, d].
        last, hidden, offset, rows, scale: as `probe_scores_reference` takes them, with `rows` the
            number of its query rows.
        score: `probe_scores_reference`, or its like.
    """

    query: Tensor
    key: Tensor
    last: Tensor
    hidden: Tensor
    offset: int
    rows: int
    scale: float
    score: Callable

    @property
    def heads(self) -> tuple[int, int]:
        """H and H_kv."""
        return self.query.shape[1], self.key.shape[1]

    @property
    def device(self) -> torch.device:
        """Of the layer."""
        return self.query.device

    def write(self, samples: slice, kv_heads: slice, out: Tensor) -> None:
        """Scores of some samples' queries with some KV heads' keys, into [b, h, S]."""
        group = self.query.shape[1] // self.key.shape[1]
        heads = slice(kv_heads.start * group, kv_heads.stop * group)
        query = self.query[samples, heads, None].expand(-1, -1, self.rows, -1)  # whichever is read
        self.score(
            query, self.key[samples, kv_heads], self.last[samples], self.hidden[samples], out,
            offset=self.offset, scale=self.scale,
        )  # fmt: skip


@dataclass(frozen=True)
class KeptScores:
    """Scores of one layer, [B, H, S], whose keys are not kept as attention saw them."""

    scores: Tensor
    kv_heads: int

    @property
    def heads(self) -> tuple[int, int]:
        """H and H_kv."""
        return self.scores.shape[1], self.kv_heads

    @property
    def device(self) -> torch.device:
        """Of the layer."""
        return self.scores.device

    def write(self, samples: slice, kv_heads: slice, out: Tensor) -> None:
        """See `LateScores.write`."""
        group = self.scores.shape[1] // self.kv_heads
        out.copy_(self.scores[samples, kv_heads.start * group : kv_heads.stop * group])


@dataclass(frozen=True)
class Block:
    """What is made at once: attention of some heads of some layers, for some samples.

    Args:
        rows: probabilities, float32 [l, b, h, S].
        layers, samples, heads: which these are.
    """

    rows: Tensor
    layers: slice
    samples: slice
    heads: slice


class ProbedRows(AttentionRows):
    """Rows that are made in blocks, each dropped before the next is made.

    Beside the scores of a block there are its probabilities and two more of its size at most; with
    them it stays below the scores of one layer, or below `AT_ONCE` four times.

    Args:
        layers: what each layer left, by its number from 0.
        samples: rows of the batch that are asked about; the others have no query row here.
        size: (B, S).
    """

    def __init__(
        self,
        layers: Mapping[int, LateScores | KeptScores],
        samples: Sequence[int],
        size: tuple[int, int],
    ):
        self._layers, self._samples = [layers[i] for i in sorted(layers)], list(samples)
        self._batch, self._length = size
        self._heads = self._layers[0].heads[0]

    @torch.no_grad()
    def sums(self, images: Sequence[Tensor]) -> list[ImageSums]:
        """See `AttentionRows`."""
        place = _Places(images, self._samples, self._batch)
        found: dict[torch.device, Tensor] = {}
        shape = 3, len(self._layers), self._batch, self._heads
        for block in self._blocks(range(len(self._layers))):
            device = block.rows.device
            if device not in found:
                found[device] = torch.zeros(shape, device=device)
            sums = image_sums(block.rows, *place.on(device, block.samples))
            found[device][:, block.layers, block.samples, block.heads] = torch.stack(
                [sums.total, sums.mass, sums.entropy]
            )
        # Each layer stands on one device, and is zero on the others.
        whole = torch.stack([sums.cpu() for sums in found.values()]).sum(0)
        return [ImageSums(*whole[:, :, row].unbind()) for row in self._samples]

    @torch.no_grad()
    def means(
        self, heads: Sequence[Sequence[Tensor]], images: Sequence[Tensor]
    ) -> list[list[Tensor]]:
        """See `AttentionRows`."""
        sets, place = len(heads[0]), _Places(images, self._samples, self._batch)
        shape = sets, len(self._layers), self._batch, self._heads
        chosen = torch.zeros(shape, dtype=torch.bool, device="cpu")
        for row, own in zip(self._samples, heads, strict=True):
            chosen[:, :, row] = torch.stack(list(own))
        wanted = chosen.any(0).any(-1).any(-1).nonzero()[:, 0].tolist()
        totals: dict[torch.device, tuple[Tensor, Tensor]] = {}
        for block in self._blocks(wanted):
            device = block.rows.device
            if device not in totals:
                total = torch.zeros(sets, self._batch, place.width, device=device)
                totals[device] = ~chosen.to(device), total
            others, total = totals[device]
            index = place.on(device, block.samples)[0]
            for i in range(sets):
                if not chosen[i, block.layers, block.samples, block.heads].any():
                    continue
                other = others[i, block.layers, block.samples, block.heads, None]
                attention = image_attention(block.rows, index).masked_fill_(other, 0)
                total[i, block.samples] += attention.sum((0, 2))
        counts = chosen.sum((1, 3)).clamp_min(1)  # [sets, B]
        whole = torch.zeros(sets, self._batch, place.width, device="cpu")
        for _, total in totals.values():
            whole += total.cpu()
        whole /= counts[..., None]
        pairs = zip(self._samples, images, strict=True)
        return [list(whole[:, row, : len(image)].unbind()) for row, image in pairs]

    def _blocks(self, layers: Sequence[int]) -> Iterator[Block]:
        """Attention of some layers, block by block."""
        heads, kv_heads = self._layers[0].heads
        group, layer = heads // kv_heads, self._batch * heads * self._length
        most = max(AT_ONCE, layer // 4)
        at_once = max(1, most // layer)  # layers
        samples = min(max(1, most // (heads * self._length)), self._batch)
        some = min(max(1, most // (samples * group * self._length)), kv_heads)  # KV heads
        for run in _runs(layers, [self._layers[i].device for i in layers], at_once):
            for samples_now in _slices(self._batch, samples):
                if not any(samples_now.start <= row < samples_now.stop for row in self._samples):
                    continue
                for kv_now in _slices(kv_heads, some):
                    yield self._block(run, samples_now, kv_now, group)

    def _block(self, layers: slice, samples: slice, kv_heads: slice, group: int) -> Block:
        heads = slice(kv_heads.start * group, kv_heads.stop * group)
        own = self._layers[layers]
        shape = len(own), samples.stop - samples.start, heads.stop - heads.start, self._length
        scores = torch.zeros(shape, device=own[0].device)  # samples without a query row: all alike
        for layer, out in zip(own, scores, strict=True):
            layer.write(samples, kv_heads, out)
        return Block(scores.softmax(-1), layers, samples, heads)


class _Places:
    """Where the samples' image keys are, filled up to one length, on any device.

    Args:
        images: int64 [n] of each sample; samples: which rows of the `batch` these are.
    """

    def __init__(self, images: Sequence[Tensor], samples: Sequence[int], batch: int):
        self.width = max(len(image) for image in images)
        self._index = torch.zeros(batch, 1, self.width, dtype=torch.int64, device="cpu")
        self._absent = torch.ones(batch, 1, self.width, dtype=torch.bool, device="cpu")
        for row, image in zip(samples, images, strict=True):
            self._index[row, 0, : len(image)] = image
            self._absent[row, 0, : len(image)] = False
        self._filled = bool(self._absent[list(samples)].any())
        self._placed: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def on(self, device: torch.device, samples: slice) -> tuple[Tensor, Tensor | None]:
        """The positions, int64 [b, 1, n], and True where they are filled up, or None."""
        if device not in self._placed:
            self._placed[device] = self._index.to(device), self._absent.to(device)
        index, absent = self._placed[device]
        return index[samples], absent[samples] if self._filled else None


def _slices(count: int, most: int) -> Iterator[slice]:
    for first in range(0, count, most):
        yield slice(first, min(first + most, count))


def _runs(numbers: Sequence[int], devices: list[torch.device], most: int) -> Iterator[slice]:
    """Consecutive numbers on one device, at most `most` together."""
    first = 0
    for i in range(1, len(numbers) + 1):
        ends = i == len(numbers) or numbers[i] != numbers[i - 1] + 1
        if ends or devices[i] != devices[first] or i - first == most:
            yield slice(numbers[first], numbers[i - 1] + 1)
            first = i
