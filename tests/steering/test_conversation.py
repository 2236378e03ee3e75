"""A second turn on the first one's cache; blocks of query rows."""

import pytest
import torch
from tiny import CACHE, EOS, batch, shared_model, token_types
from transformers import DynamicCache

import vrga


def greedy_turn(model, cache, ids, grid=None, pixels=None, steps=4):
    """One turn by hand: prefill `ids` on the cache, then greedy steps. New tokens, last logits."""
    extra = {}
    if grid is not None:
        extra = dict(pixel_values=pixels, image_grid_thw=grid, **token_types(ids))
    past = cache.get_seq_length()
    full = torch.ones(1, past + ids.shape[1], dtype=torch.long)
    position = torch.arange(past, past + ids.shape[1]).expand(3, 1, -1) if past else None
    out = model(
        input_ids=ids, attention_mask=full, **{CACHE: cache}, position_ids=position,
        use_cache=True, **extra,
    )  # fmt: skip
    tokens, logits = [], []
    for _ in range(steps):
        logits.append(out.logits[:, -1])
        tokens.append(out.logits[:, -1].argmax(-1, keepdim=True))
        place = cache.get_seq_length()
        out = model(
            input_ids=tokens[-1], **{CACHE: cache}, use_cache=True,
            position_ids=torch.full((3, 1, 1), place),
        )  # fmt: skip
    return torch.cat(tokens, 1), torch.stack(logits)


@torch.no_grad()
def test_the_second_turn_locates_its_own_question_in_the_image_of_the_first():
    model, inputs = shared_model(), batch([[(6, 6)]])
    question = torch.tensor([[11, 12, 13, EOS, 14]])
    with vrga.patch(model) as patch:
        cache = DynamicCache(config=model.config.get_text_config())
        greedy_turn(
            model, cache, inputs["input_ids"], inputs["image_grid_thw"], inputs["pixel_values"]
        )
        first = patch.region[0]
        held = cache.get_seq_length()
        steered = greedy_turn(model, cache, question)[1]
        second = patch.region[0]
        assert second.query == held + 2
        assert second.map[0].shape == (6, 6) and not torch.equal(second.map[0], first.map[0])
        assert len(second.mask) == held + 5 and not second.mask[len(first.mask) :].any()
        patch.query = torch.tensor([held])
        with pytest.raises(ValueError, match="lies before the tokens of this forward pass"):
            greedy_turn(model, cache, question)
        patch.query = torch.tensor([cache.get_seq_length() + 1])
        greedy_turn(model, cache, question)
        assert patch.region[0].query == cache.get_seq_length() - 4 - 5 + 1
    assert not torch.equal(steered[1], steered[0])


@torch.no_grad()
@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_a_block_of_query_rows_is_steered_like_single_ones(impl):
    model, inputs = shared_model(), batch([[(6, 6)]])
    tokens = torch.tensor([[21, 22, 23, 24]])
    length = inputs["input_ids"].shape[1]
    with vrga.patch(model, impl=impl):

        def prefilled():
            return model(**inputs, use_cache=True)[CACHE]

        block = model(
            input_ids=tokens, **{CACHE: prefilled()}, use_cache=True,
            attention_mask=torch.ones(1, length + 4, dtype=torch.long),
            position_ids=torch.arange(length, length + 4).expand(3, 1, -1),
        ).logits  # fmt: skip
        cache, single = prefilled(), []
        for i in range(4):
            single.append(
                model(
                    input_ids=tokens[:, i : i + 1], **{CACHE: cache}, use_cache=True,
                    position_ids=torch.full((3, 1, 1), length + i),
                ).logits
            )  # fmt: skip
    base = model(
        input_ids=tokens, **{CACHE: prefilled_plain(model, inputs)}, use_cache=True,
        attention_mask=torch.ones(1, length + 4, dtype=torch.long),
        position_ids=torch.arange(length, length + 4).expand(3, 1, -1),
    ).logits  # fmt: skip
    torch.testing.assert_close(block, torch.cat(single, 1), rtol=1e-3, atol=1e-3)
    assert (block - base).abs().max() > 0.1


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_candidates_beside_the_prompt_are_taken_back(impl):
    """Prompt lookup may draft in its first pass already, and then cut the cache again."""
    model, inputs = shared_model(), batch([[(6, 6)]])
    inputs["input_ids"][0, -2:] = inputs["input_ids"][0, -7:-5]  # the end repeats the question
    options = dict(max_new_tokens=5, do_sample=False, prompt_lookup_num_tokens=12)
    with vrga.patch(model, impl=impl) as patch:
        model.generate(**inputs, **options)
        assert patch.region[0].mask.any()


def prefilled_plain(model, inputs):
    return model(**inputs, use_cache=True)[CACHE]


@pytest.mark.parametrize(
    "options",
    [
        dict(num_beams=3),
        dict(prompt_lookup_num_tokens=3),
        dict(num_return_sequences=2, do_sample=True),
    ],
    ids=str,
)
def test_other_ways_of_generating_run_steered(options):
    model, inputs = shared_model(), batch([[(6, 6)]])
    arguments = dict(max_new_tokens=6, min_new_tokens=6, output_logits=True,
                     return_dict_in_generate=True) | options  # fmt: skip
    torch.manual_seed(0)
    base = model.generate(**inputs, **arguments)
    with vrga.patch(model) as patch:
        torch.manual_seed(0)
        steered = model.generate(**inputs, **arguments)
        expanded = options.get("num_beams", options.get("num_return_sequences", 1))
        assert len(patch.region) == expanded
        assert all(torch.equal(r.mask, patch.region[0].mask) for r in patch.region)
        if "prompt_lookup_num_tokens" in options:
            plain = dict(arguments)
            plain.pop("prompt_lookup_num_tokens")
            greedy = model.generate(**inputs, **plain, do_sample=False)
            assert torch.equal(greedy.sequences, steered.sequences)
    assert not torch.equal(steered.logits[1], base.logits[1])
