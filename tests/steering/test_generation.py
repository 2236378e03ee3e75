"""Every way of generating: outputs are those of the method in plain loops, row by row."""

import copy
import random

import pytest
import torch
import transformers
from families import FAMILIES, Batch
from loops import COMPILED, passes
from replay import Replay
from tiny import CACHE, EOS, generate, tiny_model, token_types
from transformers import DynamicCache, StaticCache
from transformers.utils import is_hqq_available

import vrga
from vrga import VRGAConfig
from vrga.method.call import AttentionCall

QWEN = FAMILIES["qwen2_5_vl"]
GAIN = VRGAConfig.published(gain=3.0)
CLOSE = dict(rtol=2e-3, atol=2e-3)


@pytest.fixture(scope="module")
def model():
    return QWEN.shared


def expected(batch: Batch, row: int, tokens, config=GAIN):
    """Logits [T, V] before each token that follows a row's prompt."""
    alone = QWEN.alone(batch, row)
    replay = Replay(QWEN.shared, config.gain, config.gate)
    return replay.turn(alone.inputs, tokens, alone.query[0], alone.grids[0])


def until_end(tokens):
    """Tokens up to and with the end of the turn."""
    ends = (tokens == EOS).nonzero()[:, 0]
    return tokens[: int(ends[0]) + 1] if len(ends) else tokens


def run(model, batch, tokens=6, **options):
    """generate() with logits: (new tokens [B, T], the output)."""
    options = dict(max_new_tokens=tokens, do_sample=False, output_logits=True,
                   return_dict_in_generate=True) | options  # fmt: skip
    out = model.generate(**batch.inputs, **options)
    return out.sequences[:, batch.inputs["input_ids"].shape[1] :], out


def check_rows(batch, tokens, logits, config=GAIN):
    """Every row's logits [B, T, V], up to its end, are those of the row alone."""
    for row in range(len(tokens)):
        own = until_end(tokens[row])
        torch.testing.assert_close(
            logits[row, : len(own)], expected(batch, row, own, config), **CLOSE
        )


def five():
    """Whether this is transformers 5."""
    return int(transformers.__version__.split(".")[0]) >= 5


def skip_unless_the_same_unpatched(model, batch, **options):
    """Some versions of transformers cannot do it, or compute something else, without a patch."""
    wanted = torch.stack(run(model, batch)[1].logits)
    try:
        found = torch.stack(run(model, batch, **options)[1].logits)
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"not in this version: {error}")
    if found.shape != wanted.shape or not torch.allclose(found, wanted, **CLOSE):
        pytest.skip("the unpatched model of this version computes something else then")


# --- batches ---


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_batches_of_mixed_rows(model, size, impl):
    counts = random.Random(size).choices([0, 1, 1, 3], k=size)
    batch = QWEN.batch(counts, seed=size)
    with vrga.patch(model, GAIN, impl=impl):
        tokens, out = run(model, batch)
    check_rows(batch, tokens, torch.stack(out.logits, 1))


def test_rows_that_finish_early_change_nothing_for_the_others(model):
    batch = QWEN.batch([1, 1, 3, 0])
    with vrga.patch(model, GAIN):
        tokens = run(model, batch, 8)[0]
        ends = tokens[0, 2].item()  # make what row 0 says third the end of the turn
        stopped, out = run(model, batch, 8, eos_token_id=ends)
    own = (stopped[0] == ends).nonzero()[0, 0]
    assert own <= 2 and (stopped[0, own + 1 :] == 0).all()
    logits = torch.stack(out.logits, 1)
    for row in range(1, 4):
        end = (stopped[row] == ends).nonzero()[:, 0]
        length = int(end[0]) + 1 if len(end) else stopped.shape[1]
        want = expected(batch, row, stopped[row, :length])
        torch.testing.assert_close(logits[row, :length], want, **CLOSE)


def test_the_order_of_rows_does_not_matter(model):
    batch = QWEN.batch([1, 0, 3, 1])
    order = [2, 0, 3, 1]
    other = QWEN.assemble([batch.rows[i] for i in order])
    with vrga.patch(model, GAIN):
        first = generate(model, batch.inputs)
        second = generate(model, other.inputs)
    assert torch.equal(first[0][order], second[0])
    torch.testing.assert_close(first[1][order], second[1], **CLOSE)


# --- decoding strategies ---


def test_sampling_follows_the_steered_logits(model):
    batch = QWEN.batch([1, 2])
    torch.manual_seed(3)
    with vrga.patch(model, GAIN):
        tokens, out = run(model, batch, do_sample=True, temperature=1.5)
    check_rows(batch, tokens, torch.stack(out.logits, 1))


def test_returned_sequences_are_steered_each(model):
    batch = QWEN.batch([1, 2])
    torch.manual_seed(3)
    with vrga.patch(model, GAIN) as patch:
        tokens, out = run(model, batch, do_sample=True, num_return_sequences=3)
        assert len(patch.region) == 6
    logits = torch.stack(out.logits, 1)
    assert len({tuple(row.tolist()) for row in tokens}) > 2
    for i in range(6):
        own = until_end(tokens[i])
        torch.testing.assert_close(logits[i, : len(own)], expected(batch, i // 3, own), **CLOSE)


@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_beams_score_what_the_method_says(model, impl, sample):
    batch = QWEN.batch([1, 2])
    torch.manual_seed(1)
    with vrga.patch(model, GAIN, impl=impl):
        out = model.generate(
            **batch.inputs, max_new_tokens=5, num_beams=3, num_return_sequences=2,
            do_sample=sample, length_penalty=0.0, output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
    tokens = out.sequences[:, batch.inputs["input_ids"].shape[1] :]
    for i in range(4):
        own = until_end(tokens[i])
        logits = expected(batch, i // 2, own)
        score = logits.log_softmax(-1).gather(1, own[:, None]).sum()
        torch.testing.assert_close(out.sequences_scores[i], score, **CLOSE)


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("drafts", [1, 3, 10])
def test_prompt_lookup_says_what_greedy_says(model, drafts, impl):
    batch = QWEN.batch([1], seed=4)
    with vrga.patch(model, GAIN, impl=impl):
        greedy = run(model, batch, 16)[0]
        # What greedy says stands in the prompt: drafts are accepted, also in the first pass.
        row = [*batch.rows[0][:-1], [*greedy[0].tolist(), *batch.rows[0][-1], greedy[0, 0].item()]]
        repeated = QWEN.assemble([row])
        greedy, plain = run(model, repeated, 16)
        looked_up, out = run(
            model, repeated, 16, prompt_lookup_num_tokens=drafts, max_matching_ngram_size=1
        )
    assert torch.equal(looked_up, greedy)
    torch.testing.assert_close(
        torch.stack(out.logits, 1)[:, : greedy.shape[1]], torch.stack(plain.logits, 1), **CLOSE
    )


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("helper", ["itself", "another"])
def test_an_assistant_changes_no_word(model, helper, impl):
    """The unpatched model as its own assistant is mostly right, a random one never."""
    assistant = copy.deepcopy(model) if helper == "itself" else tiny_model(layers=1, seed=5)
    batch = QWEN.batch([1])
    with vrga.patch(model, VRGAConfig.published(gain=1.2), impl=impl):
        greedy, plain = run(model, batch, 12)
        with passes(model) as seen:
            assisted, out = run(model, batch, 12, assistant_model=assistant)
    widths = [kwargs["inputs_embeds"].shape[1] for kwargs in seen]
    assert max(widths[1:]) > 1  # blocks of drafts
    assert widths[0] == batch.inputs["input_ids"].shape[1]  # and the prompt alone
    assert torch.equal(assisted, greedy)
    logits = torch.stack(out.logits, 1)[:, : greedy.shape[1]]
    torch.testing.assert_close(logits, torch.stack(plain.logits, 1), **CLOSE)
    check_rows(batch, greedy, logits, VRGAConfig.published(gain=1.2))


# --- caches ---


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_static_cache(model, compiled, impl):
    torch._dynamo.reset()
    batch = QWEN.batch([1, 2])
    how = dict(compile_config=COMPILED) if compiled else dict(disable_compile=True)
    with vrga.patch(model, GAIN, impl=impl):
        tokens, out = run(model, batch, cache_implementation="static", **how)
    check_rows(batch, tokens, torch.stack(out.logits, 1))


def test_an_offloaded_cache(model):
    if not torch.accelerator.is_available():
        with pytest.raises(Exception):  # noqa: B017 - transformers' own, without an accelerator
            model.generate(**QWEN.batch([1]).inputs, cache_implementation="offloaded")
        pytest.skip("an offloaded cache needs an accelerator")
    batch = QWEN.batch([1, 2])
    with vrga.patch(model, GAIN):
        tokens, out = run(model, batch, cache_implementation="offloaded")
    check_rows(batch, tokens, torch.stack(out.logits, 1))


@pytest.mark.skipif(not is_hqq_available(), reason="hqq is not installed")
def test_a_quantised_cache_is_steered_over_its_quantised_keys():
    """Keys come back rounded: close to the plain cache's, and the region the same."""
    big = tiny_model(heads=4, kv_heads=2, size=64)
    batch = QWEN.batch([1, 2])

    def quantised():
        config = dict(backend="hqq", nbits=8, axis_key=1, axis_value=1, residual_length=8)
        return generate(
            big, batch.inputs, 4, cache_implementation="quantized", cache_config=config
        )[1]

    with vrga.patch(big, GAIN) as patch:
        plain, regions = generate(big, batch.inputs, 4)[1], patch.region
        rounded, other = quantised(), patch.region
    unsteered = quantised()
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(regions, other, strict=True))
    assert (rounded[:, 1] - plain[:, 1]).abs().max() < 0.2 * (unsteered - rounded)[:, 1].abs().max()


def prefix(batch, length):
    """The first tokens of a batch's one row, which hold no image."""
    cut = {k: v[:, :length] for k, v in batch.inputs.items()
           if k in ("input_ids", "attention_mask", "mm_token_type_ids")}  # fmt: skip
    assert not (cut["input_ids"] == 90).any()
    return cut


@pytest.mark.parametrize("patched", [True, False])
@torch.no_grad()
def test_a_cache_of_the_prompts_beginning_can_be_reused(model, patched):
    """Also one that was filled without the patch: the prompt is read from the ids."""
    batch = QWEN.batch([1])
    cache = DynamicCache(config=model.config.get_text_config())
    start = prefix(batch, 3)
    model.model.rope_deltas = None  # another batch's
    model(**start, **{CACHE: cache}, use_cache=True)
    skip_unless_the_same_unpatched(model, batch, **{CACHE: cache})
    cache = DynamicCache(config=model.config.get_text_config())
    with vrga.patch(model, GAIN) as patch:
        patch.enabled = patched
        model.model.rope_deltas = None
        model(**start, **{CACHE: cache}, use_cache=True)
        patch.enabled = True
        tokens, out = run(model, batch, **{CACHE: copy.deepcopy(cache)})
        again = run(model, batch, **{CACHE: cache})[0]
    check_rows(batch, tokens, torch.stack(out.logits, 1))
    assert torch.equal(again, tokens)


def test_going_on_with_an_answer_keeps_the_region(model):
    batch = QWEN.batch([1])
    cache = DynamicCache(config=model.config.get_text_config())
    with vrga.patch(model, GAIN) as patch:
        whole = run(model, batch, 9)[0]
        _, out = run(model, batch, 4, **{CACHE: cache})
        region = patch.region
        ids = out.sequences
        more = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **{CACHE: cache},
            max_new_tokens=5, do_sample=False,
        )  # fmt: skip
        assert patch.region is region
    assert torch.equal(more[:, -5:], whole[:, 4:])


# --- conversations ---


def second_turn(model, batch, images, steps=5, cache=None, **options):
    """Two turns through generate() on one cache: patched regions, tokens, logits per turn."""
    cache = DynamicCache(config=model.config.get_text_config()) if cache is None else cache
    tokens, out = run(model, batch, 4, **{CACHE: cache}, min_new_tokens=4, **options)
    g = torch.Generator().manual_seed(9)
    words = torch.randint(2, 80, (6,), generator=g).tolist()
    new = [QWEN.image(g, 5 + i) for i in range(images)]
    later = QWEN.assemble([[[tokens[0, -1].item(), EOS], *new, [*words, EOS, 4, 5]]])
    ids = torch.cat([out.sequences[:, :-1], later.inputs["input_ids"]], 1)
    inputs = dict(later.inputs, attention_mask=torch.ones_like(ids))
    if not images:  # the whole conversation again; generate() takes new images with new ids alone
        inputs |= dict(input_ids=ids, **token_types(ids))
    second, later_out = run(model, Batch(inputs, [], []), steps, **{CACHE: cache},
                            min_new_tokens=steps, **options)  # fmt: skip
    return tokens, out, later, second, later_out


@pytest.mark.parametrize("images", [0, 1])
def test_the_second_turn(model, images):
    """Its question looks at the images of all turns; so does the method in loops."""
    if images and not five():
        pytest.skip("this version's generate() takes no new image on a cache")
    batch = QWEN.batch([2])
    with vrga.patch(model, GAIN) as patch:
        tokens, out, later, second, later_out = second_turn(model, batch, images)
        region = patch.region[0]
    held = batch.inputs["input_ids"].shape[1] + 3
    replay = Replay(model, GAIN.gain)
    first_logits = replay.turn(batch.inputs, tokens[0], batch.query[0], batch.grids[0])
    torch.testing.assert_close(torch.stack(out.logits, 1)[0], first_logits, **CLOSE)
    more = dict(position_ids=positions_of(model, batch, images))
    grids = [([p + held for p in index], h, w) for index, h, w in later.grids[0]]
    inputs = dict(later.inputs)
    logits = replay.turn(inputs, second[0], held + later.query[0], grids, **more)
    assert region.query == held + later.query[0] and len(region.grids) == 2 + images
    assert region.mask.nonzero()[:, 0].tolist() == replay.found["mask"]
    torch.testing.assert_close(torch.stack(later_out.logits, 1)[0], logits, **CLOSE)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_second_turn_on_a_static_cache(model, compiled):
    torch._dynamo.reset()
    batch = QWEN.batch([2])
    how = dict(compile_config=COMPILED) if compiled else dict(disable_compile=True)
    cache = StaticCache(model.config.get_text_config(), max_cache_len=128)
    with vrga.patch(model, GAIN) as patch:
        dynamic, region = second_turn(model, batch, 0)[3:], patch.region[0]
        static = second_turn(model, batch, 0, cache=cache, **how)[3:]
        assert torch.equal(patch.region[0].mask, region.mask)
        assert patch.region[0].query == region.query
    assert torch.equal(static[0], dynamic[0])
    logits = (torch.stack(out.logits, 1) for _, out in (static, dynamic))
    torch.testing.assert_close(*logits, **CLOSE)


def test_a_second_turn_is_one_also_where_no_token_closes_turns():
    """LLaVA 1.5's template has none."""
    llava = FAMILIES["llava"]
    batch = llava.batch([1])
    model, text = llava.shared, llava.shared.config.get_text_config()
    inputs = {k: v[:, :-3] if k in ("input_ids", "attention_mask") else v
              for k, v in batch.inputs.items()}  # fmt: skip
    assert not (inputs["input_ids"] == EOS).any()
    cache = DynamicCache(config=text)
    with vrga.patch(model, GAIN) as patch:
        first = model.generate(**inputs, **{CACHE: cache}, max_new_tokens=3, min_new_tokens=3)
        region = patch.region[0]
        assert region.query == inputs["input_ids"].shape[1] - 1
        ids = torch.cat([first, torch.tensor([[11, 12, 13, 14, 15, 16]])], 1)
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **{CACHE: cache},
                       max_new_tokens=2)  # fmt: skip
        assert patch.region[0].query == ids.shape[1] - 1
        assert patch.region[0].grids[0].index.tolist() == region.grids[0].index.tolist()


def positions_of(model, batch, images):
    """The position ids that generate() gives the second turn's prompt, unpatched."""
    with passes(model) as seen:
        second_turn(model, batch, images)
    return [k["position_ids"] for k in seen if k["inputs_embeds"].shape[1] > 1][-1]


# --- prefill in chunks ---


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("chunk", [5, 16, 31, 1000])
def test_chunks_of_the_prefill_find_the_same_region(model, chunk, impl):
    batch = QWEN.batch([1, 2, 0])
    skip_unless_the_same_unpatched(model, batch, prefill_chunk_size=chunk)
    with vrga.patch(model, GAIN, impl=impl) as patch:
        tokens, out = run(model, batch)
        regions = patch.region
        in_chunks, chunked = run(model, batch, prefill_chunk_size=chunk)
        assert all(torch.equal(a.mask, b.mask) for a, b in zip(regions, patch.region, strict=True))
    assert torch.equal(in_chunks, tokens)
    torch.testing.assert_close(torch.stack(chunked.logits, 1), torch.stack(out.logits, 1), **CLOSE)


@torch.no_grad()
def test_a_prompt_in_pieces_by_hand(model):
    """The image in the first piece, the question over two more."""
    batch = QWEN.batch([1])
    length = batch.inputs["input_ids"].shape[1]
    with vrga.patch(model, GAIN) as patch:
        _, out = run(model, batch)
        whole = patch.region[0]
        cache = DynamicCache(config=model.config.get_text_config())
        with passes(model) as seen:
            model(**batch.inputs)
        positions = seen[0]["position_ids"]
        patch.announce(batch.inputs)
        for start, end in ((0, length - 5), (length - 5, length - 2), (length - 2, length)):
            keep = dict(batch.inputs) if start == 0 else {}
            keep |= {k: batch.inputs[k][:, start:end] for k in ("input_ids", "mm_token_type_ids")
                     if k in batch.inputs}  # fmt: skip
            keep["attention_mask"] = batch.inputs["attention_mask"][:, :end]
            keep["position_ids"] = positions[..., start:end]
            got = model(**keep, **{CACHE: cache}, use_cache=True)
        assert torch.equal(patch.region[0].mask, whole.mask)
        torch.testing.assert_close(got.logits[:, -1], out.logits[0], **CLOSE)


# --- by hand, gradients, autocast ---


@torch.no_grad()
def greedy_by_hand(model, inputs, steps):
    """A user's own loop."""
    out = model(**inputs, use_cache=True)
    logits, cache = [out.logits[:, -1]], out[CACHE]
    length = inputs["attention_mask"].shape[1]
    for i in range(steps - 1):
        place = length + i + model.model.rope_deltas.view(1, -1, 1)
        out = model(input_ids=logits[-1].argmax(-1, keepdim=True), **{CACHE: cache},
                    position_ids=place.expand(3, -1, 1), use_cache=True)  # fmt: skip
        logits.append(out.logits[:, -1])
    return torch.stack(logits, 1)


def test_a_loop_by_hand(model):
    batch = QWEN.batch([2])
    with vrga.patch(model, GAIN):
        logits = greedy_by_hand(model, batch.inputs, 5)
    check_rows(batch, logits.argmax(-1), logits)


def test_embeddings_with_token_types(model):
    batch = QWEN.batch([1])
    if "mm_token_type_ids" not in batch.inputs:
        pytest.skip("this version's model takes no token types")
    with passes(model) as seen:
        model(**batch.inputs)
    embeds, positions = seen[0]["inputs_embeds"], seen[0]["position_ids"]
    inputs = {k: batch.inputs[k] for k in ("attention_mask", "mm_token_type_ids", "image_grid_thw")}
    inputs |= dict(inputs_embeds=embeds.detach(), position_ids=positions)
    with vrga.patch(model, GAIN, query=torch.tensor(batch.query)):
        logits = greedy_by_hand(model, inputs, 4)
    check_rows(batch, logits.argmax(-1), logits)
    with vrga.patch(model, GAIN, query=torch.tensor(batch.query)) as patch:
        model.generate(input_ids=None, inputs_embeds=inputs["inputs_embeds"], max_new_tokens=2,
                       mm_token_type_ids=inputs["mm_token_type_ids"],
                       image_grid_thw=inputs["image_grid_thw"])  # fmt: skip
        assert patch.region[0].mask.any()
    inputs.pop("mm_token_type_ids")
    with vrga.patch(model, GAIN), pytest.raises(ValueError, match="inputs_embeds do not tell"):
        model(**inputs)


def test_gradients_flow_through_steered_steps(model):
    """Steering in torch is differentiable; the gradient is that of the same formula."""
    model = copy.deepcopy(model).train()
    batch = QWEN.batch([1])
    weight = model.model.language_model.layers[1].self_attn.v_proj.weight

    def loss():
        out = model(**batch.inputs, use_cache=True)
        step = model(input_ids=torch.tensor([[7]]), **{CACHE: out[CACHE]},
                     use_cache=True)  # fmt: skip
        return step.logits.double().logsumexp(-1).sum()

    @torch.no_grad()
    def shifted(by):
        weight.add_(by * direction)
        value = loss().item()
        weight.sub_(by * direction)
        return value

    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    with vrga.patch(model, GAIN):
        steered = loss()
        steered.backward()
        slope = (weight.grad * direction).sum().item()
        numeric = (shifted(1e-3) - shifted(-1e-3)) / 2e-3
    assert slope == pytest.approx(numeric, rel=2e-2)
    assert loss().item() != pytest.approx(steered.item(), abs=1e-4)


def test_the_triton_kernel_refuses_gradients(model):
    """Also where the values alone need one, as with an adapter on them."""
    model, batch = copy.deepcopy(model).requires_grad_(False), QWEN.batch([1])
    model.model.language_model.layers[0].self_attn.v_proj.weight.requires_grad_(True)
    with vrga.patch(model, GAIN, impl="triton"):
        out = model(**batch.inputs, use_cache=True)
        with pytest.raises(RuntimeError, match="no backward pass.*torch.no_grad"):
            model(input_ids=torch.tensor([[7]]), **{CACHE: out[CACHE]})


@pytest.mark.parametrize("name", ["s_aux", "softcap"])
def test_attention_that_is_more_than_a_softmax_is_refused(name):
    """InternVL around gpt-oss has attention sinks."""
    model, batch = tiny_model(), QWEN.batch([1])
    layer = model.model.language_model.layers[0].self_attn
    forward = layer.forward

    def with_sinks(*args, **kwargs):
        return forward(*args, **{name: torch.zeros(8)}, **kwargs)

    layer.forward = with_sinks
    with vrga.patch(model), pytest.raises(ValueError, match=name):
        generate(model, batch.inputs)


def test_an_interrupted_verification_leaves_nothing_behind(model):
    batch, calls = QWEN.batch([1]), []

    def fail(module, args, kwargs):
        calls.append(kwargs["inputs_embeds"].shape[1])
        if len(calls) == 2:  # the drafts behind the prompt
            raise KeyError("stop")

    with vrga.patch(model, GAIN):
        handle = model.model.language_model.register_forward_pre_hook(fail, with_kwargs=True)
        with pytest.raises(KeyError):
            run(model, batch, assistant_model=tiny_model(layers=1))
        handle.remove()
        with torch.no_grad():
            assert model(**batch.inputs).logits.shape[1] == batch.inputs["input_ids"].shape[1]
    assert calls[1] < calls[0]


def test_dropout_in_attention_is_refused():
    model = tiny_model()
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.1
    batch = QWEN.batch([1])
    with vrga.patch(model):
        generate(model, batch.inputs, 2)
        model.train()
        out = model(**batch.inputs, use_cache=True)
        with pytest.raises(ValueError, match="dropout.*model.eval()"):
            model(input_ids=torch.tensor([[7]]), **{CACHE: out[CACHE]})


@pytest.mark.parametrize("impl", ["torch", "triton"])
@torch.inference_mode()
def test_autocast_and_inference_mode(model, impl):
    """The same token after the same prompt, rounded: near the exact logits, steered or not."""
    batch = QWEN.batch([1, 2])

    def second_logits():
        out = model(**batch.inputs, use_cache=True)
        place = batch.inputs["input_ids"].shape[1] + model.model.rope_deltas.view(1, -1, 1)
        return model(
            input_ids=torch.tensor([[7], [8]]), **{CACHE: out[CACHE]},
            position_ids=place.expand(3, -1, 1), use_cache=True,
        ).logits  # fmt: skip

    with vrga.patch(model, GAIN, impl=impl) as patch:
        exact, regions = second_logits(), patch.region
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = second_logits()
        assert all(torch.equal(a.mask, b.mask) for a, b in zip(regions, patch.region, strict=True))
    assert (rounded - exact).abs().max() < 0.3 * (second_logits() - exact).abs().max()


@torch.no_grad()
def test_our_own_sums_are_not_rounded_by_autocast(model):
    g = torch.Generator().manual_seed(0)
    batch = QWEN.batch([1])
    with vrga.patch(model, GAIN) as patch:
        model(**batch.inputs, use_cache=True)
        keys = batch.inputs["input_ids"].shape[1] + 1
        q, k, v = (torch.randn(1, h, n, 16, generator=g) for h, n in ((8, 1), (2, keys), (2, keys)))
        call = AttentionCall(1, q, k, v, None, scale=0.25, window=None, own=None)
        exact = patch._hooks.run.step.attend(call)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(patch._hooks.run.step.attend(call)[0], exact)


# --- refusals ---


def test_an_early_exit_as_assistant_is_refused(model):
    with (
        vrga.patch(model),
        pytest.raises(ValueError, match="assistant_early_exit.*assistant_model"),
    ):
        run(model, QWEN.batch([1]), assistant_early_exit=1)


def test_right_padding_is_refused(model):
    inputs = QWEN.batch([1, 2]).inputs
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    with vrga.patch(model), pytest.raises(ValueError, match=r"rows \[0\].*padding_side = 'left'"):
        model.generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize(
    ("attention", "told"),
    [
        ("flex_attention", "hides its mask in a BlockMask.*'sdpa', 'eager'"),
        ("paged|eager", "'paged|eager' has no mask function.*one of: .*sdpa"),
    ],
)
def test_backends_that_hide_what_is_visible_are_refused(attention, told):
    model = tiny_model()
    model.config.get_text_config()._attn_implementation_internal = attention
    before = vars(model).keys() - {"generate"}
    with pytest.raises(ValueError, match=told.replace("|", r"\|")):
        vrga.patch(model)
    assert vars(model).keys() == before and vrga.unpatch(model) is False


def test_a_model_whose_attention_cannot_be_replaced_is_refused(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(model, "set_attn_implementation", lambda wanted: None)
    with pytest.raises(ValueError, match="does not let its attention be replaced"):
        vrga.patch(model)
    assert vrga.unpatch(model) is False


def test_layers_that_do_not_hand_their_arguments_on_are_noticed(monkeypatch):
    model = tiny_model()
    layer = model.model.language_model.layers[1]
    forward = layer.forward
    monkeypatch.setattr(
        layer,
        "forward",
        lambda *a, **kw: forward(*a, **{k: v for k, v in kw.items() if k != "vrga"}),
    )
    with vrga.patch(model), pytest.raises(RuntimeError, match="only 2 of the model's 3 layers"):
        generate(model, QWEN.batch([1]).inputs)


def test_encoder_decoder_models_are_refused():
    config = transformers.T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, vocab_size=20,
                                   d_kv=8)  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    with pytest.raises(ValueError, match="is an encoder-decoder model.*supported model types"):
        vrga.patch(model)


def test_chunks_of_the_prefill_cannot_be_compiled(model):
    torch._dynamo.reset()
    if not five():
        pytest.skip("this version cannot split a prompt with images")
    with vrga.patch(model), pytest.raises(Exception, match="disable_compile=True"):
        run(model, QWEN.batch([1]), prefill_chunk_size=9, cache_implementation="static",
            compile_config=COMPILED)  # fmt: skip


def test_a_reset_static_cache_starts_anew(model):
    """A one-token prompt after a picture: nothing is left to steer to."""
    cache = StaticCache(model.config.get_text_config(), max_cache_len=80)
    word = dict(input_ids=torch.tensor([[7]]), attention_mask=torch.ones(1, 1, dtype=torch.long))
    base = generate(model, word, 14)[1]  # as many keys as reach where the image was
    with vrga.patch(model, GAIN):
        run(model, QWEN.batch([1]), **{CACHE: cache}, disable_compile=True)
        cache.reset()
        fresh = generate(model, word, 14, **{CACHE: cache}, disable_compile=True)[1]
    torch.testing.assert_close(fresh, base, **CLOSE)


def test_a_word_by_hand_on_a_reset_static_cache_is_no_step(model):
    cache = StaticCache(model.config.get_text_config(), max_cache_len=80)
    word = dict(input_ids=torch.tensor([[7]]), attention_mask=torch.ones(1, 1, dtype=torch.long))
    with vrga.patch(model, GAIN), torch.inference_mode():
        run(model, QWEN.batch([1]), **{CACHE: cache}, disable_compile=True)
        cache.reset()
        with pytest.raises(RuntimeError, match="the cache is empty, but"):
            model(**word, use_cache=True, **{CACHE: cache})
