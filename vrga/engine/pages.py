"""Keys and values that lie in pages, as vLLM keeps them."""

from __future__ import annotations

import torch
from torch import Tensor


def gathered(cache: Tensor, table: Tensor) -> Tensor:
    """The keys, or the values, of some requests, one after another as attention counts them.

    Args:
        cache: [pages, H_kv, page, d], any strides.
        table: pages of each request, int [B, n]; filled up with any page there is.

    Returns:
        [B, H_kv, n * page, d].
    """
    found = cache.transpose(0, 1)[:, table]  # [H_kv, B, n, page, d], a copy
    return found.flatten(2, 3).transpose(0, 1)


def row_attention(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Attention of one query row over the keys that it sees, in at least float32, [H, S].

    Args:
        query: [H, d]; keys: [H_kv, S, d].
    """
    kind = torch.promote_types(query.dtype, torch.float32)
    packed = query.to(kind).view(keys.shape[0], -1, query.shape[1])
    scores = (packed @ keys.to(kind).transpose(1, 2)).flatten(0, 1)
    return scores.mul_(scale).softmax(-1)
