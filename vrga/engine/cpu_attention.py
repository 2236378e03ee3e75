"""vLLM's attention on CPUs with steering behind it; takes the place of CPU_ATTN."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionBackendImpl

from vrga.engine.runner import attend, give_up, passing

TRANSPOSED = ("vec", "vec16")  # instruction sets whose pages hold keys number by number


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
        pages, heads, page, both = kv_cache.shape
        size = both // 2
        keys, values = kv_cache.view(pages, heads, 2 * page, size).chunk(2, dim=2)
        keys = keys.view(pages, heads, size, page).transpose(2, 3)
        attend(
            extract_layer_index(layer.layer_name),
            query, output, keys, values, attn_metadata.block_table, self.scale,
        )  # fmt: skip
        return found


class SteeredCPUBackend(CPUAttentionBackend):
    """CPU_ATTN with steering."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        """What computes it."""
        return SteeredCPUAttention
