"""Scores of one query row per sample over all its keys, without the S x S matrix.

The meaning of every argument is that of `kernels.reference.probe_scores_reference`:

    out[b, h, n] = scale * q[b, h, last[b] - offset] . k[b, h // G, n]      -inf where not visible

One program scores one tile of keys for the G query heads of a KV head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import check_probe
from .launch import Launch, Workspace, call_key, tile_dtype


@triton.jit(do_not_specialize=["S", "KEYS", "OFFSET", "ROWS", "s_ob", "s_oh", "s_hb"])
def probe_kernel(
    p_q, p_k, p_last, p_hidden, p_out,
    s_qb, s_qh, s_qq, s_kb, s_kh, s_kn, s_ob, s_oh, s_hb,
    S, KEYS, OFFSET, ROWS, scale,
    G: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, M: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys of one KV head; grid (cdiv(S, BN), H_kv, B)."""
    i_kv = tl.program_id(1).to(tl.int64)
    i_b = tl.program_id(2).to(tl.int64)
    last = tl.load(p_last + i_b)
    row = last - OFFSET
    if (row >= 0) & (row < ROWS):  # else the sample's query is in another pass
        o_n = tl.program_id(0) * BN + tl.arange(0, BN)
        o_g = tl.arange(0, M)
        o_d = tl.arange(0, BD)
        m_g, m_d, m_n = o_g < G, o_d < D, o_n < S
        o_h = i_kv * G + o_g
        b_q = tl.load(
            p_q + i_b * s_qb + o_h[:, None] * s_qh + row.to(tl.int64) * s_qq + o_d[None, :],
            mask=m_g[:, None] & m_d[None, :], other=0.0,
        ).to(DTYPE)  # [M, BD]  # fmt: skip
        m_k = m_n & (o_n < KEYS)
        b_k = tl.load(
            p_k + i_b * s_kb + i_kv * s_kh + o_n.to(tl.int64)[None, :] * s_kn + o_d[:, None],
            mask=m_d[:, None] & m_k[None, :], other=0.0,
        ).to(DTYPE)  # [BD, BN]  # fmt: skip
        b_s = tl.dot(b_q, b_k, input_precision=PRECISION) * scale  # [M, BN]
        b_hidden = tl.load(p_hidden + i_b * s_hb + o_n, mask=m_n, other=1)
        m_s = m_k & (o_n <= last) & (b_hidden == 0)
        b_s = tl.where(m_s[None, :], b_s, float("-inf"))
        tl.store(
            p_out + i_b * s_ob + o_h[:, None] * s_oh + o_n[None, :],
            b_s, mask=m_g[:, None] & m_n[None, :],
        )  # fmt: skip


def probe_scores(
    q: Tensor,
    k: Tensor,
    last: Tensor,
    hidden: Tensor,
    out: Tensor,
    *,
    offset: int,
    scale: float,
    workspace: Workspace | None = None,
) -> None:
    """`probe_scores_reference` on the GPU (or in Triton's interpreter).

    Args:
        workspace: keeps launches between calls; None makes each anew.

    Raises:
        ValueError: an argument that does not fit, before anything is launched.
    """
    workspace = workspace or Workspace()
    tensors = (q, k, last, hidden, out)
    key = call_key(tensors, ("probe", offset, scale))
    launch = workspace.plans.get(key)
    if launch is None:
        launch = _launch(*tensors, offset, scale)
        workspace.remember(key, launch)
    with torch.cuda.device_of(q):
        launch(q, k, last, hidden.view(torch.uint8), out)


def _launch(q: Tensor, k: Tensor, last, hidden, out: Tensor, offset: int, scale: float) -> Launch:
    """Check the arguments of a call and bind them."""
    check_probe(q, k, last, hidden, out)
    batch, heads, rows, size = q.shape
    kv_heads, keys = k.shape[1:3]
    constants = probe_constants(heads // kv_heads, size, q.dtype)
    length = out.shape[2]
    return Launch(
        probe_kernel,
        (triton.cdiv(length, constants["BN"]), kv_heads, batch),
        (
            *q.stride()[:3],
            *k.stride()[:3],
            *out.stride()[:2],
            hidden.stride(0),
            length,
            keys,
            offset,
            rows,
            scale,
        ),
        dict(DTYPE=tile_dtype(probe_kernel, q.dtype), PRECISION="ieee", **constants),
        {"num_warps": 4},
    )


def probe_constants(per_kv: int, size: int, dtype: torch.dtype) -> dict[str, int]:
    """The compile-time constants for G query heads per KV head of a head size."""
    padded = triton.next_power_of_2(size)
    rows = max(16, triton.next_power_of_2(per_kv))
    keys = 64 if padded * dtype.itemsize <= 256 else 32  # larger tiles spill
    return dict(G=per_kv, D=size, BD=padded, BN=keys, M=rows)
