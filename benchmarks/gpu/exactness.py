"""The kernels against float64 on the device, variant by variant.

Inputs are the same in the device's dtype and in float64, so what differs is the kernel's doing. It
may be off by twice what plain torch is in that dtype, and by the rounding of the output. Such a
bound is as small as the output is: over thousands of keys that is little, and so is the bound.
"""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Weights of 2, 3 and 4 groups where the gate is open, and where it is shut: boost, hard mask.
WEIGHTS = {
    2: ((1.0, 1.5), (1.0, 1.0)),
    3: ((1.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
    4: ((1.0, 1.5, 1.0, 0.0), (1.0, 1.0, 1.0, 1.0)),
}
FOCUS, ENTROPY = 0.6, 0.2
NEAR = 1e-3  # a gate this near to its threshold may fall either way


class Mismatch(Exception):
    """A kernel that computes something else than its definition."""


def poisoned() -> None:
    """Fill all new memory with NaN, so that what a kernel leaves out shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)


def draw(
    batch: int, heads: int, kv_heads: int, rows: int, keys: int, size: int, dtype: str,
    layout: str, seed: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """q, k, v on the device.

    Args:
        layout: "plain"; "strided", views of a longer cache that is laid out token by token; or
            "far", of a cache so long that addresses in it pass 2^31 elements.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    g = torch.Generator(device).manual_seed(seed)
    kind = DTYPES[dtype]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=device).to(kind)

    q = normal(batch, rows, heads, size).transpose(1, 2)
    if layout == "strided":
        k, v = normal(2, batch, keys + 9, kv_heads, size)[:, :, 3 : keys + 3].transpose(2, 3)
    elif layout == "far":
        long = 2 * 2**31 // (batch * kv_heads * size)  # the last sample begins at 2^31
        shape = (2, batch, kv_heads, long, size)
        k, v = torch.empty(shape, dtype=kind, device=device)[:, :, :, :keys]
        k.copy_(normal(*k.shape))
        v.copy_(normal(*v.shape))
    else:
        k, v = normal(2, batch, kv_heads, keys, size)
    return q, k, v


def marks(batch: int, keys: int, groups: int, seed: int, pads: int) -> tuple[Tensor, Tensor]:
    """Flags and counts of image keys: half the keys, in drawn groups; row 0 is padded."""
    g = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, keys, generator=g) < 0.5
    group = torch.randint(0, groups, (batch, keys), generator=g) * image
    flags = ((group << 1) | image).to(torch.int32)
    flags[0, :pads] = -1
    count = ((flags >= 0) & (flags & 1 > 0)).sum(1).to(torch.int32)
    return flags, count


def in_pages(
    k: Tensor, v: Tensor, page: int, lengths: Tensor, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values [B, H_kv, S, d] in pages as an engine keeps them, and the block table.

    Pages are drawn in any order, each key beside its value. NaN stands behind each length, and on
    pages that belong to nobody, which fill the table up.
    """
    batch, kv_heads, keys, size = k.shape
    each = -(-keys // page)
    order = torch.randperm(batch * each + 2, generator=torch.Generator().manual_seed(seed))
    table = order[: batch * each].view(batch, each).to(k.device)
    seen = torch.arange(each * page, device=k.device) < lengths[:, None]
    both = torch.nn.functional.pad(torch.cat([k, v], 3), (0, 0, 0, each * page - keys))
    both = both.masked_fill(~seen[:, None, :, None], float("nan"))
    store = both.new_full((batch * each + 2, page, kv_heads, 2 * size), float("nan"))
    store[table] = both.unflatten(2, (each, page)).permute(0, 2, 3, 1, 4)
    unused = torch.arange(each, device=k.device) * page >= lengths[:, None]
    table = table.masked_fill(unused, int(order[-1])).to(torch.int32)
    own_k, own_v = store.transpose(1, 2).split(size, 3)  # [pages, H_kv, page, d]
    return own_k, own_v, table


def decode(
    *, heads: int, kv_heads: int, size: int, dtype: str, rows: int = 1, groups: int = 2,
    single: bool = False, extent: bool = False, gate: bool = False, stats: bool = False,
    keys: int = 1037, batch: int = 2, layout: str = "plain", splits: int | None = None,
    flagged: int | None = None, way: str = "call", page: int = 0, seed: int = 0,
) -> dict:  # fmt: skip
    """One variant of the decode kernel.

    Args:
        heads, kv_heads, ..., page: as of `benchmarks.variants.Variant`.
        flagged: length of the flags; later keys are of group 0. None: all keys.
        way: "call", "graph" (captured in a CUDA graph, replayed) or "compiled" (the operator,
            under torch.compile).

    Returns:
        error: largest difference from float64; allowed: what it may be; torch: plain torch's.

    Raises:
        Mismatch: a larger one, or statistics or gates that differ.
    """
    from vrga.kernels.reference import decode_attention_reference

    poisoned()
    q, k, v = draw(batch, heads, kv_heads, rows, keys, size, dtype, layout, seed)
    pads = min(5, keys - rows) if extent else 0
    flags, count = marks(batch, flagged or keys, groups, seed, pads)
    opened, closed = WEIGHTS[groups]
    state = [x.to(q.device) for x in (flags, count)]
    limits = _limits(batch, rows, keys, pads, page)
    given = torch.arange(batch * heads).view(batch, heads) % 3 > 0
    options = dict(
        scale=size**-0.5, opened=opened, closed=closed, focus=FOCUS, entropy=ENTROPY,
        gate=given.to(q.device) if gate else None,
        extent=limits.to(q.device) if extent or page else None,
    )  # fmt: skip
    columns = (batch, heads, rows, 3 + groups)
    figures = torch.full(columns, float("nan"), device=q.device)
    exact_figures = figures.double()
    exact = decode_attention_reference(
        q.double(), k.double(), v.double(), *state, stats=exact_figures, **options
    )
    low = decode_attention_reference(q, k, v, *state, **options)
    tensors, telling = (q, k, v, *state), options | {"stats": figures if stats else None}
    if page:
        tensors, telling = _over_pages(tensors, telling, page, seed)
    found = _called(way, tensors, telling, 1 if single else splits)

    sure = torch.ones(columns[:3], dtype=torch.bool, device=q.device)
    if not gate:
        sure = ~_near(exact_figures, keys, rows, options["extent"], state[1])
    if stats:
        _compare_figures(figures, exact_figures, sure)
    own, error = ((x.double() - exact).abs()[sure.transpose(1, 2)].max().item()
                  if sure.any() else 0.0 for x in (low, found))  # fmt: skip
    rounding = torch.finfo(q.dtype).eps * exact.abs().max().item()
    # float32 sums and exponentials carry a few roundings of the values themselves.
    allowed = 2 * own + rounding + 4e-6 * v.double().abs().max().item()
    if not error <= allowed or found.dtype != q.dtype:
        raise Mismatch(f"off by {error:.2e}; allowed {allowed:.2e}, plain torch's own {own:.2e}")
    return {"error": error, "allowed": allowed, "torch": own, "compared": int(sure.sum())}


def _limits(batch: int, rows: int, keys: int, pads: int, page: int) -> Tensor:
    """An extent: row 0 is padded; over pages each sample is shorter than the one before."""
    found = torch.tensor([[pads, keys, keys - pads]] + [[0, keys, keys]] * (batch - 1))
    if page:
        found[:, 1:] -= torch.arange(batch)[:, None] * min(page + 3, (keys - rows) // batch)
    return found.to(torch.int32)


def _over_pages(
    tensors: tuple[Tensor, ...], options: dict, page: int, seed: int
) -> tuple[tuple[Tensor, ...], dict]:
    """The same call over pages, whose lengths say what the extent says."""
    q, k, v, *state = tensors
    lengths = options["extent"][:, 1].contiguous()
    rest = {name: x for name, x in options.items() if name != "extent"}
    return (q, *in_pages(k, v, page, lengths, seed), lengths, *state), rest


def _called(way: str, tensors: tuple[Tensor, ...], options: dict, splits: int | None) -> Tensor:
    from vrga.kernels import decode as kernels
    from vrga.kernels.launch import Workspace

    if way == "compiled":
        return torch.compile(kernels.decode_attention_op, fullgraph=True)(*tensors, **options)
    workspace = Workspace()
    own = kernels.decode_attention if len(tensors) == 5 else kernels.paged_decode_attention

    def call() -> Tensor:
        return own(*tensors, **options, splits=splits, workspace=workspace)

    if way == "call":
        call()  # the launch that is kept is the one that counts
        return call()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    out.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    return out


def _near(figures: Tensor, keys: int, rows: int, extent: Tensor | None, count: Tensor) -> Tensor:
    """Where the dynamic gate is too near to its threshold to compare, bool [B, H, Q]."""
    back = torch.arange(rows - 1, -1, -1, device=figures.device)
    visible = keys - back if extent is None else extent[:, 2, None, None] - back
    ratio = figures[..., 0] * visible / count[:, None, None].clamp_min(1)
    limit = ENTROPY * figures[..., 1]
    return ((ratio - FOCUS).abs() < NEAR) | ((ratio - limit).abs() < NEAR)


def _compare_figures(found: Tensor, wanted: Tensor, sure: Tensor) -> None:
    from vrga.kernels.columns import GATE

    if not torch.equal(found[..., GATE][sure], wanted[..., GATE][sure].float()):
        raise Mismatch("a gate far from its threshold falls the other way")
    others = [c for c in range(found.shape[-1]) if c != GATE]
    off = (found.double() - wanted)[..., others].abs()
    if not bool((off <= 1e-4 * wanted[..., others].abs() + 1e-4).all()):
        raise Mismatch(f"statistics are off by {off.max().item():.2e}")


def probe(
    *, heads: int, kv_heads: int, size: int, dtype: str, keys: int = 1037, batch: int = 2,
    offset: int = 0, seed: int = 0,
) -> dict:  # fmt: skip
    """The probe kernel; what it returns and raises is as of `decode`."""
    from vrga.kernels.probe import probe_scores
    from vrga.kernels.reference import probe_scores_reference

    poisoned()
    q, k, _ = draw(batch, heads, kv_heads, keys - offset, keys, size, dtype, "strided", seed)
    last = torch.tensor([keys - 1 - 3 * b for b in range(batch)], dtype=torch.int32).to(q.device)
    hidden = torch.zeros(batch, keys, dtype=torch.bool, device=q.device)
    hidden[0, :5] = True
    found, exact = (torch.empty(batch, heads, keys, device=q.device) for _ in range(2))
    exact = exact.double()
    numbers = dict(offset=offset, scale=size**-0.5)
    probe_scores_reference(q.double(), k.double(), last, hidden, exact, **numbers)
    probe_scores(q, k, last, hidden, found, **numbers)
    seen = exact > -torch.inf
    if not torch.equal(seen, found > -torch.inf) or found.isnan().any():
        raise Mismatch("it sees other keys than its definition says")
    error = (found.double() - exact)[seen].abs().max().item()
    allowed = 4e-6 * max(exact[seen].abs().max().item(), 1.0)
    if not error <= allowed:
        raise Mismatch(f"off by {error:.2e}; allowed {allowed:.2e}")
    return {"error": error, "allowed": allowed, "torch": 0.0, "compared": int(seen.sum())}
