"""Attention of the probed query rows, made of what the layers left when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vrga.method.attention_rows import AttentionRows
from vrga.method.heads import ImageSums, image_sums
from vrga.steering.probe_scores import KeptScores, LateScores
from vrga.steering.query_rows import QueryRows

AT_ONCE = 1 << 17  # scores that are made at once: 512 kB in float32


@dataclass(frozen=True)
class Block:
    """What is made at once: scores of some heads of some layers, for some samples.

    Args:
        scores: float32 [l, b, h * Q, S], before the softmax.
        layers, samples, heads: which these are.
    """

    scores: Tensor
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
        asked: which rows are probed.
    """

    def __init__(
        self,
        layers: Mapping[int, LateScores | KeptScores],
        samples: Sequence[int],
        asked: QueryRows,
    ):
        self._layers, self._samples = [layers[i] for i in sorted(layers)], list(samples)
        self._batch, self._length, self._rows = asked.batch, asked.length, asked
        self._heads = self._layers[0].heads[0]
        self._asked: _Places | None = None

    @torch.no_grad()
    def sums(self, images: Sequence[Tensor]) -> list[ImageSums]:
        """See `AttentionRows`."""
        places = self._places(images)
        found: dict[torch.device, Tensor] = {}
        shape = 3, len(self._layers), self._batch, self._heads
        for block in self._blocks(range(len(self._layers))):
            device = block.scores.device
            if device not in found:
                found[device] = torch.zeros(shape, device=device)
            sums = image_sums(block.scores.softmax(-1), *places.on(device, block.samples))
            own = found[device][:, block.layers, block.samples, block.heads]
            torch.stack([sums.total, sums.mass, sums.entropy], out=own)
        # Each layer stands on one device, and is zero on the others.
        whole = torch.stack([sums.cpu() for sums in found.values()]).sum(0)
        return [ImageSums(*self._own(whole[:, :, row], row).unbind()) for row in self._samples]

    @torch.no_grad()
    def means(
        self, heads: Sequence[Sequence[Tensor]], images: Sequence[Tensor]
    ) -> list[list[Tensor]]:
        """See `AttentionRows`."""
        sets, places = len(heads[0]), self._places(images)
        shape = sets, self._batch, len(self._layers), self._heads
        chosen = torch.zeros(shape, dtype=torch.bool, device="cpu")
        for row, masks in zip(self._samples, heads, strict=True):
            self._own(chosen[:, row], row)[:] = torch.stack(list(masks))
        totals: dict[torch.device, Tensor] = {}
        for block in self._blocks(chosen.any(0).any(0).any(-1).nonzero()[:, 0].tolist()):
            device = block.scores.device
            if device not in totals:
                totals[device] = torch.zeros(sets, self._batch, places.width, device=device)
            image_keys, _ = places.on(device, block.samples)  # [b, 1, n]
            chosen_here = chosen[:, block.samples, block.layers, block.heads]
            for number, row in chosen_here.any(-1).any(-1).nonzero().tolist():
                layer, head = chosen_here[number, row].nonzero().to(device).unbind(1)
                rows = block.scores[layer, row, head].softmax(-1)  # [k, S], of k chosen heads
                on_image = rows.gather(-1, image_keys[row].expand(len(rows), -1))
                totals[device][:, block.samples][number, row] += on_image.sum(0)
        means = torch.zeros(sets, self._batch, places.width, device="cpu")
        for total in totals.values():  # each layer stands on one device, and is in its total alone
            means += total.cpu()
        means /= chosen.sum((2, 3)).clamp_min(1)[..., None]
        pairs = zip(self._samples, images, strict=True)
        return [list(means[:, row, : len(image)].unbind()) for row, image in pairs]

    def _own(self, heads: Tensor, row: int) -> Tensor:
        """A sample's heads [..., L, H * Q] as a view [..., L, H, its Q]; [..., L, H] of its query
        alone."""
        if self._rows.alone:
            return heads
        width = self._rows.width
        split = heads.view(*heads.shape[:-1], self._heads // width, width)
        return split[..., width - self._rows.count(row) :]

    def _places(self, images: Sequence[Tensor]) -> _Places:
        if self._asked is None or self._asked.images is not images:
            self._asked = _Places(images, self._samples, self._batch)
        return self._asked

    def _blocks(self, layers: Sequence[int]) -> Iterator[Block]:
        """Scores of some layers, block by block."""
        heads, kv_heads = self._layers[0].heads
        group, layer = heads // kv_heads, self._batch * heads * self._length
        most = max(AT_ONCE, layer // (4 * self._rows.width))
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
        for layer, out in zip(own, scores.unbind(), strict=True):
            layer.write(samples, kv_heads, out)
        return Block(scores, layers, samples, heads)


class _Places:
    """Where the samples' image keys are, filled up to one length, on any device.

    Args:
        images: int64 [n] of each sample; samples: which rows of the `batch` these are.
    """

    def __init__(self, images: Sequence[Tensor], samples: Sequence[int], batch: int):
        self.images, counts = images, [len(image) for image in images]
        self.width = max(counts)
        self._index = torch.zeros(batch, 1, self.width, dtype=torch.int64, device="cpu")
        for row, image, count in zip(samples, images, counts, strict=True):
            self._index[row, 0, :count] = image
        self._absent = None
        if min(counts) < self.width:
            filled = torch.zeros(batch, 1, 1, dtype=torch.int64, device="cpu")
            filled[list(samples), 0, 0] = torch.tensor(counts, device="cpu")
            self._absent = torch.arange(self.width, device="cpu") >= filled
        self._placed: dict[torch.device, tuple[Tensor, Tensor | None]] = {}

    def on(self, device: torch.device, samples: slice) -> tuple[Tensor, Tensor | None]:
        """The positions, int64 [b, 1, n], and True where they are filled up, or None."""
        if device not in self._placed:
            absent = None if self._absent is None else self._absent.to(device)
            self._placed[device] = self._index.to(device), absent
        index, absent = self._placed[device]
        return index[samples], None if absent is None else absent[samples]


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
