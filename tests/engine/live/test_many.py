"""Many requests at once, some of them aborted: each equals itself alone, and nothing is kept."""

import gc

import torch
from engine_cases import KINDS, asked, logits_of, prompt_of, samples

from vrga.engine.steered import Steered

NEAR = 1e-4
OPTIONS = {"max_num_seqs": 64, "num_gpu_blocks_override": 256, "max_num_batched_tokens": 256,
           "enable_prefix_caching": True}  # fmt: skip
TOKENS = 24
MIXED = [*KINDS, "released", "mask", "back", "given"]
OWN = {
    "released": {"preset": "released"},
    "mask": {"preset": "released_mask"},
    "back": {"preset": "published", "when": "back"},
    "given": {"preset": "published", "gain": 3, "given": [[[0.2, 0.2, 0.6, 0.6]]]},
}


def asking(number):
    """Parameters of one of many requests."""
    kind = MIXED[number % len(MIXED)]
    return asked(OWN.get(kind, kind), TOKENS + number % 5)


def test_sixty_four_at_once_and_each_alone(engine):
    questions = samples(16)
    prompts = [prompt_of(questions[i % 16], "back" if i % 8 == 6 else "cot") for i in range(64)]
    together = engine.generate(prompts, [asking(i) for i in range(64)], use_tqdm=False)
    for number in range(0, 64, 3):
        (alone,) = engine.generate([prompts[number]], [asking(number)], use_tqdm=False)
        logits, tokens = logits_of(together[number])
        wanted, ids = logits_of(alone)
        assert tokens == ids
        torch.testing.assert_close(logits, wanted, atol=NEAR, rtol=0)
        for name in ("boxes", "heads", "query"):
            told = [(one.kv_transfer_params or {"vrga": {}})["vrga"].get(name)
                    for one in (together[number], alone)]  # fmt: skip
            assert told[0] == told[1]


def test_requests_that_are_aborted_leave_nothing_behind(engine):
    core = engine.llm_engine
    prompt = prompt_of(samples(1)[0])
    for number in range(12):
        core.add_request(str(number), prompt, asking(number))
    for _ in range(4):
        core.step()
    core.abort_request([str(number) for number in range(0, 12, 2)])
    done = []
    while core.has_unfinished_requests():
        done += [one for one in core.step() if one.finished]
    assert {one.request_id for one in done} == {str(number) for number in range(1, 12, 2)}
    assert all(one.kv_transfer_params["vrga"]["steered"] for one in done
               if MIXED[int(one.request_id) % 8] != "base")  # fmt: skip
    engine.generate([prompt], [asked(None, 2)], use_tqdm=False)  # workers hear of what has ended
    del done
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is Steered]
