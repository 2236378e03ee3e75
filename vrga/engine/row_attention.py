"""Attention of a row that is looked at."""

from __future__ import annotations

import torch
from torch import Tensor


def row_attention(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Attention of one query row over the keys that it sees, in at least float32, [H, S].

    Args:
        query: [H, d]; keys: [H_kv, S, d].
    """
    kind = torch.promote_types(query.dtype, torch.float32)
    packed = query.to(kind).view(keys.shape[0], -1, query.shape[1])
    scores = (packed @ keys.to(kind).transpose(1, 2)).flatten(0, 1)
    return scores.mul_(scale).softmax(-1)
