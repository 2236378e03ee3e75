"""FLASH_ATTN as we steer it, in an engine on a CPU: its two kernels are plain torch.

Between vLLM and the kernels all runs that runs on a GPU: layout of the pages, metadata, forward.
"""

import itertools

import torch
from vllm.v1.attention.backends import flash_attn
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

from vrga.engine.cuda_attention import SteeredFlashAttention, SteeredFlashBackend
from vrga.kernels.pages import gathered


def varlen_attention(*, q, k, v, out, cu_seqlens_q, seqused_k, block_table, softmax_scale, causal,
                     **rest):  # fmt: skip
    """What FlashAttention computes of rows [T, H, d] over pages [pages, page, H_kv, d]."""
    assert causal is True
    for place, (first, end) in enumerate(itertools.pairwise(cu_seqlens_q.tolist())):
        seen, own = int(seqused_k[place]), block_table[place : place + 1].long()
        keys, values = (gathered(x.transpose(1, 2), own)[:, :, :seen] for x in (k, v))
        last = seen - (end - first) + torch.arange(end - first)
        out[first:end] = torch.nn.functional.scaled_dot_product_attention(
            q[None, first:end].transpose(1, 2), keys, values, scale=softmax_scale, enable_gqa=True,
            attn_mask=torch.arange(seen) <= last[:, None],
        )[0].transpose(0, 1)  # fmt: skip
    return out


def write_keys(key, value, key_cache, value_cache, slots, *rest):
    """Put keys and values [T, H_kv, d] into their slots of pages [pages, page, H_kv, d]."""
    kept = slots >= 0
    page, place = slots[kept] // key_cache.shape[1], slots[kept] % key_cache.shape[1]
    key_cache[page, place] = key[: len(slots)][kept]
    value_cache[page, place] = value[: len(slots)][kept]


class FlashOnCPU(SteeredFlashAttention):
    """Believes that there is FlashAttention 2."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.vllm_flash_attn_version = 2


class FlashOnCPUBackend(SteeredFlashBackend):
    """In the place of CPU_ATTN."""

    supported_dtypes = [torch.float32]

    @staticmethod
    def get_impl_cls():
        return FlashOnCPU


def put_in():
    """Engines of this process that start from now on attend by it."""
    flash_attn.flash_attn_varlen_func = varlen_attention
    flash_attn.reshape_and_cache_flash = write_keys
    register_backend(AttentionBackendEnum.CPU_ATTN, "flash_on_cpu.FlashOnCPUBackend")
