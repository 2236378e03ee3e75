"""The Triton kernels against their reference in plain torch, on drawn tensors."""

from __future__ import annotations

import os

import torch

from vrga.checkup.compare import distance
from vrga.checkup.trial import Fault, Found, Skipped, Trial

# (query heads, key heads, head size, keys, query rows)
SHAPES = [(8, 2, 64, 300, 1), (7, 1, 128, 129, 1), (4, 4, 80, 65, 3)]


def trials(device: torch.device) -> list[Trial]:
    """The checks, one per kernel."""
    advice = "Use vrga.patch(model, impl='torch')"
    return [
        Trial("Triton decode kernel, its reference", lambda: decode(device), advice),
        Trial("Triton probe kernel, its reference", lambda: probe(device), advice),
    ]


def _dtypes(device: torch.device) -> list[torch.dtype]:
    """Those to try; skips where the kernels do not run."""
    if device.type != "cuda":
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise Skipped("needs CUDA; impl='torch' is used here")
        return [torch.float32]
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise Skipped("triton is not installed; impl='torch' is used here") from error
    return [torch.float32, torch.float16, torch.bfloat16]


def _compare(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, told: str) -> float:
    difference, scale = distance(found, wanted), float(wanted.abs().max())
    if not difference <= 16 * torch.finfo(dtype).eps * max(scale, 1.0):
        raise Fault(f"{told} in {dtype}: the outputs differ by {difference:.1e}", difference)
    return difference


def decode(device: torch.device) -> Found:
    """Attention of the newest tokens, some heads steered, some keys hidden."""
    dtypes = _dtypes(device)
    from vrga.kernels.decode import decode_attention
    from vrga.kernels.reference import decode_attention_reference

    figures = []
    for dtype in dtypes:
        for heads, kv_heads, size, keys, rows in SHAPES:
            drawn = torch.Generator().manual_seed(keys)
            q, k, v = (
                torch.randn(2, n, length, size, generator=drawn).to(device, dtype)
                for n, length in ((heads, rows), (kv_heads, keys), (kv_heads, keys))
            )
            flags = torch.zeros(2, keys, dtype=torch.int32)
            flags[:, 10:40] = 1  # on the image
            flags[:, 15:25] = 3  # in T
            flags[1, :5] = -1  # padding
            extent = torch.tensor([[0, keys, keys], [5, keys, keys - 5]], dtype=torch.int32)
            gate = torch.arange(2 * heads).view(2, heads) % 3 > 0
            options = dict(
                scale=size**-0.5, opened=(1.0, 3.0), closed=(1.0, 1.0), focus=0.6, entropy=0.2,
                gate=gate.to(device), extent=extent.to(device),
            )  # fmt: skip
            state = flags.to(device), torch.full((2,), 30, dtype=torch.int32, device=device)
            wanted = decode_attention_reference(q.double(), k.double(), v.double(), *state,
                                                **options)  # fmt: skip
            found = decode_attention(q, k, v, *state, **options)
            figures.append(_compare(found, wanted, dtype, f"{heads}:{kv_heads} heads of {size}"))
    return max(figures), ", ".join(map(str, dtypes))


def probe(device: torch.device) -> Found:
    """Scores of one query row of each sample."""
    dtypes = _dtypes(device)
    from vrga.kernels.probe import probe_scores
    from vrga.kernels.reference import probe_scores_reference

    figures = []
    for dtype in dtypes:
        for heads, kv_heads, size, keys, _ in SHAPES:
            drawn = torch.Generator().manual_seed(keys)
            q, k = (
                torch.randn(2, n, keys, size, generator=drawn).to(device, dtype)
                for n in (heads, kv_heads)
            )
            last = torch.tensor([keys - 3, keys - 1], dtype=torch.int32, device=device)
            hidden = torch.zeros(2, keys, dtype=torch.bool, device=device)
            hidden[1, :5] = True
            found, wanted = (torch.empty(2, heads, keys, device=device) for _ in range(2))
            numbers = dict(offset=0, scale=size**-0.5)
            probe_scores_reference(q.double(), k.double(), last, hidden, wanted, **numbers)
            probe_scores(q, k, last, hidden, found, **numbers)
            told = f"{heads}:{kv_heads} heads of {size}"
            unseen = wanted == -torch.inf
            if not torch.equal(unseen, found == -torch.inf):
                raise Fault(f"{told} in {dtype}: the kernel sees other keys than the reference")
            found, wanted = (x.masked_fill(unseen, 0) for x in (found, wanted))
            figures.append(_compare(found, wanted, dtype, told))
    return max(figures), ", ".join(map(str, dtypes))
