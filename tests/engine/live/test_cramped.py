"""Prompts in pieces and requests that are preempted: logits as in transformers, not tokens alone.

The blocks do not suffice for all answers, and a piece is shorter than an image.
"""

import pytest
import torch
from engine_cases import KINDS, asked, logits_of, prompt_of, samples
from vllm.v1.core.sched.scheduler import Scheduler

from vrga.engine.answer_rows import Piece

NEAR = 1e-4
OPTIONS = {"max_num_batched_tokens": 24, "num_gpu_blocks_override": 12, "max_model_len": 256}


@pytest.fixture
def preempted(monkeypatch):
    """Requests that were preempted, in order."""
    found, own = [], Scheduler._preempt_request

    def told(self, request, *args, **kwargs):
        found.append(request.request_id)
        return own(self, request, *args, **kwargs)

    monkeypatch.setattr(Scheduler, "_preempt_request", told)
    return found


def differences(engine, reference, kinds, tokens):
    """How far each request's logits are from those of transformers, up to a token that differs;
    and whether one does."""
    questions = samples(len(kinds))
    outputs = engine.generate(
        [prompt_of(one) for one in questions], [asked(kind, tokens) for kind in kinds],
        use_tqdm=False,
    )  # fmt: skip
    far, same = [], True
    for output, kind, sample in zip(outputs, kinds, questions, strict=True):
        logits, ids = logits_of(output)
        wanted, wanted_ids, _ = reference.answer(sample, kind, tokens)
        end = next((i + 1 for i in range(tokens) if ids[i] != wanted_ids[i]), tokens)
        far.append(float((logits[:end] - wanted[:end]).abs().max()))
        same &= ids == wanted_ids
    return max(far), same


def test_pieces_and_preemptions_change_nothing(engine, reference, preempted):
    kinds = [*KINDS, "dynamic", "paper", "dynamic", "paper"]
    far, same = differences(engine, reference, kinds, 96)
    assert far < NEAR and same
    assert len(preempted) >= 2


def test_rows_of_an_answer_that_come_again_must_be_steered(
    engine, reference, preempted, monkeypatch
):
    """Were they taken for rows of the prompt, most tokens would stay, and logits would not."""

    def as_prompt(self):
        return self.rows if self.rows > 1 else 0 if self.past >= self.state.plan.prompt else 1

    monkeypatch.setattr(Piece, "answer", property(as_prompt))
    far, _ = differences(engine, reference, ["dynamic", "paper"] * 4, 96)
    assert preempted
    assert far > 100 * NEAR


def test_an_answer_in_spans_is_followed_through_preemptions(engine, reference, preempted):
    questions, asking = samples(8), {"preset": "published", "when": "back"}
    outputs = engine.generate(
        [prompt_of(one, "back") for one in questions], [asked(asking, 96)] * 8, use_tqdm=False
    )
    assert preempted
    for output, sample in zip(outputs, questions, strict=True):
        wanted, ids, _ = reference.answer(sample, asking, 96, prompt="back")
        logits, tokens = logits_of(output)
        assert tokens == ids
        torch.testing.assert_close(logits, wanted, atol=NEAR, rtol=0)
