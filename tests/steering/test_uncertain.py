"""Steering where the model is uncertain: by the entropy of what each token was drawn from."""

import threading

import pytest
import torch
from doubting import Doubting
from families import FAMILIES
from loops import COMPILED, cache_name, loop
from tiny import CACHE, generate, tiny_model

import vrga
from vrga import Trace, VRGAConfig
from vrga.hf.cache import cache_in
from vrga.method.uncertainty import Uncertainty
from vrga.report import render

QWEN = FAMILIES["qwen2_5_vl"]
CLOSE = dict(rtol=2e-3, atol=2e-3)
NATS = 3.35  # between two entropies of the tiny model's answers, as the tests see to


def unsure(uncertainty=NATS, **fields):
    return VRGAConfig.published(
        **{"gain": 3.0, "when": "uncertain", "uncertainty": uncertainty} | fields
    )


def entropies(logits):
    """In float64, of [..., V]."""
    logs = logits.double().log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def replayed(model, batch, row, tokens, **more):
    """(logits, the replay) of one row's answer in loops."""
    alone, more = QWEN.alone(batch, row), {"gain": 3.0, "threshold": NATS} | more
    replay = Doubting(model, **more)
    logits = replay.turn(alone.inputs, tokens, alone.query[0], alone.grids[0])
    assert min(abs(nats - NATS) for nats in replay.entropies) > 2e-3  # too near to be sure of
    return logits, replay


@pytest.fixture
def model():
    vars(QWEN.shared).pop("_cache", None)  # of a compiled call in another test
    return QWEN.shared


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_each_row_is_steered_at_the_tokens_that_it_was_uncertain_of(model, impl):
    batch = QWEN.batch([1, 2])
    with vrga.patch(model, unsure(), impl=impl) as patch:
        said, logits = generate(model, batch.inputs, 8)
        steps = patch.steps
    gains = []
    for row in range(2):
        expected, replay = replayed(model, batch, row, said[row])
        torch.testing.assert_close(logits[row], expected, **CLOSE)
        gains.append(replay.gains)
        steered = sum(gain > 1 for gain in replay.gains)
        assert steps[row].steered == steered
        assert steps[row].left_alone == {"certain": 7 - steered}
    assert gains[0] != gains[1] and {1.0, 3.0} == {*gains[0], *gains[1]}


@pytest.mark.parametrize("gate", ["dynamic", "static"])
def test_from_nothing_on_is_always_and_from_too_much_on_is_never_bit_for_bit(model, gate):
    batch = QWEN.batch([1, 2, 0])
    base = generate(model, batch.inputs, 6)
    fields = {"gain": 3.0, "gate": gate}
    for config, wanted in (
        (VRGAConfig.published(**fields), None),
        (unsure(0.0, gate=gate), None),
        (unsure(1e9, gate=gate), base),
        (unsure(0.0, gain=1.0), base),
    ):
        with vrga.patch(model, config):
            found = generate(model, batch.inputs, 6)
        if config.when == "always":
            always = found
            assert not torch.equal(found[1], base[1])
        wanted = always if wanted is None else wanted
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])


def test_processors_and_temperature_decide_nothing(model):
    batch = QWEN.batch([1])
    with vrga.patch(model, unsure()) as patch:
        plain = generate(model, batch.inputs, 6)[1], patch.steps
        model.generation_config.temperature = 0.01
        try:
            torch.manual_seed(0)
            out = model.generate(**batch.inputs, max_new_tokens=6, min_new_tokens=6, do_sample=True,
                                 top_k=1, temperature=0.01, output_logits=True,
                                 return_dict_in_generate=True)  # fmt: skip
        finally:
            model.generation_config.temperature = None
    assert torch.equal(torch.stack(out.logits, 1), plain[0]) and patch.steps == plain[1]


def test_compiled_decoding_decides_alike(model):
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    batch, other = QWEN.batch([1, 2]), QWEN.batch([1, 2], seed=5)
    static = dict(cache_implementation="static", compile_config=COMPILED)
    with vrga.patch(model, unsure()) as patch:
        found, graphs = [], []
        for inputs in (batch.inputs, other.inputs):
            logits = generate(model, inputs, 8)[1]
            eager = [(one.steered, one.left_alone) for one in patch.steps]
            with patch.record() as trace:
                compiled = generate(model, inputs, 8, **static)[1]
            torch.testing.assert_close(compiled, logits, **CLOSE)
            nats = entropies(logits).T[:-1].float()
            torch.testing.assert_close(trace.uncertainty, nats, **CLOSE)
            assert [(one.steered, one.left_alone) for one in patch.steps] == eager
            found.append(trace)
            graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [2, 2]  # the step, and the hook behind the whole model; for all prompts
    assert any((one.uncertainty < NATS).any() and (one.uncertainty > NATS).any() for one in found)


def test_the_host_asks_the_device_where_compiled_steps_have_come_between():
    said = torch.randn(3, 2, 50)
    heard = Uncertainty(1.0, 2, torch.device("cpu"))
    heard.hear(said[0], 9)
    heard.hear_compiled(said[1])
    heard.begin(11, 1)
    torch.testing.assert_close(heard.drawn, entropies(said[1]).float())
    heard.begin(12, 1)  # a step came by that nobody heard
    assert heard.drawn is None


def test_a_compiled_step_after_one_that_nobody_heard_is_not_certain():
    heard = Uncertainty(1.0, 2, torch.device("cpu"))
    sure = torch.tensor([[50.0, 0.0], [50.0, 0.0]])
    heard.hear(sure, 9)
    heard.begin_compiled()
    assert not heard.uncertain.any()
    heard.hear_compiled(sure)
    heard.begin_compiled()
    assert not heard.uncertain.any()
    heard.begin_compiled()
    assert heard.uncertain.all()


def test_beams_keep_what_their_tokens_were_drawn_from(model):
    """Along each beam's own text the logits are those of the method."""
    batch, gains = QWEN.batch([1]), set()
    torch.manual_seed(2)
    with vrga.patch(model, unsure()):
        out = model.generate(
            **batch.inputs, max_new_tokens=8, min_new_tokens=8, num_beams=3, do_sample=True,
            temperature=4.0, num_return_sequences=3, length_penalty=0.0, output_scores=True,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    said = out.sequences[:, batch.inputs["input_ids"].shape[1] :]
    for i in range(3):
        expected, replay = replayed(model, batch, 0, said[i])
        gains.add(tuple(replay.gains))
        for t in range(8):
            row = out.beam_indices[i, t]
            torch.testing.assert_close(out.logits[t][row], expected[t], **CLOSE)
    assert len(gains) > 1
    moved = [out.beam_indices[:, t].tolist() for t in range(8)]
    assert any(rows != sorted(rows) or len(set(rows)) < 3 for rows in moved[1:])


def test_a_prompt_in_pieces_and_loops_by_hand_decide_alike(model):
    batch = QWEN.batch([1])
    with vrga.patch(model, unsure()), torch.no_grad():
        plain = generate(model, batch.inputs, 6)[1]
        pieces = generate(model, batch.inputs, 6, prefill_chunk_size=7)[1]
        by_hand = loop(model, batch.inputs, 6)
        with torch.inference_mode():
            kept = loop(model, batch.inputs, 6, logits_to_keep=1)
    for found in (pieces, by_hand, kept):
        torch.testing.assert_close(found, plain, **CLOSE)


def test_a_later_turn_is_decided_by_its_own_answer(model):
    batch = QWEN.batch([1])
    turn = torch.tensor([[20, 21, 22, 1, 23, 24]])
    with vrga.patch(model, unsure()) as patch, torch.no_grad():
        first = loop(model, batch.inputs, 2).argmax(-1)
        out = model(**batch.inputs, use_cache=True)
        cache, found = cache_in(out), []
        model(input_ids=first[:, :1], **{CACHE: cache})
        patch.query = torch.tensor([cache.get_seq_length() + 3])
        given = torch.cat([first[:, 1:], turn], 1)
        out = model(input_ids=given, **{CACHE: cache})
        for _ in range(5):
            found.append(out.logits[0, -1])
            out = model(input_ids=found[-1].argmax()[None, None], **{CACHE: cache})
    alone, replay = QWEN.alone(batch, 0), Doubting(model, 3.0, NATS)
    replay.turn(alone.inputs, first[0], alone.query[0], alone.grids[0])
    said = torch.stack(found).argmax(-1)
    expected = replay.turn({"input_ids": given}, said, int(patch.query))
    torch.testing.assert_close(torch.stack(found), expected, **CLOSE)


def test_a_cut_cache_goes_on_from_what_was_said_there(model):
    batch = QWEN.batch([1])
    with vrga.patch(model, unsure()) as patch, torch.no_grad():
        wanted = loop(model, batch.inputs, 6)
        out = model(**batch.inputs, use_cache=True)
        cache, tokens = cache_in(out), wanted.argmax(-1)
        for t in range(3):
            model(input_ids=tokens[:, t : t + 1], **{CACHE: cache})
        for other in (7, 8):  # two tokens that are taken back
            model(input_ids=torch.tensor([[other]]), **{CACHE: cache})
        cache.crop(-2)
        for t in range(3, 5):
            out = model(input_ids=tokens[:, t : t + 1], **{CACHE: cache})
            torch.testing.assert_close(out.logits[:, -1], wanted[:, t + 1], **CLOSE)
        assert patch.steps[0].passed == 5


def test_what_is_said_while_the_patch_is_off_is_heard(model):
    batch = QWEN.batch([1])
    with vrga.patch(model, unsure(0.0)) as patch, torch.no_grad():
        cache = cache_in(model(**batch.inputs, use_cache=True))
        patch.enabled = False
        out = model(input_ids=torch.tensor([[5]]), **{CACHE: cache})
        patch.enabled = True
        with patch.record():
            model(input_ids=out.logits[:, -1:].argmax(-1), **{CACHE: cache})
        assert patch.steps[0].left_alone == {"switched off": 1} and patch.steps[0].steered == 1


def test_several_tokens_in_a_pass_are_refused(model):
    batch = QWEN.batch([1])
    with vrga.patch(model, unsure()) as patch, torch.no_grad():
        for drafts in (
            dict(prompt_lookup_num_tokens=3),
            dict(assistant_model=tiny_model(layers=1, seed=3)),
        ):
            with pytest.raises(ValueError, match="one token at a time, without an assistant"):
                model.generate(**batch.inputs, max_new_tokens=8, **drafts)
        cache = cache_in(model(**batch.inputs, use_cache=True))
        with pytest.raises(ValueError, match="several tokens of the answer come in one pass"):
            model(input_ids=torch.tensor([[5, 6]]), **{CACHE: cache})
        patch.config = unsure(gain=1.0)  # nothing hangs on it
        model.generate(**batch.inputs, max_new_tokens=8, prompt_lookup_num_tokens=3)


def test_what_was_not_heard_is_refused(model):
    batch = QWEN.batch([1])
    width = batch.inputs["input_ids"].shape[1]
    with vrga.patch(model, unsure()), torch.no_grad():
        for fill in (
            lambda: model.model(**batch.inputs, use_cache=True),
            lambda: model.forward(**batch.inputs, use_cache=True),
            lambda: model(**batch.inputs, use_cache=True, logits_to_keep=torch.tensor([3])),
        ):
            cache = cache_in(fill())
            with pytest.raises(ValueError, match="logits behind the token before .* not seen"):
                model(input_ids=torch.tensor([[5]]), **{CACHE: cache})
        for kept in (torch.tensor([-1]), torch.tensor([width - 2, width - 1])):
            out = model(**batch.inputs, use_cache=True, logits_to_keep=kept)
            model(input_ids=torch.tensor([[5]]), **{CACHE: cache_in(out)})


def test_rows_padded_on_the_right_are_decided_by_their_own_last_token(model):
    batch = QWEN.batch([1, 1])
    ids, mask = batch.inputs["input_ids"].clone(), batch.inputs["attention_mask"].clone()
    pads = int((mask[0] == 0).sum())
    assert pads and mask[1].all()
    with torch.no_grad():
        config = unsure()
        moved = dict(batch.inputs)
        for name, value in batch.inputs.items():
            if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
                moved[name] = torch.stack([value[0].roll(-pads), value[1]])
        with vrga.patch(model, config) as patch:
            out = model(**moved, use_cache=True)
            run = cache_in(out)._vrga_run.run
            last = torch.stack([out.logits[0, -1 - pads], out.logits[1, -1]])
            heard = run.answer.step.uncertainty._newest
            torch.testing.assert_close(heard, entropies(last).float(), rtol=1e-5, atol=1e-5)
            del patch
    assert ids.shape == moved["input_ids"].shape


def test_threads_decide_each_by_its_own_logits(model):
    batches = [QWEN.batch([1], seed=seed) for seed in (0, 5)]
    with vrga.patch(model, unsure()):
        wanted = [loop(model, batch.inputs, 5) for batch in batches]
        found = [None, None]
        gate = threading.Barrier(2)

        def answer(number):
            with torch.no_grad():
                out = model(**batches[number].inputs, use_cache=True)
                said = [out.logits[:, -1]]
                for _ in range(4):
                    gate.wait(60)
                    out = model(input_ids=said[-1].argmax(-1, keepdim=True),
                                **{cache_name(model): cache_in(out)})  # fmt: skip
                    said.append(out.logits[:, -1])
            found[number] = torch.stack(said, 1)

        threads = [threading.Thread(target=answer, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number in (0, 1):
        torch.testing.assert_close(found[number], wanted[number], **CLOSE)


def test_a_trace_tells_how_sure_each_token_was_and_what_was_steered(model, tmp_path):
    batch = QWEN.batch([1, 2])
    with vrga.patch(model, unsure()) as patch:
        with patch.record() as trace:
            logits = generate(model, batch.inputs, 6)[1]
    torch.testing.assert_close(trace.uncertainty, entropies(logits).T[:-1].float(), **CLOSE)
    steered = (trace.gate > 0).flatten(3).any(3).any(1)
    assert torch.equal(steered, trace.uncertainty >= NATS) and steered.any() and not steered.all()
    loaded = Trace.load(trace.save(tmp_path / "t"))
    assert torch.equal(loaded.uncertainty, trace.uncertainty)
    frame = loaded.to_pandas()
    row = frame[(frame["step"] == 2) & (frame["row"] == 1)]["uncertainty"]
    assert set(row) == {float(trace.uncertainty[2, 1])}
    loaded.uncertainty = -loaded.uncertainty
    with pytest.raises(ValueError, match="uncertainty is negative"):
        loaded.save(tmp_path / "u")
    with vrga.patch(model, VRGAConfig.published()) as patch, patch.record() as other:
        generate(model, batch.inputs, 3)
    assert other.uncertainty is None


@pytest.mark.parametrize("when", ["always", "uncertain"])
def test_the_region_is_found_anew_where_the_model_turns_uncertain(model, when):
    batch = QWEN.batch([2, 1])
    with vrga.patch(model, unsure(when=when, relocate="uncertain")) as patch:
        said, logits = generate(model, batch.inputs, 9)
        episodes, steps = patch.episodes, patch.steps
    start = batch.inputs["input_ids"].shape[1]
    for row in range(2):
        expected, replay = replayed(model, batch, row, said[row], when=when, relocate="uncertain")
        torch.testing.assert_close(logits[row], expected, **CLOSE)
        own = [one for one in episodes if one.row == row]
        assert [one.position - start for one in own] == sorted(replay.at) and own
        assert steps[row].left_alone.get("turns uncertain", 0) == len(own)
    assert any(steps[row].steered for row in range(2))


def test_a_region_found_anew_cannot_be_compiled(model):
    torch._dynamo.reset()
    batch = QWEN.batch([1])
    static = dict(cache_implementation="static", compile_config=COMPILED)
    with vrga.patch(model, unsure(relocate="uncertain")):
        with pytest.raises(Exception, match="relocate='uncertain' finds .*disable_compile=True"):
            generate(model, batch.inputs, 3, **static)


def test_a_threshold_is_read_where_something_is_uncertain_alone():
    assert VRGAConfig(relocate="uncertain", uncertainty=2).uncertainty == 2
    assert "when uncertain, uncertainty 2" in VRGAConfig(when="uncertain", uncertainty=2).name
    with pytest.raises(ValueError, match="uncertainty=2 is not read by .* when='always'"):
        VRGAConfig(uncertainty=2)
    for wrong in (-0.1, float("inf"), float("nan"), "much", True):
        with pytest.raises(ValueError, match="uncertainty="):
            VRGAConfig(when="uncertain", uncertainty=wrong)


def test_a_page_tells_how_sure_each_token_was(model):
    with vrga.patch(model, unsure()) as patch, patch.record() as trace:
        generate(model, QWEN.batch([1]).inputs, 4)
    page = render([trace])
    assert '"uncertainty"' in page and f"{float(trace.uncertainty[1, 0]):.3g}" in page
