"""The kernels as a patch uses them: which implementation computes what it hands over.

Whether a call needs a bias, a gate or sums is told by `vrga/method/steered_keys.py`; in vLLM the
engine's wing chooses for itself.

"auto":   on CUDA kernels/decode.py and probe.py; on a CPU, for one query row, kernels/biased.py
          where the gate is known and kernels/gated.py where the step decides it; else, where a
          gradient is asked for, and where a backend has scores of its own, kernels/reference.py.
"torch":  kernels/reference.py.
"triton": kernels/decode.py and probe.py, or an error.

Over a cache in pages the reference is kernels/pages.py, and the kernel the same.

Launchers and their references do not know of each other, and triton is imported where it computes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .biased import biased_attention
from .gated import GatedKeys, gated_attention
from .pages import paged_decode_attention_reference
from .reference import (
    KeySets,
    attention_statistics,
    decode_attention_reference,
    probe_scores_reference,
)

if TYPE_CHECKING:
    from .launch import Workspace

IMPLEMENTATIONS = ("auto", "torch", "triton")
Way = Literal["biased", "gated", "torch", "triton"]
# What attention of one query row takes on a CPU: a gate that is known, or one that the step
# decides and no weight of 0, or all sums over groups of keys.
Need = Literal["bias", "gate", "sums"]
ALONE: dict[Need, Way] = {"bias": "biased", "gate": "gated", "sums": "torch"}


def check_implementation(impl: str, device: torch.device) -> None:
    """Raise ValueError unless `impl` is known and can run on `device`."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r} is not one of {', '.join(map(repr, IMPLEMENTATIONS))}")
    interpreting = os.environ.get("TRITON_INTERPRET") == "1"
    if impl == "triton" and device.type != "cuda" and not interpreting:
        raise ValueError(
            f"impl='triton' needs a model on a CUDA device, or Triton's interpreter "
            f"(TRITON_INTERPRET=1) for tests; the model is on {device}: use impl='torch' or 'auto'"
        )


class Kernels:
    """The kernels, by one choice of implementation; launches and scratch memory are kept.

    Args:
        impl: "auto", "torch" or "triton".
    """

    def __init__(self, impl: str):
        self.impl = impl
        self._workspace: Workspace | None = None

    def way(
        self, query: Tensor, *, plain: bool = True, gradients: bool = False, need: Need = "sums"
    ) -> Way:
        """What computes an attention call.

        Args:
            query: [B, H, Q, d].
            plain: whether queries and keys are the model's own; probabilities in the place of
                queries are as long as the cache, which no kernel takes.
            gradients: whether some argument wants one.
            need: what it takes.

        Raises:
            RuntimeError: impl="triton", which does not fall back, for what no kernel computes.
        """
        differentiable = gradients and torch.is_grad_enabled()
        if self.impl == "triton":
            if not plain:
                raise RuntimeError(
                    "impl='triton' computes a plain softmax over keys, and the model's attention "
                    "backend adds to the scores: use impl='torch' or 'auto'"
                )
            if differentiable:
                raise RuntimeError(
                    "impl='triton' has no backward pass: use torch.no_grad(), or impl='torch'"
                )
            return "triton"
        if self.impl == "torch" or not plain or differentiable:
            return "torch"
        if query.is_cuda:
            return "triton"
        alone = query.device.type == "cpu" and query.shape[2] == 1
        return ALONE[need] if alone else "torch"

    def decode_attention(
        self,
        way: Way,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        flags: Tensor,
        images: Tensor,
        *,
        sets: Callable[[], KeySets],
        **numbers: Any,
    ) -> Tensor:
        """`decode_attention_reference`, computed in a way.

        Args:
            sets: gives what `key_sets` makes of these arguments, for the reference.
            numbers: its other arguments.
        """
        if way == "torch":
            return decode_attention_reference(q, k, v, flags, images, sets=sets(), **numbers)
        from .decode import decode_attention, decode_attention_op

        if torch.compiler.is_compiling():
            return decode_attention_op(q, k, v, flags, images, **numbers)
        return decode_attention(q, k, v, flags, images, workspace=self._kept(), **numbers)

    def paged_decode_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor,
        lengths: Tensor,
        flags: Tensor,
        images: Tensor,
        **numbers: Any,
    ) -> Tensor:
        """`paged_decode_attention_reference`, as `impl` says; no gradient passes through it.

        Args:
            q: queries [B, H, Q, d]: the last Q keys of each request.
            k, v: pages [pages, H_kv, page, d], a multiple of 16 keys each.
            table: pages of each request, int32 [B, n], the columns that are in use.
            lengths: keys of each request, int32 [B].
            flags, images: as of `decode_attention`, int32 [B, F] and [B].
            numbers: its other arguments, but for `extent`.

        Returns:
            [B, Q, H, d] in q's dtype.

        Raises:
            ValueError: what the kernel does not take.
        """
        if self.impl == "torch" or (self.impl == "auto" and not q.is_cuda):
            return paged_decode_attention_reference(
                q, k, v, table, lengths, flags, images, **numbers
            )
        from .decode import paged_decode_attention

        workspace = self._kept()
        return paged_decode_attention(
            q, k, v, table, lengths, flags, images, workspace=workspace, **numbers
        )

    def biased_attention(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, scale: float
    ) -> Tensor:
        """See kernels/biased.py."""
        return biased_attention(q, k, v, bias, scale=scale)

    def gated_attention(
        self, q: Tensor, k: Tensor, v: Tensor, keys: GatedKeys, **numbers: Any
    ) -> Tensor:
        """See kernels/gated.py."""
        return gated_attention(q, k, v, keys, **numbers)

    def attention_statistics(
        self,
        way: Way,
        q: Tensor,
        k: Tensor,
        flags: Tensor,
        images: Tensor,
        stats: Tensor,
        *,
        sets: Callable[[], KeySets],
        opened: tuple[float, ...],
        closed: tuple[float, ...],
        extent: Tensor | None,
        **numbers: Any,
    ) -> None:
        """Write the `stats` of `decode_attention`, whose output is not wanted."""
        if way == "torch":
            attention_statistics(q, k, images, sets(), stats, **numbers)
            return
        from .decode import decode_attention

        decode_attention(  # its output is not read, so that keys do for values
            q, k, k, flags, images, opened=opened, closed=closed, extent=extent, stats=stats,
            workspace=self._kept(), **numbers,
        )  # fmt: skip

    def probe_scores(
        self,
        q: Tensor,
        k: Tensor,
        last: Tensor,
        hidden: Tensor,
        out: Tensor,
        *,
        offset: int,
        scale: float,
    ) -> None:
        """`probe_scores_reference`, as `impl` says; no gradient passes through a probe."""
        numbers: dict[str, Any] = {"offset": offset, "scale": scale}
        if self.impl == "torch" or (self.impl == "auto" and not q.is_cuda):
            probe_scores_reference(q, k, last, hidden, out, **numbers)
            return
        from .probe import probe_scores

        probe_scores(q, k, last, hidden, out, workspace=self._kept(), **numbers)

    def _kept(self) -> Workspace:
        from .launch import Workspace

        if self._workspace is None:
            self._workspace = Workspace()
        return self._workspace
