"""Decode attention with a gated set of keys: one pass over the cache, gate decided after it.

The meaning of every argument is that of `kernels.reference.decode_attention_reference`; where the
cache lies in pages, that of `kernels.pages.paged_decode_attention_reference`.

Steering is linear in sums over the groups of keys. For a head, a query row and a group g, over
the keys of that group, with s the scaled scores and m_g their maximum:

    l = sum e      l_I = sum_I e      u = sum_I e (s - m_g)      o = sum e v      e = exp(s - m_g)

A program owns one tile of `M = GROUPS * HALF` rows: the same HALF query rows once per group, each
copy seeing only the keys of its group (packed rows). So one `tl.dot` gives every o_g, K and V are
read once for all query heads of a KV head, and no group's sum can cancel another's: each has its
own maximum. After the pass the sums of all groups and key splits are brought to one maximum,

    R = (l_I / n) / (l / visible)      H_mass = (l_I log l - u) / l      w_g by the gate
    out = sum_g w_g o_g / sum_g w_g l_g

With one split the program writes the output itself; with more it leaves (m, l, l_I, u, o) per
group and split, and a second kernel merges them.

In a cache of pages, key n of a sample lies on page `table[n // PAGE]`, at `n % PAGE`; how the cache
lies in memory is a matter of its strides. PAGE is 0 where the cache is one piece.

Names: p_ pointer, s_ stride, b_ tile, o_ offsets, m_ mask, i_ index; sizes in capitals. b_m, b_l,
b_li, b_u and b_o are m, l, l_I, u and o.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import Tensors, check_arguments
from .launch import Launch, Workspace, call_key, interpreted, multiprocessors, tile_dtype

MAX_ROWS = 8  # query rows per sample of one launch
MAX_SPLITS = 256
BLOCKS_PER_SM = 3  # programs that should be in flight on each multiprocessor
MERGE_SPLITS = 16  # splits that the merge reads at a time
KEYS_PER_SPLIT = 128  # fewer are not worth a program of their own


@triton.jit
def _keep_nan(b_m, b_l):
    """A maximum that is NaN where the sum is: tl.max drops NaN, and -inf would read as no key."""
    return tl.where(b_l != b_l, float("nan"), b_m)


@triton.jit
def _merge(b_m, b_l, b_li, b_u):
    """Bring sums [GROUPS, X] to the maximum over X and add them up: four [GROUPS]."""
    b_top = tl.max(b_m, 1)
    b_diff = tl.where(b_m == float("-inf"), 0.0, b_m - b_top[:, None])
    b_c = tl.where(b_m == float("-inf"), 0.0, tl.exp2(b_diff))
    b_us = tl.sum(b_c * (b_u + b_diff * b_li), 1)
    b_sum = tl.sum(b_c * b_l, 1)
    return _keep_nan(b_top, b_sum), b_sum, tl.sum(b_c * b_li, 1), b_us


@triton.jit
def _statistics(b_m, b_l, b_li, b_u):
    """Mass on I and H_mass in nats [X], and each group's mass [GROUPS, X], of sums [GROUPS, X]."""
    b_top = tl.max(b_m, 0)
    b_diff = tl.where(b_m == float("-inf"), 0.0, b_m - b_top[None, :])
    b_c = tl.where(b_m == float("-inf"), 0.0, tl.exp2(b_diff))
    b_total = tl.sum(b_c * b_l, 0)
    b_total = tl.where(b_total == 0.0, 1.0, b_total)  # no visible key
    b_mass = tl.sum(b_c * b_li, 0) / b_total
    b_us = tl.sum(b_c * (b_u + b_diff * b_li), 0) / b_total
    b_us = 0.6931471805599453 * b_us  # log 2: the sums are in base 2
    return b_mass, b_mass * tl.log(b_total) - b_us, b_c * b_l / b_total[None, :]


@triton.jit
def _is_open(p_gate, o_gate, p_images, i_b, b_mass, b_entropy, visible, focus, entropy, HAS_GATE):
    """The gate: given, or R > focus and R > entropy * H_mass; shut without image keys."""
    if HAS_GATE:
        return tl.load(p_gate + o_gate) != 0
    else:
        n = tl.load(p_images + i_b)
        b_ratio = b_mass * visible / tl.maximum(n, 1)
        return (n > 0) & (b_ratio > focus) & (b_ratio > entropy * b_entropy)


@triton.jit
def _factors(b_open, o_g, b_m, b_l, a0, a1, a2, a3, b0, b1, b2, b3):
    """The factor on each group's sums, w_g e^(m_g - peak) / sum_g w_g l_g; [GROUPS, X].

    The weights w are a0 to a3 where the gate `b_open` [X] is open and b0 to b3 where it is not.
    """
    o_g = o_g[:, None]
    b_opened = tl.where(o_g == 0, a0, tl.where(o_g == 1, a1, tl.where(o_g == 2, a2, a3)))
    b_closed = tl.where(o_g == 0, b0, tl.where(o_g == 1, b1, tl.where(o_g == 2, b2, b3)))
    b_w = tl.where(b_open[None, :], b_opened, b_closed)
    b_peak = tl.max(tl.where(b_w > 0.0, b_m, float("-inf")), 0)
    # Weights that leave no key leave the row as it is.
    b_none = b_peak == float("-inf")
    b_w = tl.where(b_none[None, :], 1.0, b_w)
    b_peak = tl.where(b_none, tl.max(b_m, 0), b_peak)
    m_c = (b_m == float("-inf")) | (b_w == 0.0)
    b_c = tl.where(m_c, 0.0, b_w * tl.exp2(tl.where(m_c, 0.0, b_m - b_peak[None, :])))
    b_den = tl.sum(b_c * b_l, 0)
    return b_c / tl.where(b_den == 0.0, 1.0, b_den)[None, :]


@triton.jit
def _store_statistics(p_stats, o_stats, o_g, b_mass, b_entropy, b_open, b_share, m_row, COLUMNS):
    """Write mass, H_mass, gate and the groups' masses of rows [X] to columns 0 to COLUMNS - 1."""
    tl.store(p_stats + o_stats, b_mass, mask=m_row)
    tl.store(p_stats + o_stats + 1, b_entropy, mask=m_row)
    tl.store(p_stats + o_stats + 2, b_open.to(tl.float32), mask=m_row)
    m_g = m_row[None, :] & (o_g < COLUMNS - 3)[:, None]
    tl.store(p_stats + o_stats[None, :] + 3 + o_g[:, None], b_share, mask=m_g)


@triton.jit(do_not_specialize=["S", "F", "SPLITS", "s_fb", "s_tb"])
def decode_kernel(
    p_q, p_k, p_v, p_flags, p_table,
    p_part, p_acc,  # what each split leaves: m, l, l_I and u; o
    p_images, p_extent, p_gate, p_out, p_stats,
    s_qb, s_qh, s_qq, s_kb, s_kh, s_kn, s_vb, s_vh, s_vn,  # strides: batch, head, query row or key
    s_fb, s_tb, s_gb, s_gh,  # of flags, table and gate
    S, F, SPLITS,  # keys; keys that have flags; splits
    scale, focus, entropy,
    a0, a1, a2, a3, b0, b1, b2, b3,  # w_g of each group: an open gate's, and a shut one's
    Q: tl.constexpr, G: tl.constexpr, HKV: tl.constexpr,  # query rows, heads of a KV head, KV heads
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,  # head size, padded; keys of a tile
    HALF: tl.constexpr, GROUPS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    HAS_EXTENT: tl.constexpr, HAS_GATE: tl.constexpr, HAS_STATS: tl.constexpr,
    PAGE: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """One split of the keys for HALF query rows of one KV head; grid (splits, HKV * BLOCKS, B).

    Tensors are those of `decode_attention`; compile-time constants are `kernel_constants`'.
    """
    M: tl.constexpr = GROUPS * HALF
    i_s = tl.program_id(0)
    i_kv = tl.program_id(1) // BLOCKS
    i_block = tl.program_id(1) % BLOCKS
    i_b = tl.program_id(2).to(tl.int64)

    if PAGE:  # each sample's length is all that there is of an extent
        start = 0
        end = tl.load(p_extent + i_b)
        visible = end
    elif HAS_EXTENT:
        start = tl.load(p_extent + i_b * 3)
        end = tl.load(p_extent + i_b * 3 + 1)
        visible = tl.load(p_extent + i_b * 3 + 2)
    else:
        start = 0
        end = S
        visible = S
    chunk = tl.cdiv(tl.cdiv(end - start, SPLITS), BN) * BN
    first = start + i_s * chunk
    stop = tl.minimum(first + chunk, end)

    # Query row r = i_q * G + g; its copies stand HALF rows apart, one per group.
    o_m = tl.arange(0, M)
    o_r = i_block * HALF + o_m % HALF
    m_r = o_r < G * Q
    i_q = o_r // G
    i_h = i_kv * G + o_r % G
    i_group = o_m // HALF
    last = end - Q + i_q  # the last key that each row sees
    o_d = tl.arange(0, BD)
    m_d = o_d < D
    o_q = i_h.to(tl.int64) * s_qh + i_q.to(tl.int64) * s_qq
    b_q = tl.load(
        p_q + i_b * s_qb + o_q[:, None] + o_d[None, :], mask=m_r[:, None] & m_d[None, :], other=0.0
    ).to(DTYPE)  # [M, BD]

    scale2 = scale * 1.4426950408889634  # log2 e: scores, and all sums of them, are in base 2
    o_n = tl.arange(0, BN)
    i_store = 0 if PAGE else i_b  # pages belong to nobody, and the strides s_kb, s_vb lead to them
    p_kt = p_k + i_store * s_kb + i_kv.to(tl.int64) * s_kh + o_d[:, None]
    p_vt = p_v + i_store * s_vb + i_kv.to(tl.int64) * s_vh + o_d[None, :]

    # m, l, l_I, u and o of the keys so far; sums stay apart by the key's place in its tile.
    b_m = tl.full([M], float("-inf"), tl.float32)
    b_l = tl.zeros([M, BN], tl.float32)
    b_li = tl.zeros([M, BN], tl.float32)
    b_u = tl.zeros([M, BN], tl.float32)
    b_o = tl.zeros([M, BD], tl.float32)
    for i_n in range(first, stop, BN):
        o_k = i_n + o_n
        m_k = o_k < stop
        b_f = tl.load(p_flags + i_b * s_fb + o_k, mask=m_k & (o_k < F), other=0)  # [BN]
        p_kn, p_vn, o_k64 = p_kt, p_vt, o_k.to(tl.int64)
        if PAGE:  # 16 keys in a row, from a multiple of 16 on, are on one page
            page0 = tl.load(p_table + i_b * s_tb + i_n // PAGE)
            page1 = tl.load(p_table + i_b * s_tb + tl.minimum(i_n + 16, stop - 1) // PAGE)
            b_page = tl.where(o_n < 16, page0, page1).to(tl.int64)  # [BN]
            p_kn, p_vn = p_kt + b_page[None, :] * s_kb, p_vt + b_page[:, None] * s_vb
            o_k64 = (o_k % PAGE).to(tl.int64)
        b_k = tl.load(p_kn + o_k64[None, :] * s_kn, mask=m_d[:, None] & m_k[None, :], other=0.0).to(
            DTYPE
        )  # [BD, BN]
        b_s = tl.dot(b_q, b_k, input_precision=PRECISION) * scale2  # [M, BN]
        m_s = (m_k & (b_f >= 0))[None, :] & ((b_f >> 1)[None, :] == i_group[:, None])
        m_s = m_s & (o_k[None, :] <= last[:, None])
        b_s = tl.where(m_s, b_s, float("-inf"))
        b_top = tl.maximum(b_m, tl.max(b_s, 1))
        # A row that has seen none of its keys yet keeps maximum -inf and all sums 0.
        b_ref = tl.where(b_top == float("-inf"), 0.0, b_top)
        b_down = tl.where(b_m == float("-inf"), 0.0, b_m - b_ref)
        b_m = b_top
        b_e = tl.exp2(b_s - b_ref[:, None])  # e, relative to the maximum so far
        b_scale = tl.exp2(b_down)  # brings the sums so far to that maximum
        b_ei = tl.where((b_f & 1)[None, :] > 0, b_e, 0.0)  # e of image keys, and e (s - m)
        b_es = tl.where(b_ei > 0.0, b_ei * (b_s - b_ref[:, None]), 0.0)
        b_u = (b_u + b_down[:, None] * b_li) * b_scale[:, None] + b_es
        b_li = b_li * b_scale[:, None] + b_ei
        b_l = b_l * b_scale[:, None] + b_e
        b_v = tl.load(p_vn + o_k64[:, None] * s_vn, mask=m_k[:, None] & m_d[None, :], other=0.0).to(
            DTYPE
        )  # [BN, BD]
        b_o = b_o * b_scale[:, None]
        b_o = tl.dot(b_e.to(DTYPE), b_v, b_o, input_precision=PRECISION)
    b_l = tl.sum(b_l, 1)
    b_m = _keep_nan(b_m, b_l)
    b_li = tl.sum(b_li, 1)
    b_u = tl.sum(b_u, 1)

    if SINGLE:
        # [GROUPS, HALF]: every copy of a query row in one column.
        b_m = tl.reshape(b_m, [GROUPS, HALF])
        b_l = tl.reshape(b_l, [GROUPS, HALF])
        b_li = tl.reshape(b_li, [GROUPS, HALF])
        b_u = tl.reshape(b_u, [GROUPS, HALF])
        b_o = tl.reshape(b_o, [GROUPS, HALF, BD])
        o_g = tl.arange(0, GROUPS)
        o_row = i_block * HALF + tl.arange(0, HALF)
        m_row = o_row < G * Q
        j_q = tl.minimum(o_row // G, Q - 1)
        j_h = i_kv * G + o_row % G
        b_mass, b_entropy, b_share = _statistics(b_m, b_l, b_li, b_u)
        b_open = _is_open(
            p_gate, i_b * s_gb + j_h * s_gh, p_images, i_b, b_mass, b_entropy,
            visible - (Q - 1 - j_q), focus, entropy, HAS_GATE,
        )  # fmt: skip
        if HAS_STATS:
            o_stats = ((i_b * (HKV * G) + j_h) * Q + j_q) * COLUMNS
            _store_statistics(
                p_stats, o_stats, o_g, b_mass, b_entropy, b_open, b_share, m_row, COLUMNS
            )
        b_c = _factors(b_open, o_g, b_m, b_l, a0, a1, a2, a3, b0, b1, b2, b3)[:, :, None]
        b_out = tl.sum(tl.where(b_c == 0.0, 0.0, b_c * b_o), 0)
        o_out = ((i_b * Q + j_q) * (HKV * G) + j_h) * D
        tl.store(
            p_out + o_out[:, None] + o_d[None, :],
            b_out.to(p_out.dtype.element_ty),
            mask=m_row[:, None] & m_d[None, :],
        )
    else:
        # part: [B, HKV * BLOCKS, 4, M, SPLITS]; acc: [B, HKV * BLOCKS, M, SPLITS, BD]
        i_tile = i_b * (HKV * BLOCKS) + tl.program_id(1)
        o_part = (i_tile * 4 * M + o_m) * SPLITS + i_s
        tl.store(p_part + o_part, b_m)
        tl.store(p_part + o_part + M * SPLITS, b_l)
        tl.store(p_part + o_part + 2 * M * SPLITS, b_li)
        tl.store(p_part + o_part + 3 * M * SPLITS, b_u)
        o_acc = ((i_tile * M + o_m) * SPLITS + i_s) * BD
        tl.store(p_acc + o_acc[:, None] + o_d[None, :], b_o)


@triton.jit(do_not_specialize=["S", "SPLITS"])
def merge_kernel(
    p_part, p_acc, p_images, p_extent, p_gate, p_out, p_stats,
    s_gb, s_gh, S, SPLITS, focus, entropy, a0, a1, a2, a3, b0, b1, b2, b3,
    Q: tl.constexpr, G: tl.constexpr, HKV: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr,  # BS: splits of a tile
    HALF: tl.constexpr, GROUPS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr,
    HAS_EXTENT: tl.constexpr, HAS_GATE: tl.constexpr, HAS_STATS: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """Merge the splits of one query row, decide its gate, write it; grid (HKV * G * Q, B).

    Arguments are those of `decode_kernel`.
    """
    M: tl.constexpr = GROUPS * HALF
    i_kv = tl.program_id(0) // (G * Q)
    i_r = tl.program_id(0) % (G * Q)
    i_b = tl.program_id(1).to(tl.int64)
    i_q = i_r // G
    i_h = i_kv * G + i_r % G
    i_tile = i_b * (HKV * BLOCKS) + i_kv * BLOCKS + i_r // HALF

    o_g = tl.arange(0, GROUPS)
    o_s = tl.arange(0, BS)
    o_d = tl.arange(0, BD)
    o_m = o_g * HALF + i_r % HALF
    o_part = (i_tile * 4 * M + o_m) * SPLITS  # [GROUPS]
    b_m = tl.full([GROUPS, BS], float("-inf"), tl.float32)
    b_l = tl.zeros([GROUPS, BS], tl.float32)
    b_li = tl.zeros([GROUPS, BS], tl.float32)
    b_u = tl.zeros([GROUPS, BS], tl.float32)
    for i_s in range(0, SPLITS, BS):
        p_b = p_part + o_part[:, None] + (i_s + o_s)[None, :]
        m_b = ((i_s + o_s) < SPLITS)[None, :] & (o_g < GROUPS)[:, None]
        b_m1 = tl.load(p_b, mask=m_b, other=float("-inf"))
        b_l1 = tl.load(p_b + M * SPLITS, mask=m_b, other=0.0)
        b_li1 = tl.load(p_b + 2 * M * SPLITS, mask=m_b, other=0.0)
        b_u1 = tl.load(p_b + 3 * M * SPLITS, mask=m_b, other=0.0)
        b_top = tl.maximum(b_m, b_m1)
        b_d0 = tl.where(b_m == float("-inf"), 0.0, b_m - b_top)
        b_d1 = tl.where(b_m1 == float("-inf"), 0.0, b_m1 - b_top)
        b_c0 = tl.exp2(b_d0)
        b_c1 = tl.exp2(b_d1)
        b_u = b_c0 * (b_u + b_d0 * b_li) + b_c1 * (b_u1 + b_d1 * b_li1)
        b_li = b_c0 * b_li + b_c1 * b_li1
        b_l = b_c0 * b_l + b_c1 * b_l1
        b_m = b_top
    b_m, b_l, b_li, b_u = _merge(_keep_nan(b_m, b_l), b_l, b_li, b_u)

    if PAGE:
        visible = tl.load(p_extent + i_b)
    elif HAS_EXTENT:
        visible = tl.load(p_extent + i_b * 3 + 2)
    else:
        visible = S
    b_mass, b_entropy, b_share = _statistics(
        b_m[:, None], b_l[:, None], b_li[:, None], b_u[:, None]
    )  # [1], [1], [GROUPS, 1]
    o_1 = tl.arange(0, 1)
    b_open = _is_open(
        p_gate, i_b * s_gb + i_h * s_gh + o_1, p_images, i_b, b_mass, b_entropy,
        visible - (Q - 1 - i_q), focus, entropy, HAS_GATE,
    )  # fmt: skip
    if HAS_STATS:
        o_stats = ((i_b * (HKV * G) + i_h) * Q + i_q) * COLUMNS + o_1
        _store_statistics(
            p_stats, o_stats, o_g, b_mass, b_entropy, b_open, b_share, o_1 == 0, COLUMNS
        )
    b_c = _factors(b_open, o_g, b_m[:, None], b_l[:, None], a0, a1, a2, a3, b0, b1, b2, b3)

    b_out = tl.zeros([BD], tl.float32)
    for i_g in tl.static_range(GROUPS):
        b_cg = tl.sum(tl.where(o_g[:, None] == i_g, b_c, 0.0))
        b_mg = tl.max(tl.where(o_g == i_g, b_m, float("-inf")))
        o_row = i_tile * M + i_g * HALF + i_r % HALF
        p_pg = p_part + (i_tile * 4 * M + i_g * HALF + i_r % HALF) * SPLITS
        if b_cg != 0.0:
            for i_s in range(0, SPLITS, BS):
                m_s = (i_s + o_s) < SPLITS
                b_ms = tl.load(p_pg + i_s + o_s, mask=m_s, other=float("-inf"))
                b_cs = tl.where(b_ms == float("-inf"), 0.0, b_cg * tl.exp2(b_ms - b_mg))
                b_a = tl.load(
                    p_acc + (o_row * SPLITS + i_s + o_s)[:, None] * BD + o_d[None, :],
                    mask=m_s[:, None],
                    other=0.0,
                )  # [BS, BD]
                b_out += tl.sum(tl.where(b_cs[:, None] == 0.0, 0.0, b_cs[:, None] * b_a), 0)
    o_out = ((i_b * Q + i_q) * (HKV * G) + i_h) * D
    tl.store(p_out + o_out + o_d, b_out.to(p_out.dtype.element_ty), mask=o_d < D)


def kernel_constants(
    heads: int,
    kv_heads: int,
    rows: int,
    size: int,
    groups: int,
    *,
    extent: bool,
    gate: bool,
    stats: bool,
    page: int = 0,
) -> dict[str, int | bool]:
    """The compile-time constants that both kernels share.

    HALF query rows stand in a tile, once for each of GROUPS copies; BLOCKS tiles hold all rows of
    a KV head. `tl.dot` needs 16 rows, which two copies of up to 8 query rows just fill.
    """
    per_kv = heads // kv_heads
    half = 8 if per_kv * rows <= 8 else 16
    return dict(
        Q=rows,
        G=per_kv,
        HKV=kv_heads,
        D=size,
        BD=triton.next_power_of_2(size),
        HALF=half,
        GROUPS=2 if groups <= 2 else 4,
        COLUMNS=3 + groups,
        BLOCKS=triton.cdiv(per_kv * rows, half),
        HAS_EXTENT=extent,
        HAS_GATE=gate,
        HAS_STATS=stats,
        PAGE=page,
    )


def launch_options(size: int, dtype: torch.dtype, paged: bool = False) -> dict[str, int]:
    """Key tile, warps and pipeline stages for a head size padded to a power of two.

    A tile of keys should give every thread loads of 16 bytes, and stay in registers. The number of
    its page is loaded before it, for which the compiler takes half of the stages.
    """
    key = size * dtype.itemsize  # bytes
    stages = 4 if key <= 256 else 2
    return {
        "BN": 32 if key <= 512 else 16,  # at most 32: two runs of 16 keys, see the kernel
        "num_warps": 2 if key < 64 else 4,
        "num_stages": 2 * stages - 1 if paged else stages,
    }


# scale; weights under an open gate, and under a shut one; focus, entropy; splits
Numbers = tuple[float, tuple[float, ...], tuple[float, ...], float, float, int | None]


@dataclass(frozen=True)
class Plan:
    """What a call of `decode_attention` launches, for arguments of given shapes and numbers.

    Args:
        decode, merge: the launches; `merge` is None with one split.
        scratch: float32 that the splits leave for the merge; the first `sums` of them hold o.
    """

    decode: Launch
    merge: Launch | None
    scratch: int
    sums: int


def decode_attention(
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
    workspace: Workspace | None = None,
    splits: int | None = None,
) -> Tensor:
    """`decode_attention_reference` on the GPU (or in Triton's interpreter).

    Beyond the reference's arguments:

    Args:
        workspace: scratch memory and launches kept between calls; None makes both anew. Layers of
            a forward pass that share it check their arguments and bind the kernel once.
        splits: key splits, 1 to 256; None chooses by the device's size.

    Raises:
        ValueError: an argument that does not fit, before anything is launched.
    """
    if q.ndim == 4 and q.shape[2] > MAX_ROWS:

        def attend(block: Tensor, later: int, written: Tensor | None) -> Tensor:
            end, cut = k.shape[2], extent
            if extent is None:
                end -= later
            else:
                cut = extent.clone()
                cut[:, 1:] -= later
            return decode_attention(
                block, k[:, :, :end], v[:, :, :end], flags[:, :end], images, scale=scale,
                opened=opened, closed=closed, focus=focus, entropy=entropy, gate=gate, extent=cut,
                stats=written, workspace=workspace, splits=splits,
            )  # fmt: skip

        return _in_blocks(q, stats, attend)
    tensors = Tensors(q, k, v, flags, images, gate, stats, extent)
    return _attention(tensors, (scale, opened, closed, focus, entropy, splits), workspace)


def paged_decode_attention(
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
    workspace: Workspace | None = None,
    splits: int | None = None,
) -> Tensor:
    """`paged_decode_attention_reference` on the GPU (or in Triton's interpreter): one pass over
    the pages.

    Beyond the reference's arguments: `workspace` and `splits`, as of `decode_attention`. Splits
    are chosen for a request as long as the table is wide: give the columns that are in use.

    Raises:
        ValueError: an argument that does not fit, before anything is launched.
    """
    if q.ndim == 4 and q.shape[2] > MAX_ROWS:

        def attend(block: Tensor, later: int, written: Tensor | None) -> Tensor:
            return paged_decode_attention(
                block, k, v, table, lengths - later, flags, images, scale=scale, opened=opened,
                closed=closed, focus=focus, entropy=entropy, gate=gate, stats=written,
                workspace=workspace, splits=splits,
            )  # fmt: skip

        return _in_blocks(q, stats, attend)
    tensors = Tensors(q, k, v, flags, images, gate, stats, table=table, lengths=lengths)
    return _attention(tensors, (scale, opened, closed, focus, entropy, splits), workspace)


def _in_blocks(
    q: Tensor, stats: Tensor | None, attend: Callable[[Tensor, int, Tensor | None], Tensor]
) -> Tensor:
    """Attention of many query rows: MAX_ROWS at a time, each block with its own end.

    Args:
        attend: takes a block of the queries, how many keys lie behind the last that it sees, and
            where its statistics go.
    """
    rows, parts = q.shape[2], []
    for first in range(0, rows, MAX_ROWS):
        block = slice(first, min(first + MAX_ROWS, rows))
        written = None if stats is None else torch.empty_like(stats[:, :, block])
        parts.append(attend(q[:, :, block], rows - block.stop, written))
        if stats is not None and written is not None:
            stats[:, :, block] = written
    return torch.cat(parts, 1)


def _attention(tensors: Tensors, numbers: Numbers, workspace: Workspace | None) -> Tensor:
    """Launch what a call takes."""
    q, k, v, flags, images, gate, stats, extent, table, lengths = tensors
    workspace = workspace or Workspace()
    key = call_key(tensors, numbers)
    plan = workspace.plans.get(key)
    if plan is None:
        plan = _plan(tensors, *numbers)
        workspace.remember(key, plan)

    out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3])
    part = acc = out  # never read with one split
    if plan.merge is not None:
        acc = workspace.floats(plan.scratch, q.device)
        part = acc[plan.sums :]
    # Arguments that are absent still need a pointer of some type.
    ends = extent if table is None else lengths
    shared = (
        part,
        acc,
        images,
        images if ends is None else ends,
        images if gate is None else gate.view(torch.uint8),
        out,
        out if stats is None else stats,
    )
    with torch.cuda.device_of(q):
        plan.decode(q, k, v, flags, images if table is None else table, *shared)
        if plan.merge is not None:
            plan.merge(*shared)
    return out


def _plan(
    tensors: Tensors,
    scale: float,
    opened: tuple[float, ...],
    closed: tuple[float, ...],
    focus: float,
    entropy: float,
    splits: int | None,
) -> Plan:
    """Check the arguments of a call and decide what it launches."""
    check_arguments(tensors, opened, closed)
    q, k, v, flags, _, gate, stats, extent, table, _ = tensors
    page, keys, row = 0, k.shape[2], 0
    if table is not None:
        page, keys, row = keys, keys * table.shape[1], table.stride(0)
    batch, heads, rows, size = q.shape
    kv_heads = k.shape[1]
    constants = kernel_constants(
        heads, kv_heads, rows, size, len(opened), extent=extent is not None,
        gate=gate is not None, stats=stats is not None, page=page,
    )  # fmt: skip
    blocks = constants["BLOCKS"]
    splits = _splits(splits, q, keys, batch * kv_heads * blocks)

    unused = (1.0,) * (4 - len(opened))
    weights = (focus, entropy, *opened, *unused, *closed, *unused)
    gate_strides = (0, 0) if gate is None else gate.stride()
    decode = Launch(
        decode_kernel,
        (splits, kv_heads * blocks, batch),
        (
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], flags.stride(0), row,
            *gate_strides, keys, flags.shape[1], splits, scale, *weights,
        ),
        dict(
            DTYPE=tile_dtype(decode_kernel, q.dtype),
            PRECISION="ieee",
            SINGLE=splits == 1,
            **constants,
        ),
        launch_options(constants["BD"], q.dtype, paged=page > 0),
    )  # fmt: skip
    merge = None
    if splits > 1:
        merge = Launch(
            merge_kernel,
            (heads * rows, batch),
            (*gate_strides, keys, splits, *weights),
            dict(BS=MERGE_SPLITS, **constants),
            {"num_warps": 4},
        )
    tiles = batch * kv_heads * blocks * constants["GROUPS"] * constants["HALF"] * splits
    return Plan(decode, merge, tiles * (4 + constants["BD"]), tiles * constants["BD"])


def _splits(given: int | None, q: Tensor, keys: int, programs: int) -> int:
    """Key splits of a call: as given, or by the device's size.

    Args:
        programs: of one split.
    """
    if given is None:
        wanted = (
            4
            if interpreted(decode_kernel)
            else multiprocessors(q.device.index or 0) * BLOCKS_PER_SM
        )
        found = min(triton.cdiv(keys, KEYS_PER_SPLIT), triton.cdiv(wanted, programs))
        return min(max(found, 1), MAX_SPLITS)
    if not 1 <= given <= MAX_SPLITS:
        raise ValueError(f"splits={given} is out of range: 1 to {MAX_SPLITS}")
    return given


_OPERATORS_PLANS = Workspace(keep_memory=False)


@torch.library.custom_op("vrga::decode_attention", mutates_args=("stats",))
def _decode_attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    flags: Tensor,
    images: Tensor,
    scale: float,
    opened: list[float],
    closed: list[float],
    focus: float,
    entropy: float,
    gate: Tensor | None,
    extent: Tensor | None,
    stats: Tensor | None,
) -> Tensor:
    return decode_attention(
        q, k, v, flags, images, scale=scale, opened=tuple(opened), closed=tuple(closed),
        focus=focus, entropy=entropy, gate=gate, extent=extent, stats=stats,
        workspace=_OPERATORS_PLANS,
    )  # fmt: skip


@_decode_attention_op.register_fake
def _(q, k, v, flags, images, scale, opened, closed, focus, entropy, gate, extent, stats):
    batch, heads, rows, size = q.shape
    return q.new_empty(batch, rows, heads, size)


def decode_attention_op(
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
) -> Tensor:
    """`decode_attention` as the operator vrga::decode_attention, which torch.compile keeps."""
    return _decode_attention_op(
        q, k, v, flags, images, scale, list(opened), list(closed), focus, entropy, gate, extent,
        stats,
    )  # fmt: skip
