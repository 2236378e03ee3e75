"""Decode attention of one query row on a CPU, with the gate that this step decides.

It is `decode_attention_reference` without a given gate and without weights of 0, for few calls of
torch and few passes over the scores: the weights go into the probabilities where they lie, and what
they sum to is divided out of the output, not out of the probabilities. The query heads of a KV head
go in as rows of one product, which reads keys and values once for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .columns import ENTROPY, GATE, GROUP, MASS


@dataclass(frozen=True)
class GatedKeys:
    """What is known of every key that a step sees, the same for all layers of a forward pass.

    Args:
        image: 1 on image keys, float [B, S, 1].
        groups: 1 where a key is of a group, float [B, S, G].
        shut: weight under a shut gate, float [B, 1, S]; more: what an open one adds to it.
        per_image: keys that the row sees over image keys, float [B, 1, 1].
        hidden: keys that the row does not see, bool [B or 1, 1, S]; None: there are none.
    """

    image: Tensor
    groups: Tensor
    shut: Tensor
    more: Tensor
    per_image: Tensor
    hidden: Tensor | None = None

    @classmethod
    def of(cls, rows: Tensor, per_image: Tensor, hidden: Tensor | None) -> GatedKeys:
        """Of the rows of a `table`."""
        # Products with rows that stand in memory one behind the other are twice as fast on a CPU.
        image, groups, shut, more = rows.split([1, rows.shape[1] - 3, 1, 1], 1)
        image, groups = image.transpose(1, 2), groups.transpose(1, 2)
        return cls(image, groups, shut, more, per_image, hidden)


def table(
    flags: Tensor, opened: tuple[float, ...], closed: tuple[float, ...], dtype: torch.dtype
) -> Tensor:
    """Of keys by their flags, int32 [B, F], what does not depend on the step, [B, 3 + G, F].

    Row by row: whether a key is on an image, and of each group; its weight under a shut gate, and
    what an open one adds to it.

    Args:
        opened, closed: weight of each group where the gate is open, and where it is not.
    """
    numbers = torch.arange(len(opened), device=flags.device)[:, None]
    groups = ((flags >> 1)[:, None] == numbers).to(dtype)  # of hidden keys none, [B, G, F]
    image = ((flags >= 0) & (flags & 1 > 0))[:, None].to(dtype)
    weights = torch.tensor([closed, opened], dtype=dtype, device=flags.device)
    shut, whole = (weights @ groups).split(1, 1)
    return torch.cat([image, groups, shut, whole - shut], 1)


def gated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: GatedKeys,
    *,
    scale: float,
    focus: float,
    entropy: float,
    stats: Tensor | None = None,
) -> Tensor:
    """Attention of the newest token of each row over the cache.

    Args:
        q: [B, H, 1, d]; k, v: [B, H_kv, S, d], any strides.
        scale: factor on q . k.
        focus, entropy: thresholds of the gate.
        stats: as of `decode_attention_reference`, [B, H, 1, 3 + G], written if given.

    Returns:
        [B, 1, H, d] in q's dtype.
    """
    batch, heads, _, size = q.shape
    kv_heads, length = k.shape[1:3]
    accurate, rows = keys.shut.dtype, batch * kv_heads
    narrow = q.dtype != accurate  # a conversion that does nothing costs as much as one that does
    scores = torch.bmm(q.reshape(rows, -1, size), k.flatten(0, 1).transpose(1, 2))
    scores = (scores.to(accurate) if narrow else scores).view(batch, heads, length).mul_(scale)
    if keys.hidden is not None:
        # The least finite number, whose share is 0, and 0 times its logarithm is 0.
        scores.masked_fill_(keys.hidden, torch.finfo(accurate).min)
    logarithm = scores.log_softmax(-1)
    share = logarithm.exp()  # a
    if keys.hidden is not None:
        share.masked_fill_(keys.hidden, 0)  # where a row sees no key at all
    mass = torch.bmm(share, keys.image)  # [B, H, 1]
    told = torch.bmm(logarithm.mul_(share), keys.image)
    if stats is not None:
        stats[..., MASS], stats[..., ENTROPY] = mass, -told
        stats[:, :, 0, GROUP:] = torch.bmm(share, keys.groups)
    is_open = (mass * keys.per_image > told.mul_(-entropy).clamp_min_(focus)).to(accurate)
    if stats is not None:
        stats[..., GATE] = is_open
    share.mul_(torch.addcmul(keys.shut, is_open, keys.more))
    total = share.sum(-1, keepdim=True).clamp_min_(torch.finfo(accurate).tiny)
    weighted = (share.to(q.dtype) if narrow else share).view(rows, -1, length)
    out = torch.bmm(weighted, v.flatten(0, 1)).view(batch, heads, -1)
    out = out.to(accurate).div_(total).to(q.dtype) if narrow else out.div_(total)
    return out[:, None]
