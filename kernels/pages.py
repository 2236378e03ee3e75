"""Decode attention over a cache in pages, in plain torch: what kernels/decode.py means there.

Key n of a request lies on page `table[n // page]`, at place `n % page`. Pages are in any order, a
page may be of two requests at once, and what lies behind a request's length is garbage: it is of
no request yet, or was of one that is gone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import decode_attention_reference


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


def paged_decode_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    lengths: Tensor,
    flags: Tensor,
    images: Tensor,
    *,
    scale: float,
    opened: tuple[float, ...],
    closed: tuple[float, ...],
    focus: float,
    entropy: float,
    gate: Tensor | None = None,
    stats: Tensor | None = None,
) -> Tensor:
    """`decode_attention_reference` over pages.

    Args:
        q: queries [B, H, Q, d]; the Q rows are the last Q keys of a request, causal among
            themselves.
        k, v: pages [pages, H_kv, page, d], any strides with the head dimension contiguous; a page
            holds a multiple of 16 keys.
        table: pages of each request, int32 [B, n]; where a request has fewer, any page there is.
        lengths: keys of each request, those of its query rows among them, int32 [B]; at most
            n * page.
        flags: as there, int32 [B, F], F <= n * page; of a request's keys, in their order.
        images, scale, opened, closed, focus, entropy, gate, stats: as there.

    Returns:
        [B, Q, H, d] in q's dtype.
    """
    keys, values = gathered(k, table.long()), gathered(v, table.long())
    place = torch.arange(keys.shape[2], device=q.device)
    garbage = (place >= lengths[:, None])[:, None, :, None]  # times a weight of 0, NaN stays NaN
    extent = torch.stack([torch.zeros_like(lengths), lengths, lengths], 1)
    return decode_attention_reference(
        q, keys, values.masked_fill(garbage, 0), flags, images, scale=scale, opened=opened,
        closed=closed, focus=focus, entropy=entropy, gate=gate, extent=extent, stats=stats,
    )  # fmt: skip
