"""The kernels in plain torch: what kernels/decode.py and kernels/probe.py mean.

Decode attention with a gated set of keys.

Every key of a row belongs to one group, 0 to G - 1, or is hidden. For one head and query row let
a be the softmax of the scaled scores over the visible keys, I the image keys, n = |I|. Then

    R      = (sum_I a / n) / (1 / visible keys)         image focus
    H_mass = -sum_I a log a                             nats
    gate   = R > focus and R > entropy * H_mass         or given per head
    w      = opened[group] if gate else closed[group]   weight of each key
    out    = sum(w a v) / sum(w a)

(arXiv 2603.14184: with group 1 = T, opened = (1, gamma), closed = (1, 1) this is the boost.)
A row whose weights leave no key stays unsteered.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .columns import ENTROPY, GATE, GROUP, MASS

SCORES_AT_ONCE = 1 << 18  # of attention_statistics: 1 MB in float32, which stays in a CPU's cache


@dataclass(frozen=True)
class KeySets:
    """What flags and extent say of every key, the same for all layers of a forward pass.

    Args:
        hidden: keys that a query row does not see, bool [B or 1, 1, Q, S].
        visible: number of keys it sees, [B or 1, Q].
        image: 1 on image keys, float [B, 1, 1, S].
        group: group of each key, [B, 1, 1, S].
        shut, opened: weight under a shut gate, and under an open one, float [B, 1, 1, S].
        groups: how many groups there are.
        open: so many keys, from the first, are hidden from no row, as far as is known without
            looking.
    """

    hidden: Tensor
    visible: Tensor
    image: Tensor
    group: Tensor
    shut: Tensor
    opened: Tensor
    groups: int
    open: int = 0
    _kept: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def members(self) -> Tensor:
        """1 where a key is of the image, and of each group, float [B, S, 1 + groups]; kept."""
        if "members" not in self._kept:  # no cached_property: its lock cannot be compiled
            groups = torch.arange(self.groups, device=self.group.device)[:, None]
            group = (self.group[:, 0] == groups).to(self.image.dtype)
            # Row by row in memory, where a CPU's matrix product is twice as fast.
            self._kept["members"] = torch.cat([self.image[:, 0], group], 1)  # [B, 1 + groups, S]
        return self._kept["members"].transpose(1, 2)

    def keys_per_image_key(self, images: Tensor) -> Tensor:
        """Keys that a query row sees over image keys `images` [B] of its sample, [B, 1, Q]; kept:
        it is asked for with the same ones."""
        if "per image" not in self._kept:
            self._kept["per image"] = (self.visible / images[:, None])[:, None]
        return self._kept["per image"]


def key_sets(
    flags: Tensor,
    extent: Tensor | None,
    keys: int,
    rows: int,
    opened: tuple[float, ...],
    closed: tuple[float, ...],
    dtype: torch.dtype,
) -> KeySets:
    """The sets of `keys` keys for `rows` query rows, with floats of `dtype`."""
    place = torch.arange(keys, device=flags.device)
    kinds = torch.nn.functional.pad(flags, (0, keys - flags.shape[1]))
    if extent is None:
        visible = keys - rows + 1 + torch.arange(rows, device=flags.device)[None]  # [1, Q]
        last = visible - 1  # the last key that each query row sees
        seen = kinds >= 0
    else:
        back = torch.arange(rows - 1, -1, -1, device=flags.device)
        visible, last = extent[:, 2:3] - back, extent[:, 1:2] - 1 - back  # [B, Q]
        seen = (kinds >= 0) & (place >= extent[:, :1])
    group = (kinds >> 1)[:, None, None]
    return KeySets(
        hidden=~(seen[:, None, None] & (place <= last[:, None, :, None])),
        visible=visible,
        image=((kinds >= 0) & (kinds & 1 > 0)).to(dtype)[:, None, None],
        group=group,
        shut=_weights(group, closed, dtype),
        opened=_weights(group, opened, dtype),
        groups=len(opened),
        open=keys - rows + 1 if extent is None else 0,
    )


def decode_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    flags: Tensor,
    images: Tensor,
    *,
    scale: float,
    opened: tuple[float, ...],
    closed: tuple[float, ...],
    focus: float,
    entropy: float,
    gate: Tensor | None = None,
    extent: Tensor | None = None,
    stats: Tensor | None = None,
    sets: KeySets | None = None,
) -> Tensor:
    """Attention of the newest tokens of each row over the cache, with gated key weights.

    Args:
        q: queries [B, H, Q, d]; the Q rows are the last Q visible keys, causal among themselves.
        k, v: cache [B, H_kv, S, d], any strides; values may be of another size.
        flags: int32 [B, F], F <= S: -1 hidden, else (group << 1) | on image. Keys from F on are
            in group 0 and not on an image.
        images: number n of image keys of each row, int32 [B].
        scale: factor on q . k.
        opened, closed: weight of each group where the gate is open, and where it is not.
        focus, entropy: thresholds of the dynamic gate.
        gate: bool [B, H]; given, it replaces the dynamic gate.
        extent: int32 [B, 3]: first visible key, end of the keys, and number of visible keys for
            the last query row; None: 0, S, S.
        stats: float32 [B, H, Q, 3 + groups], written if given: mass on I, H_mass in nats, gate,
            mass of each group before steering.
        sets: what `key_sets` makes of these arguments, when several layers share it.

    Returns:
        [B, Q, H, d] in q's dtype.
    """
    batch, heads, rows, size = q.shape
    kv_heads, keys = k.shape[1:3]
    # float32 accumulation for half precision, as every attention backend does; float64 stays.
    accurate = torch.promote_types(q.dtype, torch.float32)
    if sets is None:
        sets = key_sets(flags, extent, keys, rows, opened, closed, accurate)
    # Query row i of head h stands at index [h, i]; the heads of a KV head share its keys.
    packed = q.reshape(batch, kv_heads, -1, size)
    scores = (packed @ k.transpose(2, 3)).view(batch, heads, rows, keys).to(accurate).mul_(scale)
    if sets.open < keys:
        # The least finite number, whose share is 0, and 0 times its logarithm is 0.
        tail = sets.hidden[..., sets.open :]
        scores[..., sets.open :].masked_fill_(tail, torch.finfo(accurate).min)
    logarithm = scores.log_softmax(-1)
    share = logarithm.exp()  # a
    if sets.open < keys:
        share = share.masked_fill(sets.hidden, 0)  # where a row sees no key at all

    flat, image = share.flatten(1, 2), sets.members[..., :1]
    mass, told = (flat @ image).view(batch, heads, rows), None
    if gate is None or stats is not None:
        told = ((share * logarithm).flatten(1, 2) @ image).view(mass.shape)
    ratio = mass * sets.keys_per_image_key(images) if gate is None else None
    is_open = _is_open(gate, ratio, told, focus, entropy, mass.shape)
    if stats is not None and told is not None:
        stats[..., MASS], stats[..., ENTROPY], stats[..., GATE] = mass, -told, is_open
        # Apart from the image's, so that no bit depends on whether these are wanted.
        stats[..., GROUP:] = (flat @ sets.members[..., 1:]).view(batch, heads, rows, -1)

    weight = torch.where(is_open[..., None], sets.opened, sets.shut)
    if 0 in opened or 0 in closed:
        share, weight = _without_weightless(scores, weight, sets.hidden)
    weighted = share * weight
    total = weighted.sum(-1, keepdim=True).clamp_min(torch.finfo(accurate).tiny)
    out = (weighted / total).to(q.dtype).reshape(batch, kv_heads, -1, keys) @ v
    return out.view(batch, heads, rows, v.shape[3]).transpose(1, 2)


def attention_statistics(
    q: Tensor,
    k: Tensor,
    images: Tensor,
    sets: KeySets,
    stats: Tensor,
    *,
    scale: float,
    focus: float,
    entropy: float,
    gate: Tensor | None = None,
) -> None:
    """Write the `stats` of `decode_attention_reference` without computing its output.

    Query rows are taken some at a time, so that what is made of them stays small.
    """
    batch, heads, rows, size = q.shape
    at_once = max(1, SCORES_AT_ONCE // (batch * heads * k.shape[2]))
    for first in range(0, rows, at_once):
        part = slice(first, first + at_once)
        packed = q[:, :, part].reshape(batch, k.shape[1], -1, size)
        scores = (packed @ k.transpose(2, 3)).view(batch, heads, -1, k.shape[2])
        scores = scores.to(sets.image.dtype).mul_(scale)
        # The least finite number, whose share is 0, and 0 times its logarithm is 0.
        tail = sets.hidden[:, :, part, sets.open :]
        scores[..., sets.open :].masked_fill_(tail, torch.finfo(scores.dtype).min)
        # With e = exp(s - m) of the largest score m, and l = sum e, a is e / l, and sum_I a log a
        # is sum_I e (s - m) / l, less mass log l: one exponential, and two terms of one sign.
        scores.sub_(scores.amax(-1, keepdim=True))
        share = scores.exp()  # e
        sums = (share.flatten(1, 2) @ sets.members).view(*scores.shape[:3], -1)
        told = (share.mul_(scores).flatten(1, 2) @ sets.members[..., :1]).view(scores.shape[:3])
        total = sums[..., 1:].sum(-1).clamp_min_(torch.finfo(scores.dtype).tiny)  # l: all groups
        sums /= total[..., None]
        mass = sums[..., 0]
        told = told / total - mass * total.log()
        ratio = mass * sets.keys_per_image_key(images)[..., part]
        is_open = _is_open(gate, ratio, told, focus, entropy, mass.shape)
        three = torch.stack([mass, -told, is_open.to(mass.dtype)], -1)
        stats[:, :, part] = torch.cat([three, sums[..., 1:]], -1)


def probe_scores_reference(
    q: Tensor, k: Tensor, last: Tensor, hidden: Tensor, out: Tensor, *, offset: int, scale: float
) -> None:
    """Scores of one query row per sample, before the softmax.

    Args:
        q: queries of this pass [B, H, Q, d]; k: cache [B, H_kv, K, d], any strides.
        last: int32 [B], the query's position; it sees the keys up to itself. Samples whose query
            is not among the Q rows of this pass are left out.
        hidden: True on padding, bool [B, S].
        out: float32 [B, H, S], written: scale * q . k; -inf on keys that the query does not see.
        offset: position of the first query row.
    """
    row = last - offset
    here = (row >= 0) & (row < q.shape[2])
    row = row.clamp(0, q.shape[2] - 1).long()
    accurate = torch.promote_types(q.dtype, torch.float32)
    picked = q[torch.arange(len(q), device=q.device), :, row].to(accurate)  # [B, H, d]
    keys = min(k.shape[2], out.shape[2])
    packed = picked.view(len(q), k.shape[1], -1, q.shape[3])
    scores = (packed @ k[:, :, :keys].to(accurate).transpose(2, 3)).flatten(1, 2).mul_(scale)
    place = torch.arange(out.shape[2], device=q.device)
    unseen = (hidden | (place > last[:, None]))[:, None]  # [B, 1, S]
    scores.masked_fill_(unseen[..., :keys], -torch.inf)
    here = here[:, None, None]
    out[..., :keys] = torch.where(here, scores.to(out.dtype), out[..., :keys])
    out[..., keys:].masked_fill_(here, -torch.inf)


def _is_open(
    gate: Tensor | None,
    ratio: Tensor | None,
    told: Tensor | None,
    focus: float,
    entropy: float,
    shape: torch.Size,
) -> Tensor:
    """The gate, bool [B, H, Q] `shape`: given [B, H]; or R > focus and R > entropy * H_mass, by R
    and -H_mass, [B, H, Q] each."""
    if gate is not None:
        return gate.bool()[:, :, None].expand(shape)
    assert ratio is not None and told is not None  # computed where no gate is given
    return ratio > (told * -entropy).clamp_min(focus)


def _without_weightless(scores: Tensor, weight: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to keys that weigh something, and their weights, [B, H, Q, S] each.

    Keys of weight 0 must not set the maximum: they may hold all the mass. Where no key is left all
    are, and weigh 1.
    """
    least, gone = torch.finfo(scores.dtype).min, hidden | (weight == 0)
    empty = gone.all(-1, keepdim=True)
    gone = torch.where(empty, hidden, gone)
    share = scores.masked_fill(gone, least).log_softmax(-1).exp()
    return share.masked_fill(gone, 0), torch.where(empty, 1, weight)


def _weights(group: Tensor, weights: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """Each key's weight, of the shape of `group`."""
    found = torch.full_like(group, weights[0], dtype=dtype)
    for g, weight in enumerate(weights[1:], 1):
        if weight != weights[0]:
            found = torch.where(group == g, weight, found)
    return found
