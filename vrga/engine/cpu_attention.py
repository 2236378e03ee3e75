"""vLLM's attention on CPUs with steering behind it; takes the place of CPU_ATTN."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionBackendImpl

import vrga.engine.page_rows  # noqa: F401, compiles it before any request waits
from vrga.engine.runner import attend, attend_compiled, give_up, passing

TRANSPOSED = ("vec", "vec16")  # instruction sets whose pages hold keys number by number


class SteeredCPUAttention(CPUAttentionBackendImpl):
    """The engine's own attention, and what steered requests change of it."""

    _known: Tensor | None = None
    _pages: np.ndarray | None = None
    _halves: tuple[Tensor, Tensor] | None = None

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """As of the class above; the keys of this pass are in the cache already."""
        found = super().forward(
            layer, query, key, value, kv_cache, attn_metadata, output, output_scale,
            output_block_scale,
        )  # fmt: skip
        if passing() is None or attn_metadata is None:
            return found
        table = attn_metadata.block_table
        if self._known is not kv_cache:
            self._look_at(layer, kv_cache)
        if self._pages is not None:
            attend_compiled(self._number, query, output, self._pages, table, self.scale)
        elif self._halves is not None:
            attend(self._number, query, output, *self._halves, table, self.scale)
        else:
            give_up(
                f"keys lie in the pages as for {layer.isa!r} with {kv_cache.dtype}, and are read "
                f"as for {', '.join(TRANSPOSED)} alone: serve with --dtype float32"
            )
        return found

    def _look_at(self, layer: Any, kv_cache: Tensor) -> None:
        """Pages of this layer, as steering reads them: once, as long as they are the same."""
        self._number, self._known = extract_layer_index(layer.layer_name), kv_cache
        self._pages = self._halves = None
        if layer.isa not in TRANSPOSED or self.is_fp8_kv_cache:
            return
        pages, heads, page, both = kv_cache.shape
        if kv_cache.dtype == torch.float32:
            self._pages = kv_cache.view(pages, heads, page * both).numpy()
            return
        size = both // 2
        keys, values = kv_cache.view(pages, heads, 2 * page, size).chunk(2, dim=2)
        self._halves = keys.view(pages, heads, size, page).transpose(2, 3), values


class SteeredCPUBackend(CPUAttentionBackend):
    """CPU_ATTN with steering."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        """What computes it."""
        return SteeredCPUAttention
