"""vLLM's FlashAttention with steering behind it; takes the place of FLASH_ATTN. Untested on a GPU.

All rows of a pass go through the engine's own kernel, and those of steered answers once more
through ours, over the same pages. Between two layers nothing is compiled away: CUDA graphs are
piecewise, so that this runs in every pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import AttentionCGSupport, AttentionType
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)

from vrga.engine.cuda_rows import attend_paged
from vrga.engine.runner import attend, give_up, passing
from vrga.kernels.api import Kernels

KEPT_IN = (torch.bfloat16, torch.float16, torch.float32)
_kernels = Kernels("auto")  # one for all layers, which launch the same


class SteeredFlashAttention(FlashAttentionImpl):
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
        other = self._other_scores(kv_cache)
        if other is not None:
            give_up(f"attention with {other} is not what the decode kernel computes")
            return found
        keys, values = kv_cache.split(self.head_size, dim=-1)  # [pages, H_kv, page, d]
        attend(
            extract_layer_index(layer.layer_name),
            query, output, keys, values, attn_metadata.block_table, self.scale, _kernels,
            by=attend_paged,
        )  # fmt: skip
        return found

    def _other_scores(self, kv_cache: Tensor) -> str | None:
        """What makes this layer's attention more than a softmax over all keys so far, or None."""
        more = {
            "a sliding window": self.sliding_window != (-1, -1),
            "ALiBi": self.alibi_slopes is not None,
            "capped scores": bool(self.logits_soft_cap),
            "sinks": self.sinks is not None,
            "an encoder's mask": self.attn_type != AttentionType.DECODER,
            f"keys in {kv_cache.dtype}": kv_cache.dtype not in KEPT_IN,
        }
        return next((told for told, holds in more.items() if holds), None)


class PiecewiseMetadataBuilder(FlashAttentionMetadataBuilder):
    """A full CUDA graph would replay a pass without asking what is steered in it."""

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """None of attention, whatever the version of FlashAttention can do."""
        return AttentionCGSupport.NEVER


class SteeredFlashBackend(FlashAttentionBackend):
    """FLASH_ATTN with steering."""

    @staticmethod
    def get_impl_cls() -> type[FlashAttentionImpl]:
        """What computes it."""
        return SteeredFlashAttention

    @staticmethod
    def get_builder_cls() -> type[FlashAttentionMetadataBuilder]:
        """What lays out a pass for it."""
        return PiecewiseMetadataBuilder
