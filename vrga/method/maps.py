"""Maps of the image: where heads look on its tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from vrga.kernels.reference import KeySets

SCORES_AT_ONCE = 1 << 24  # 64 MB in float32


def image_attention(
    query: Tensor,
    key: Tensor,
    heads: list[int],
    sets: KeySets,
    gate: Tensor | None,
    places: Tensor,
    *,
    scale: float,
) -> Tensor:
    """Attention of some heads on the image's tokens, after steering.

    What `decode_attention_reference` weighs its values with, for these heads and keys.

    Args:
        query: [B, H, Q, d]; key: [B, H_kv, S, d].
        heads: ascending.
        sets: of the keys, for these query rows.
        gate: 1 where the head's gate is open, [B, heads, Q]; None: attention before steering.
        places: the image's tokens among the keys, int64 [B, n]; those outside of 0 to S - 1 get 0.

    Returns:
        float32 (or wider) [B, heads, Q, n].
    """
    rows, found = query.shape[2], []
    at_once = max(1, SCORES_AT_ONCE // (len(query) * len(heads) * key.shape[2]))
    for first in range(0, rows, at_once):
        part = slice(first, first + at_once)
        scores = _scores(query[:, :, part], key, heads) * scale  # [B, heads, Q, S]
        scores = scores.masked_fill(sets.hidden[:, :, part], -torch.inf)
        if gate is not None:
            # Weighing probabilities and renormalising is adding log weights to the scores.
            weight = torch.where(gate[:, :, part, None] > 0, sets.opened, sets.shut)
            weighted = scores + weight.log()
            empty = weighted.amax(-1, keepdim=True) == -torch.inf  # then the head stays unsteered
            scores = torch.where(empty, scores, weighted)
        index = places.clamp(0, key.shape[2] - 1)[:, None, None]
        found.append(scores.softmax(-1).gather(3, index.expand(*scores.shape[:3], -1)))
    inside = (places >= 0) & (places < key.shape[2])
    return torch.cat(found, 2) * inside[:, None, None]


def _scores(query: Tensor, key: Tensor, heads: list[int]) -> Tensor:
    """q . k of some heads, float32 or wider [B, heads, Q, S]; each KV head's keys are read once."""
    batch, _, rows, size = query.shape
    group, scores = query.shape[1] // key.shape[1], []
    for kv in sorted({head // group for head in heads}):
        members = [head for head in heads if head // group == kv]
        packed = query[:, members].reshape(batch, -1, size)
        scores.append((packed @ key[:, kv].transpose(1, 2)).view(batch, len(members), rows, -1))
    return torch.cat(scores, 1).to(torch.promote_types(query.dtype, torch.float32))
