"""What the kernels accept, checked before anything is launched."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HEAD_SIZES = (16, 32, 64, 80, 96, 128, 256)


def check_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    flags: Tensor,
    images: Tensor,
    gate: Tensor | None,
    extent: Tensor | None,
    stats: Tensor | None,
    opened: tuple[float, ...],
    closed: tuple[float, ...],
) -> None:
    """Raise ValueError for arguments the kernel cannot take; reads no tensor's content."""

    def refuse(name: str, found: object, wanted: str):
        raise ValueError(f"decode_attention: {name} is {found}; accepted: {wanted}")

    if q.ndim != 4 or k.ndim != 4:
        refuse("q, k", (tuple(q.shape), tuple(k.shape)), "[B, H, Q, d] and [B, H_kv, S, d]")
    batch, heads, rows, size = q.shape
    if q.dtype not in DTYPES:
        refuse("q.dtype", q.dtype, "bfloat16, float16 or float32")
    if size not in HEAD_SIZES:
        refuse("head size", size, f"one of {HEAD_SIZES}")
    if rows < 1:
        refuse("query rows", rows, "1 or more")
    if k.shape[0] != batch or k.shape[3] != size or k.shape[2] < rows:
        refuse("k.shape", tuple(k.shape), f"[{batch}, H_kv, S >= {rows}, {size}]")
    if k.shape[1] == 0 or heads % k.shape[1]:
        refuse("k.shape[1]", k.shape[1], f"a divisor of the {heads} query heads")
    if v.shape != k.shape:
        refuse("v.shape", tuple(v.shape), f"that of k, {tuple(k.shape)}")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.stride(3) != 1:
            refuse(f"{name}.stride(3)", tensor.stride(3), "1: the head dimension is contiguous")
        if tensor.dtype != q.dtype:
            refuse(f"{name}.dtype", tensor.dtype, f"that of q, {q.dtype}")
    if not 1 <= len(opened) <= 4 or len(closed) != len(opened):
        refuse("opened, closed", (opened, closed), "one weight for each of 1 to 4 groups, in both")
    if not all(0 <= w < float("inf") for w in (*opened, *closed)):
        refuse("opened, closed", (opened, closed), "weights that are finite and not negative")
    wanted = {
        "flags": (flags, (batch, flags.shape[-1]), (torch.int32,)),
        "images": (images, (batch,), (torch.int32,)),
        "gate": (gate, (batch, heads), (torch.bool, torch.uint8)),
        "extent": (extent, (batch, 3), (torch.int32,)),
        "stats": (stats, (batch, heads, rows, 3 + len(opened)), (torch.float32,)),
    }
    for name, (tensor, shape, dtypes) in wanted.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            refuse(f"{name}.shape", tuple(tensor.shape), str(list(shape)))
        if tensor.dtype not in dtypes:
            refuse(f"{name}.dtype", tensor.dtype, " or ".join(map(str, dtypes)))
        if name != "gate" and not (tensor.is_contiguous() or name == "flags"):
            refuse(f"{name}.stride()", tensor.stride(), "contiguous")
    if flags.stride(1) != 1:
        refuse("flags.stride(1)", flags.stride(1), "1")
    if flags.shape[1] > k.shape[2]:
        refuse("flags.shape[1]", flags.shape[1], f"at most the {k.shape[2]} keys")
    for name, tensor in (("k", k), ("v", v), *((n, t) for n, (t, _, _) in wanted.items())):
        if tensor is not None and tensor.device != q.device:
            refuse(f"{name}.device", tensor.device, f"that of q, {q.device}")


def check_probe(q: Tensor, k: Tensor, last: Tensor, hidden: Tensor, out: Tensor) -> None:
    """Raise ValueError for arguments the probe cannot take; reads no tensor's content."""

    def refuse(name: str, found: object, wanted: str):
        raise ValueError(f"probe_scores: {name} is {found}; accepted: {wanted}")

    if q.ndim != 4 or k.ndim != 4:
        refuse("q, k", (tuple(q.shape), tuple(k.shape)), "[B, H, Q, d] and [B, H_kv, S, d]")
    batch, heads, _, size = q.shape
    if q.dtype not in DTYPES:
        refuse("q.dtype", q.dtype, "bfloat16, float16 or float32")
    if size not in HEAD_SIZES:
        refuse("head size", size, f"one of {HEAD_SIZES}")
    if k.shape[0] != batch or k.shape[3] != size or k.dtype != q.dtype:
        refuse("k", (tuple(k.shape), k.dtype), f"[{batch}, H_kv, S, {size}] in {q.dtype}")
    if k.shape[1] == 0 or heads % k.shape[1]:
        refuse("k.shape[1]", k.shape[1], f"a divisor of the {heads} query heads")
    if q.stride(3) != 1 or k.stride(3) != 1:
        refuse("stride(3)", (q.stride(3), k.stride(3)), "1: the head dimension is contiguous")
    length = out.shape[-1]
    wanted = {
        "last": (last, (batch,), torch.int32),
        "hidden": (hidden, (batch, length), torch.bool),
        "out": (out, (batch, heads, length), torch.float32),
    }
    for name, (tensor, shape, dtype) in wanted.items():
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            refuse(name, (tuple(tensor.shape), tensor.dtype), f"{list(shape)} in {dtype}")
        if tensor.stride(-1) != 1:
            refuse(f"{name}.stride(-1)", tensor.stride(-1), "1")
    for name, tensor in (("k", k), ("last", last), ("hidden", hidden), ("out", out)):
        if tensor.device != q.device:
            refuse(f"{name}.device", tensor.device, f"that of q, {q.device}")
