"""Two workers that share the heads: one region, and logits as in transformers."""

import torch
from engine_cases import KINDS, asked, logits_of, prompt_of, samples

NEAR = 1e-4
OPTIONS = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}


def test_two_workers_steer_as_one(engine, reference):
    kinds = [*KINDS] * 2
    questions = samples(len(kinds))
    outputs = engine.generate(
        [prompt_of(one) for one in questions], [asked(kind, 32) for kind in kinds], use_tqdm=False
    )
    for output, kind, sample in zip(outputs, kinds, questions, strict=True):
        wanted, ids, region = reference.answer(sample, kind, 32)
        logits, tokens = logits_of(output)
        assert tokens == ids
        torch.testing.assert_close(logits, wanted, atol=NEAR, rtol=0)
        if region is not None:
            told = output.kv_transfer_params["vrga"]
            assert told["tokens"] == int(region.mask.sum())
            assert told["heads"] == region.visual.nonzero().tolist()
            assert len(told["share"]["steps"]) == 31
