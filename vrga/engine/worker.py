"""What a worker of vLLM knows of its model, as steering needs it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vrga.engine.runner import Worker
from vrga.method.tag_table import TagTable, tag_table

_KEPT = "vrga_worker"


def worker_of(runner: Any) -> Worker:
    """The worker of a model runner, made once."""
    found = vars(runner).get(_KEPT)
    if found is None:
        found = _worker(runner)
        setattr(runner, _KEPT, found)
    return found


def _worker(runner: Any) -> Worker:
    from vllm.distributed.parallel_state import get_tp_group
    from vllm.tokenizers import cached_tokenizer_from_config

    model, parallel, group = runner.model_config, runner.parallel_config, get_tp_group()
    heads = model.get_num_attention_heads(parallel)
    first = group.rank_in_group * heads

    def spans(tag: str) -> TagTable:
        return tag_table(cached_tokenizer_from_config(model), model.get_vocab_size(), tag)

    alone = Worker(
        model.hf_config, model.get_num_layers(parallel), slice(first, first + heads), spans
    )
    if group.world_size == 1:
        return alone
    return replace(alone, gather=lambda rows: group.all_gather(rows, dim=1), total=group.all_reduce)
