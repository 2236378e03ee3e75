"""Decode attention with weights on keys that are known beforehand: a bias on the scores.

    out = sum_n w_n a_n v_n / sum_n w_n a_n = softmax(scale * q . k + log w) v

which is `decode_attention_reference` with a given gate, and without its sums. It is one call of
torch's own attention, which takes a mask per head. The query heads of a KV head go in as rows of
one head: on a CPU torch reads keys and values once for each head, so that packed ones are read
once for all.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Another kernel may have been put in the place of torch's name for it.
_attention = torch._C._nn.scaled_dot_product_attention


def biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, scale: float) -> Tensor:
    """Attention of the newest token of each row over the cache.

    Args:
        q: [B, H, 1, d]; k, v: [B, H_kv, S, d], any strides.
        bias: added to the scores, float32 or q's dtype [B, H, S]; on hidden keys, and where the
            weight is 0, the least finite number: some versions of torch make NaN of a block of
            -inf.
        scale: factor on q . k.

    Returns:
        [B, 1, H, d] in q's dtype.
    """
    batch, heads, _, size = q.shape
    kv_heads = k.shape[1]
    packed = q.reshape(batch, kv_heads, heads // kv_heads, size)
    mask = bias.unflatten(1, (kv_heads, -1))  # [B, H_kv, G, S]
    out = _attention(packed, k, v, attn_mask=mask, scale=scale)
    return out.reshape(batch, 1, heads, v.shape[3])
