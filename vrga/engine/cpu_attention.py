"""vLLM's attention on CPUs with steering behind it; takes the place of CPU_ATTN."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionBackendImpl

import vrga.engine.page_rows  # noqa: F401, compiles it before any request waits
from vrga.engine.runner import attend, attend_compiled, give_up, passing

TRANSPOSED = ("vec", "vec16")  # instruction sets whose pages hold keys number by number
_number = functools.cache(extract_layer_index)


class SteeredCPUAttention(CPUAttentionBackendImpl):
    """The engine's own attention, and what steered requests change of it."""

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
        if layer.isa not in TRANSPOSED or self.is_fp8_kv_cache:
            give_up(
                f"keys lie in the pages as for {layer.isa!r} with {kv_cache.dtype}, and are read "
                f"as for {', '.join(TRANSPOSED)} alone: serve with --dtype float32"
            )
            return found
        number, table = _number(layer.layer_name), attn_metadata.block_table
        pages, heads, page, both = kv_cache.shape
        if kv_cache.dtype == torch.float32:
            whole = kv_cache.view(pages, heads, page * both)
            attend_compiled(number, query, output, whole, table, self.scale)
            return found
        size = both // 2
        keys, values = kv_cache.view(pages, heads, 2 * page, size).chunk(2, dim=2)
        keys = keys.view(pages, heads, size, page).transpose(2, 3)
        attend(number, query, output, keys, values, table, self.scale)
        return found


class SteeredCPUBackend(CPUAttentionBackend):
    """CPU_ATTN with steering."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        """What computes it."""
        return SteeredCPUAttention
