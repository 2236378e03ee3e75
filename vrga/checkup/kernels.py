"""The Triton kernels against their reference in plain torch, on drawn tensors."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vrga.checkup.compare import distance
from vrga.checkup.trial import Fault, Found, Skipped, Trial

# (query heads, key heads, head size, keys, query rows)
SHAPES = [(8, 2, 64, 300, 1), (7, 1, 128, 129, 1), (4, 4, 80, 65, 3)]


def trials(device: torch.device) -> list[Trial]:
    """The checks, one per kernel."""
    advice = "Use vrga.patch(model, impl='torch')"
    return [
        Trial(f"Triton {name} kernel, its reference", partial(_largest, device, check), advice)
        for name, check in (("decode", decode), ("probe", probe))
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


def _largest(device: torch.device, check: Callable[..., tuple[Tensor, Tensor]]) -> Found:
    """The largest difference of a kernel over all dtypes and shapes.

    Args:
        check: given a function that draws [2, heads, length, size], and a shape of `SHAPES`,
            returns what the kernel found and what its reference wants.
    """
    dtypes, figures = _dtypes(device), []
    for dtype in dtypes:
        for heads, kv_heads, size, keys, rows in SHAPES:
            random = torch.Generator().manual_seed(keys)
            told = f"{heads}:{kv_heads} heads of {size} in {dtype}"

            def draw(n: int, length: int, size=size, dtype=dtype, random=random) -> Tensor:
                return torch.randn(2, n, length, size, generator=random).to(device, dtype)

            found, wanted = check(draw, heads, kv_heads, size, keys, rows)
            hidden = wanted == -torch.inf
            if not torch.equal(hidden, found == -torch.inf):
                raise Fault(f"{told}: the kernel sees other keys than the reference")
            found, wanted = (x.masked_fill(hidden, 0) for x in (found, wanted))
            difference, scale = distance(found, wanted), float(wanted.abs().max())
            if not difference <= 16 * torch.finfo(dtype).eps * max(scale, 1.0):
                raise Fault(f"{told}: the outputs differ by {difference:.1e}", difference)
            figures.append(difference)
    return max(figures), ", ".join(map(str, dtypes))


def decode(draw, heads: int, kv_heads: int, size: int, keys: int, rows: int):
    """Attention of the newest tokens, some heads steered, some keys hidden."""
    from vrga.kernels.decode import decode_attention
    from vrga.kernels.reference import decode_attention_reference

    q, k, v = (draw(n, x) for n, x in ((heads, rows), (kv_heads, keys), (kv_heads, keys)))
    flags = torch.zeros(2, keys, dtype=torch.int32)
    flags[:, 10:40] = 1  # on the image
    flags[:, 15:25] = 3  # in T
    flags[1, :5] = -1  # padding
    extent = torch.tensor([[0, keys, keys], [5, keys, keys - 5]], dtype=torch.int32)
    gate = torch.arange(2 * heads).view(2, heads) % 3 > 0
    options = dict(
        scale=size**-0.5, opened=(1.0, 3.0), closed=(1.0, 1.0), focus=0.6, entropy=0.2,
        gate=gate.to(q.device), extent=extent.to(q.device),
    )  # fmt: skip
    state = flags.to(q.device), torch.full((2,), 30, dtype=torch.int32, device=q.device)
    wanted = decode_attention_reference(q.double(), k.double(), v.double(), *state, **options)
    return decode_attention(q, k, v, *state, **options), wanted


def probe(draw, heads: int, kv_heads: int, size: int, keys: int, rows: int):
    """Scores of one query row of each sample."""
    from vrga.kernels.probe import probe_scores
    from vrga.kernels.reference import probe_scores_reference

    q, k = (draw(n, keys) for n in (heads, kv_heads))
    last = torch.tensor([keys - 3, keys - 1], dtype=torch.int32, device=q.device)
    hidden = torch.zeros(2, keys, dtype=torch.bool, device=q.device)
    hidden[1, :5] = True
    found, wanted = (torch.empty(2, heads, keys, device=q.device) for _ in range(2))
    numbers = dict(offset=0, scale=size**-0.5)
    probe_scores_reference(q.double(), k.double(), last, hidden, wanted, **numbers)
    probe_scores(q, k, last, hidden, found, **numbers)
    return found, wanted
