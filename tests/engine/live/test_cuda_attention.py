"""Attention on a GPU, without one: vLLM has what ours is built on, and an engine on a CPU runs it.

The kernel itself is checked in Triton's interpreter (tests/kernels/test_pages.py).
"""

import dataclasses
import inspect
from types import SimpleNamespace

import engine_cases
import pytest
import torch
from engine_cases import KINDS, asked, logits_of, prompt_of, samples
from vllm.config import VllmConfig
from vllm.config.attention import AttentionConfig
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadata,
    FlashAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.worker.gpu_model_runner import AsyncGPUModelRunnerOutput

from vrga.engine import hooks
from vrga.engine.cuda_attention import (
    PiecewiseMetadataBuilder,
    SteeredFlashAttention,
    SteeredFlashBackend,
)

NEAR = 1e-4
OPTIONS = {"max_num_batched_tokens": 24, "num_gpu_blocks_override": 14, "max_model_len": 256}


@pytest.fixture(scope="module")
def engine(folder):
    """An engine on a CPU that attends as one on a GPU."""
    import flash_on_cpu

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hooks, "hook_attention", flash_on_cpu.put_in)
        yield engine_cases.start(folder, **OPTIONS)


def parameters(owner, name):
    """Names and defaults of a method's parameters."""
    found = inspect.signature(getattr(owner, name)).parameters.values()
    return [(one.name, one.default, one.kind) for one in found]


@pytest.mark.parametrize(
    ("ours", "theirs", "name"),
    [
        (SteeredFlashAttention, FlashAttentionImpl, "forward"),
        (PiecewiseMetadataBuilder, FlashAttentionMetadataBuilder, "get_cudagraph_support"),
        (SteeredFlashBackend, FlashAttentionBackend, "get_impl_cls"),
        (SteeredFlashBackend, FlashAttentionBackend, "get_builder_cls"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_is_overridden_is_called_as_ours_is(ours, theirs, name):
    assert name in vars(ours) and name in vars(theirs)
    assert parameters(ours, name) == parameters(theirs, name)


def test_vllm_has_what_is_read_of_it():
    made = inspect.getsource(FlashAttentionImpl.__init__)
    for name in ("head_size", "scale", "sliding_window", "alibi_slopes", "logits_soft_cap",
                 "sinks", "attn_type"):  # fmt: skip
        assert f"self.{name} = " in made, name
    held = {field.name for field in dataclasses.fields(FlashAttentionMetadata)}
    assert {"query_start_loc", "seq_lens", "block_table"} <= held
    assert "attention_config" in {field.name for field in dataclasses.fields(VllmConfig)}
    assert "backend" in {field.name for field in dataclasses.fields(AttentionConfig)}
    path = AttentionBackendEnum.FLASH_ATTN.value
    assert path == f"{FlashAttentionBackend.__module__}.{FlashAttentionBackend.__name__}"
    assert SteeredFlashBackend.get_name() == FlashAttentionBackend.get_name() == "FLASH_ATTN"


def test_full_cuda_graphs_are_off():
    builder = SteeredFlashBackend.get_builder_cls()
    assert builder.get_cudagraph_support(None, None) is AttentionCGSupport.NEVER


def test_what_comes_later_holds_what_the_scheduler_gets():
    """With asynchronous scheduling reports are put into it."""
    later = object.__new__(AsyncGPUModelRunnerOutput)
    kept = SimpleNamespace(sampled_token_ids=None)
    vars(later).update(
        _model_runner_output=kept, _invalid_req_indices=[], _sampled_token_ids=None,
        _logprobs_tensors=None, _logprobs_tensors_cpu=None, _num_nans=None, _num_nans_cpu=None,
        _has_fault=None,
        sampled_token_ids_cpu=torch.zeros(1, 1), vocab_size=2,
        async_copy_ready_event=SimpleNamespace(synchronize=lambda: None),
    )  # fmt: skip
    assert later.get_output() is kept


def test_an_engine_that_attends_so_answers_as_transformers_does(engine, reference):
    """All kinds in one batch, prompts in pieces."""
    kinds = [*KINDS]
    questions = samples(len(kinds))
    outputs = engine.generate(
        [prompt_of(one) for one in questions], [asked(kind, 12) for kind in kinds], use_tqdm=False
    )
    for output, kind, sample in zip(outputs, kinds, questions, strict=True):
        wanted, ids, region = reference.answer(sample, kind, 12)
        logits, tokens = logits_of(output)
        assert tokens == ids
        torch.testing.assert_close(logits, wanted, atol=NEAR, rtol=0)
        if region is not None:
            told = output.kv_transfer_params["vrga"]
            assert told["heads"] == region.visual.nonzero().tolist()
            assert len(told["share"]["steps"]) == 11
