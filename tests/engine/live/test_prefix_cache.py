"""Keys that requests share: up to a steered question, and none of a steered answer."""

import torch
from engine_cases import asked, logits_of, prompt_of, samples

NEAR = 1e-4
OPTIONS = {"enable_prefix_caching": True, "num_gpu_blocks_override": 128}


def answer(engine, prompt, kind, tokens=64):
    (output,) = engine.generate([prompt], [asked(kind, tokens)], use_tqdm=False)
    return output


def follow_up(prompt, text):
    """The same prompt, an answer to it, and a second question about its image."""
    return prompt | {
        "prompt": prompt["prompt"] + text
        + "<|im_end|>\n<|im_start|>user\nwhat color is the K?<|im_end|>\n<|im_start|>assistant\n"
    }  # fmt: skip


def test_hits_end_before_a_steered_question(engine, reference):
    sample = samples(1, "large")[0]  # of more blocks than one
    prompt = prompt_of(sample)
    for kind in ("base", "dynamic", "paper", "dynamic", "base"):
        output = answer(engine, prompt, kind)
        wanted, ids, region = reference.answer(sample, kind, 64)
        logits, tokens = logits_of(output)
        assert tokens == ids
        torch.testing.assert_close(logits, wanted, atol=NEAR, rtol=0)
        if kind != "base":
            assert output.kv_transfer_params["vrga"]["tokens"] == int(region.mask.sum())
    hits = output.num_cached_tokens
    assert hits >= 96  # of what was asked before


def test_a_question_whose_blocks_are_all_cached_is_looked_at_again(engine):
    prompt = prompt_of(samples(1, "large")[0])
    prompt["prompt"] = prompt["prompt"] + "<think> " + "see A red, " * 40  # far behind the question
    first, second = (answer(engine, prompt, "dynamic", 8) for _ in range(2))
    plain = answer(engine, prompt, "base", 8)
    assert plain.num_cached_tokens > second.num_cached_tokens >= 96
    torch.testing.assert_close(logits_of(second)[0], logits_of(first)[0], atol=NEAR, rtol=0)


def test_no_other_request_reuses_a_steered_answer(engine, reference):
    sample = samples(2, "large")[1]
    prompt = prompt_of(sample)
    text = answer(engine, prompt, "dynamic", 64).outputs[0].text
    later = answer(engine, follow_up(prompt, text), "base", 16)
    inputs = reference.processor(
        text=[follow_up(prompt, text)["prompt"]], images=[sample.image], return_tensors="pt"
    )
    wanted, ids, _ = reference.answer(None, "base", 16, inputs=inputs)
    logits, tokens = logits_of(later)
    assert tokens == ids
    torch.testing.assert_close(logits, wanted, atol=NEAR, rtol=0)
    own = (len(prompt["prompt"]), later.num_cached_tokens)
    assert 96 <= later.num_cached_tokens <= 128, own  # the first prompt's blocks, and no more
