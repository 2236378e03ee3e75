"""What the kernels accept, checked before anything is launched."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

Refuse = Callable[[str, object, str], NoReturn]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Of each tensor by its name: it, its shape, and the dtypes it may have.
Wanted = dict[str, tuple[Tensor | None, tuple[int, ...], tuple[torch.dtype, ...]]]
PAGE_UNIT = 16  # keys; what the kernel takes from one page at a time
HEAD_SIZES = (16, 32, 64, 80, 96, 128, 256)


class Tensors(NamedTuple):
    """The tensors of a call; of `table` and `lengths` there are both or none."""

    q: Tensor
    k: Tensor
    v: Tensor
    flags: Tensor
    images: Tensor
    gate: Tensor | None
    stats: Tensor | None
    extent: Tensor | None = None
    table: Tensor | None = None
    lengths: Tensor | None = None


def check_arguments(tensors: Tensors, opened: tuple[float, ...], closed: tuple[float, ...]) -> None:
    """Raise ValueError for arguments the kernel cannot take; reads no tensor's content, and of
    pages neither lengths nor numbers."""
    q, k, v, flags, images, gate, stats, extent, table, lengths = tensors
    refuse = _refusal("decode_attention" if table is None else "paged_decode_attention")
    batch, heads, rows, size = _check_heads(refuse, q, k)
    keys = k.shape[2]  # of a sample at most
    if table is None:
        if k.shape[0] != batch or k.shape[3] != size or keys < rows:
            refuse("k.shape", tuple(k.shape), f"[{batch}, H_kv, S >= {rows}, {size}]")
    else:
        if k.shape[3] != size or keys % PAGE_UNIT or not keys:
            refuse("k.shape", tuple(k.shape), f"[pages, H_kv, a multiple of {PAGE_UNIT}, {size}]")
        if table.ndim != 2 or table.shape[0] != batch or table.shape[1] * keys < rows:
            refuse("table.shape", tuple(table.shape), f"[{batch}, pages for {rows} keys or more]")
        if table.dtype != torch.int32:
            refuse("table.dtype", table.dtype, str(torch.int32))
        if table.stride(1) != 1:
            refuse("table.stride(1)", table.stride(1), "1")
        keys *= table.shape[1]
    if rows < 1:
        refuse("query rows", rows, "1 or more")
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
    wanted: Wanted = {
        "flags": (flags, (batch, flags.shape[-1]), (torch.int32,)),
        "images": (images, (batch,), (torch.int32,)),
        "gate": (gate, (batch, heads), (torch.bool, torch.uint8)),
        "stats": (stats, (batch, heads, rows, 3 + len(opened)), (torch.float32,)),
        "extent": (extent, (batch, 3), (torch.int32,)),
        "lengths": (lengths, (batch,), (torch.int32,)),
    }
    for name, (found, shape, dtypes) in wanted.items():
        if found is None:
            continue
        if tuple(found.shape) != shape:
            refuse(f"{name}.shape", tuple(found.shape), str(list(shape)))
        if found.dtype not in dtypes:
            refuse(f"{name}.dtype", found.dtype, " or ".join(map(str, dtypes)))
        if name != "gate" and not (found.is_contiguous() or name == "flags"):
            refuse(f"{name}.stride()", found.stride(), "contiguous")
    if flags.stride(1) != 1:
        refuse("flags.stride(1)", flags.stride(1), "1")
    if flags.shape[1] > keys:
        refuse("flags.shape[1]", flags.shape[1], f"at most the {keys} keys")
    given = {name: found for name, (found, _, _) in wanted.items()}
    _check_devices(refuse, q, {"k": k, "v": v, **given, "table": table})


def check_probe(q: Tensor, k: Tensor, last: Tensor, hidden: Tensor, out: Tensor) -> None:
    """Raise ValueError for arguments the probe cannot take; reads no tensor's content."""
    refuse = _refusal("probe_scores")
    batch, heads, _, size = _check_heads(refuse, q, k)
    if k.shape[0] != batch or k.shape[3] != size or k.dtype != q.dtype:
        refuse("k", (tuple(k.shape), k.dtype), f"[{batch}, H_kv, S, {size}] in {q.dtype}")
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
    _check_devices(refuse, q, {"k": k, "last": last, "hidden": hidden, "out": out})


def _refusal(function: str) -> Refuse:
    def refuse(name: str, found: object, wanted: str) -> NoReturn:
        raise ValueError(f"{function}: {name} is {found}; accepted: {wanted}")

    return refuse


def _check_heads(refuse: Refuse, q: Tensor, k: Tensor) -> torch.Size:
    """What holds for queries and keys of any kernel; the shape of q."""
    if q.ndim != 4 or k.ndim != 4:
        refuse("q, k", (tuple(q.shape), tuple(k.shape)), "[B, H, Q, d] and [B, H_kv, S, d]")
    if q.dtype not in DTYPES:
        refuse("q.dtype", q.dtype, "bfloat16, float16 or float32")
    if q.shape[3] not in HEAD_SIZES:
        refuse("head size", q.shape[3], f"one of {HEAD_SIZES}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        refuse("k.shape[1]", k.shape[1], f"a divisor of the {q.shape[1]} query heads")
    return q.shape


def _check_devices(refuse: Refuse, q: Tensor, others: dict[str, Tensor | None]) -> None:
    for name, tensor in others.items():
        if tensor is not None and tensor.device != q.device:
            refuse(f"{name}.device", tensor.device, f"that of q, {q.device}")
