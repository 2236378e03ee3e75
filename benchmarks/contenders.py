"""One decode step of attention, by everyone who could do it: ours, SDPA, and what users write.

A contender takes a `Problem` and returns a call without arguments. Those that cannot gate say so
in `GATES`: their time is a lower bound for what they would have to do beside attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from vrga.kernels.reference import decode_attention_reference

GAIN, FOCUS, ENTROPY = 1.5, 0.6, 0.2


@dataclass(frozen=True)
class Problem:
    """Inputs of one decode step.

    Args:
        q: [B, H, 1, d]; k, v: [B, H_kv, S, d].
        flags: int32 [B, S], as of `decode_attention`; images: int32 [B].
        gate: which heads are steered, bool [B, H].
    """

    q: Tensor
    k: Tensor
    v: Tensor
    flags: Tensor
    images: Tensor
    gate: Tensor

    @property
    def scale(self) -> float:
        return self.q.shape[-1] ** -0.5

    @property
    def kv_bytes(self) -> int:
        return 2 * self.k.numel() * self.k.element_size()

    @property
    def image(self) -> Tensor:
        """Image keys, bool [B, S]."""
        return self.flags & 1 > 0

    @property
    def region(self) -> Tensor:
        """T, bool [B, S]."""
        return self.flags >> 1 == 1


def make_problem(
    batch: int,
    keys: int,
    heads: int,
    kv_heads: int,
    size: int,
    dtype: torch.dtype,
    device: str,
    *,
    region: float = 0.05,
    opened: float = 0.5,
    seed: int = 0,
) -> Problem:
    """Random inputs: a fifth of the keys are image keys, `region` of all keys are T.

    Args:
        region: share of the keys in T, at most 0.2.
        opened: share of the heads whose gate is open.
    """
    g = torch.Generator(device).manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, device=device, dtype=dtype)

    place = torch.arange(keys, device=device)
    image = (place >= keys // 10) & (place < keys // 10 + keys // 5)
    steered = image & (place < keys // 10 + int(region * keys))
    flags = ((steered.int() << 1) | image.int()).to(torch.int32).expand(batch, keys).contiguous()
    gate = torch.arange(heads, device=device) < round(opened * heads)
    return Problem(
        normal(batch, heads, 1, size),
        normal(batch, kv_heads, keys, size),
        normal(batch, kv_heads, keys, size),
        flags,
        image.sum().to(torch.int32).expand(batch).contiguous(),
        gate.expand(batch, heads).contiguous(),
    )


def ours(problem: Problem, *, gate: str = "dynamic", impl: str = "triton") -> Callable[[], Tensor]:
    """Our kernel.

    Args:
        gate: "dynamic" decides from R and H_mass, "static" takes the problem's gate, "off" has
            no image keys and a shut gate: plain attention.
    """
    flags, given = problem.flags, {"dynamic": None, "static": problem.gate}.get(gate)
    if gate == "off":
        flags, given = torch.zeros_like(flags), torch.zeros_like(problem.gate)
    arguments = dict(
        scale=problem.scale,
        opened=(1.0, GAIN),
        closed=(1.0, 1.0),
        focus=FOCUS,
        entropy=ENTROPY,
        gate=given,
    )
    decode = decode_attention_reference
    if impl == "triton":
        from vrga.kernels.decode import decode_attention
        from vrga.kernels.launch import Workspace

        decode, arguments["workspace"] = decode_attention, Workspace()
    p = problem
    return lambda: decode(p.q, p.k, p.v, flags, p.images, **arguments)


def sdpa(
    problem: Problem, backend: SDPBackend | None = None, *, packed: bool = False
) -> Callable[[], Tensor]:
    """torch's attention, pinned to a backend or as torch chooses; no steering at all.

    Args:
        packed: give the query heads of a KV head as rows of one head. That is the same for a single
            token, and a way for backends that know no grouped heads.
    """
    p = problem
    q = p.q.view(p.q.shape[0], p.k.shape[1], -1, p.q.shape[3]) if packed else p.q

    def call():
        return scaled_dot_product_attention(q, p.k, p.v, scale=p.scale, enable_gqa=not packed)

    def pinned():
        with sdpa_kernel(backend):
            return call()

    return call if backend is None else pinned


def sdpa_bias(problem: Problem) -> Callable[[], Tensor]:
    """torch's attention with log gamma added on T, for every head."""
    p = problem
    bias = torch.where(p.region, torch.tensor(GAIN).log().item(), 0.0).to(p.q.dtype)
    bias = bias[:, None, None].expand(-1, p.q.shape[1], 1, -1)
    return lambda: scaled_dot_product_attention(
        p.q, p.k, p.v, attn_mask=bias, scale=p.scale, enable_gqa=True
    )


def flex_calls(problems: list[Problem]) -> list[Callable[[], Tensor]]:
    """Compiled FlexAttention with log gamma added on T, for every head; compiled once.

    Args:
        problems: of one shape and one region.
    """
    from torch.nn.attention.flex_attention import flex_attention

    region, gain = problems[0].region, torch.tensor(GAIN).log().item()

    def add(score, b, h, q, k):
        return score + torch.where(region[b, k], gain, 0.0)

    compiled = torch.compile(flex_attention, dynamic=False)
    return [
        lambda p=p: compiled(p.q, p.k, p.v, score_mod=add, scale=p.scale, enable_gqa=True)
        for p in problems
    ]


def two_pass(problem: Problem) -> Callable[[], Tensor]:
    """Attention matrix in full, statistics of all heads at once, then the weighted values."""
    p = problem
    group = p.q.shape[1] // p.k.shape[1]
    image, region = p.image[:, None, None], p.region[:, None, None]

    def call():
        k, v = (x.repeat_interleave(group, 1) for x in (p.k, p.v))
        a = (p.q @ k.transpose(2, 3) * p.scale).float().softmax(-1)
        on = a * image
        focus = on.sum(-1) / p.images[:, None, None] * a.shape[-1]
        entropy = -torch.xlogy(on, on).sum(-1)
        opened = (focus > FOCUS) & (focus > ENTROPY * entropy)
        a = torch.where(opened[..., None] & region, a * GAIN, a)
        return (a / a.sum(-1, keepdim=True)).to(v.dtype) @ v

    return call


def head_loop(problem: Problem) -> Callable[[], Tensor]:
    """Eager attention and a Python loop over heads that reads each head's figures on the host."""
    p = problem
    group = p.q.shape[1] // p.k.shape[1]

    def call():
        k, v = (x.repeat_interleave(group, 1) for x in (p.k, p.v))
        a = (p.q @ k.transpose(2, 3) * p.scale).float().softmax(-1)
        for b in range(a.shape[0]):
            image, region = p.image[b], p.region[b]
            for h in range(a.shape[1]):
                row = a[b, h, 0]
                on = row[image]
                focus = (on.mean() / row.mean()).item()
                entropy = -(on * on.log()).sum().item()
                if focus > FOCUS and focus > ENTROPY * entropy:
                    steered = torch.where(region, row * GAIN, row)
                    a[b, h, 0] = steered / steered.sum().item()
        return a.to(v.dtype) @ v

    return call


SDPA_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
PINNED = {
    f"sdpa {name}{', packed rows' if packed else ''}": (backend, packed)
    for name, backend in SDPA_BACKENDS.items()
    for packed in (False, True)
}
CONTENDERS: dict[str, Callable[[Problem], Callable[[], Tensor]]] = {
    "ours": ours,
    "ours, static gate": lambda problem: ours(problem, gate="static"),
    "ours, flags off": lambda problem: ours(problem, gate="off"),
    "ours in torch": lambda problem: ours(problem, impl="torch"),
    "sdpa": sdpa,
    **{name: (lambda p, way=way: sdpa(p, way[0], packed=way[1])) for name, way in PINNED.items()},
    "sdpa + bias": sdpa_bias,
    "flex attention": lambda problem: flex_calls([problem])[0],
    "two-pass torch": two_pass,
    "per-head loop": head_loop,
}
GATES = {"ours", "ours, static gate", "ours in torch", "two-pass torch", "per-head loop"}
