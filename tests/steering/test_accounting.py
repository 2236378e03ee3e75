"""Every step of an answer is accounted for; a step that cannot be what it seems is an error."""

import copy
import sys

import pytest
import torch
from families import EOS, FAMILIES
from loops import COMPILED, cache_name, loop
from saying import INSIDE, SAID, WORDS, say
from tiny import batch, generate, tiny_model
from transformers import DynamicCache

import vrga
from vrga import VRGAConfig
from vrga.hf.cache import cache_in
from vrga.steering.passes import SteeringError

QWEN = FAMILIES["qwen2_5_vl"]
GAIN = VRGAConfig.published(gain=3.0)
STATIC = dict(cache_implementation="static", disable_compile=True)
FULLGRAPH = dict(cache_implementation="static", compile_config=COMPILED)


@pytest.fixture
def model():
    vars(QWEN.shared).pop("_cache", None)
    return QWEN.shared


def counts(patch):
    return [(s.generated, s.steered, s.left_alone) for s in patch.steps]


WAYS = {
    "greedy": {},
    "static": STATIC,
    "compiled": FULLGRAPH,
    "drafts": dict(prompt_lookup_num_tokens=3),
    "sampled": dict(num_return_sequences=2, do_sample=True),
    "chunks": dict(prefill_chunk_size=16),
}


@pytest.mark.parametrize("name", list(WAYS))
def test_all_steps_of_all_rows_are_steered(model, name):
    torch._dynamo.reset()
    inputs = QWEN.batch([1] if name in ("drafts", "chunks") else [1, 2]).inputs
    options = dict(do_sample=False, max_new_tokens=7, min_new_tokens=7) | WAYS[name]
    try:
        model.generate(**inputs, **options)
    except (RuntimeError, ValueError, IndexError) as error:
        pytest.skip(f"this version's generate() cannot, unpatched: {error}")
    with vrga.patch(model, GAIN) as patch:
        model.generate(**inputs, **options)
        rows = len(patch.region)
        assert counts(patch) == [(7, 6, {})] * rows
        assert "6 of 6 steps steered" in repr(patch)


def test_beams_are_accounted_for(model):
    inputs = QWEN.batch([1]).inputs
    with vrga.patch(model, GAIN) as patch:
        out = model.generate(**inputs, num_beams=3, max_new_tokens=9, do_sample=False)
        generated = out.shape[1] - inputs["input_ids"].shape[1]
        assert all(s.steered == s.passed >= generated - 1 for s in patch.steps)


def test_a_row_that_ends_early_has_fewer_steps(model):
    """Padding behind its end is nobody's step."""
    inputs = QWEN.batch([1, 1]).inputs
    said = torch.tensor([[40, 41, EOS, 0, 0], [40, 41, 42, 43, 44]])
    with vrga.patch(model, GAIN) as patch:
        say(model, type("B", (), {"inputs": inputs}), said)
        assert counts(patch) == [(3, 2, {}), (5, 4, {})]


def test_a_row_without_an_image_is_not_steered(model):
    with vrga.patch(model, GAIN) as patch:
        generate(model, QWEN.batch([1, 0]).inputs, 4)
        assert counts(patch) == [(4, 3, {}), (4, 0, {"no image": 3})]


def test_an_empty_region_steers_nothing(model):
    with vrga.patch(model, GAIN) as patch:
        patch.given = lambda grids: [[torch.zeros(g.h, g.w) > 0 for g in row] for row in grids]
        generate(model, QWEN.batch([1]).inputs, 4)
        assert counts(patch) == [(4, 0, {"an empty region": 3})]


@pytest.mark.parametrize("how", [{}, FULLGRAPH], ids=["eager", "compiled"])
def test_why_steps_are_left_alone(model, how):
    torch._dynamo.reset()
    one = QWEN.batch([1])
    inside = sum(INSIDE[:-1])
    with vrga.patch(model, VRGAConfig.published(gain=3.0, when="back"), tokenizer=WORDS) as patch:
        say(model, one, SAID, **how)
        left = {"outside <back>": len(SAID) - 1 - inside}
        assert counts(patch) == [(len(SAID), inside, left)]
    with vrga.patch(model, VRGAConfig.published(gain=1.0)) as patch:
        generate(model, one.inputs, 5, **how)
        # Compiled steps that steer nothing run the unpatched model's own code.
        assert counts(patch) == [(5, 0, {"gain 1": 4})]


def test_more_reasons(model):
    one = QWEN.batch([1])
    with vrga.patch(model, VRGAConfig.released(gain=3.0)) as patch:
        model.generate(**one.inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False,
                       prompt_lookup_num_tokens=2)  # fmt: skip
        (steps,) = patch.steps
        assert steps.passed == 7 and set(steps.left_alone) <= {
            "this preset steers passes of one token alone"
        }
    relocate = VRGAConfig.published(gain=3.0, relocate="back")
    with vrga.patch(model, relocate, tokenizer=WORDS) as patch:
        say(model, one, SAID)
        (steps,) = patch.steps
        assert steps.left_alone == {"opens <back>": len(patch.episodes)} != {}
        assert steps.passed == len(SAID) - 1
    chosen = VRGAConfig.published(gain=3.0, when=lambda ids, at: ids % 2 == 0)
    with vrga.patch(model, chosen) as patch:
        tokens = generate(model, one.inputs, 7)[0]
        (steps,) = patch.steps
        assert steps.steered == int((tokens[0, :-1] % 2 == 0).sum())
        assert steps.left_alone == {"not chosen by `when`": 6 - steps.steered}


def test_a_patch_that_is_switched_off_amid_an_answer(model):
    inputs = QWEN.batch([1]).inputs
    with vrga.patch(model, GAIN) as patch:

        def switch(ids, scores, **kwargs):
            patch.enabled = ids.shape[1] < inputs["input_ids"].shape[1] + 4
            return torch.zeros(len(ids), dtype=torch.bool)

        model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False,
                       stopping_criteria=[switch])  # fmt: skip
        assert counts(patch) == [(8, 3, {"switched off": 4})]
        patch.enabled = True
        generate(model, inputs, 3)
        assert counts(patch) == [(3, 2, {})]


def test_an_answer_of_one_token_has_no_step(model):
    with vrga.patch(model, GAIN) as patch:
        generate(model, QWEN.batch([1]).inputs, 1)
        assert counts(patch) == [(1, 0, {})]


def test_an_answer_that_goes_on_keeps_its_account(model):
    cache = DynamicCache(config=model.config.get_text_config())
    inputs, name = QWEN.batch([1]).inputs, cache_name(model)
    with vrga.patch(model, GAIN) as patch:
        out = model.generate(**inputs, **{name: cache}, max_new_tokens=4, min_new_tokens=4)
        more = dict(input_ids=out, attention_mask=torch.ones_like(out))
        model.generate(**more, **{name: cache}, max_new_tokens=5, min_new_tokens=5)
        assert patch.steps[0].steered == 8


# --- what is not accounted for ---


def test_steps_that_run_without_the_hooks_are_missed():
    """Something calls the layers past the patch: generate() must not return as if steered."""
    model, inputs = tiny_model(), batch([[(6, 6)]])
    outer, text = model.model, model.model.language_model
    with vrga.patch(model, GAIN) as patch:
        own = patch._hooks.after
        text._forward_hooks.clear()

        def once(*args):
            own(*args)
            outer._forward_pre_hooks.clear()  # from the second pass on nobody is told
            text._forward_pre_hooks.clear()

        text.register_forward_hook(once, with_kwargs=True)
        with pytest.raises(SteeringError, match="7 tokens were generated, in 6 steps.*saw 0"):
            generate(model, inputs, 7)


def test_generate_that_shows_the_patch_no_prompt_is_an_error(model):
    inputs = QWEN.batch([1]).inputs
    with vrga.patch(model, GAIN) as patch:
        hooks = model.model._forward_pre_hooks
        kept = dict(hooks)
        hooks.clear()
        with pytest.raises(SteeringError, match="the patch saw no prompt.*compiled"):
            generate(model, inputs, 3)
        hooks.update(kept)
        generate(model, inputs, 3)
        assert patch.steps[0].steered == 2


def hidden_cache(model):
    """The model's layers get the cache by a way that no hook sees."""
    held = {}

    def before(module, args, kwargs):
        name = cache_name(model)
        if kwargs.get(name) is not None:
            held["cache"] = kwargs[name]
        return args, {k: v for k, v in kwargs.items() if k != name}

    def inject(module, args, kwargs):
        return args, {**kwargs, cache_name(model): held["cache"]}

    for layer in model.model.language_model.layers:
        layer.self_attn.register_forward_pre_hook(inject, with_kwargs=True)
    model.model.register_forward_pre_hook(before, with_kwargs=True)


def test_a_cache_out_of_sight_is_found_by_its_keys():
    """Read as a fresh prompt, every step would run unsteered: its keys tell that it is none."""
    model, inputs = tiny_model(), batch([[(6, 6)]])
    hidden_cache(model)
    with vrga.patch(model, GAIN):
        with pytest.raises(SteeringError, match="keys are not kept|a fresh prompt"):
            generate(model, inputs, 4)


@pytest.mark.parametrize("kept", ["half", "all but one"])
@pytest.mark.parametrize("when", ["behind the prompt", "amid the answer"])
@pytest.mark.parametrize("by_hand", [False, True], ids=["generate", "by hand"])
def test_evicted_keys_are_found(kept, when, by_hand):
    model, inputs, passes = tiny_model(), batch([[(6, 6)]]), []
    length = inputs["input_ids"].shape[1]

    def evict(module, args, kwargs, output):
        layer = kwargs[cache_name(model)].layers[module.layer_idx]
        passes.append(module.layer_idx)
        if len(passes) // 3 == (1 if when == "behind the prompt" else 4):
            first = layer.keys.shape[2] // 2 if kept == "half" else 1
            layer.keys, layer.values = layer.keys[:, :, first:], layer.values[:, :, first:]

    for layer in model.model.language_model.layers:
        layer.self_attn.register_forward_hook(evict, with_kwargs=True)
    with vrga.patch(model, GAIN), pytest.raises(SteeringError, match="evicted|kept as they were"):
        if by_hand:
            loop(model, inputs, 8)
        else:
            generate(model, inputs, 8)
    assert length > 20


def test_a_cache_that_tells_a_wrong_length_is_found_by_its_keys(monkeypatch):
    """An eviction method that goes on counting: what attention is given is the truth."""
    model, inputs = tiny_model(), batch([[(6, 6)]])
    cache = DynamicCache(config=model.config.get_text_config())
    length, own = inputs["input_ids"].shape[1], DynamicCache.update

    def update(self, *args, **kwargs):
        keys, values = own(self, *args, **kwargs)
        return (keys[:, :, 1:], values[:, :, 1:]) if keys.shape[2] > length else (keys, values)

    monkeypatch.setattr(DynamicCache, "update", update)
    with vrga.patch(model, GAIN), torch.no_grad():
        given = {cache_name(model): cache}
        model(**inputs, **given, use_cache=True)
        with pytest.raises(SteeringError, match=f"attends to {length} keys in what is .* behind"):
            model(input_ids=torch.tensor([[7]]), **given, use_cache=True)


def test_layers_that_drop_their_arguments_amid_the_answer_are_found():
    model, inputs = tiny_model(), batch([[(6, 6)]])
    layer = model.model.language_model.layers[1].self_attn
    forward = layer.forward

    def without(hidden_states, *args, **kwargs):
        if hidden_states.shape[1] == 1:
            kwargs.pop("vrga", None)
        return forward(hidden_states, *args, **kwargs)

    def named(*args, **kwargs):
        return without(*args, **kwargs) if args else without(kwargs.pop("hidden_states"), **kwargs)

    layer.forward = named
    with vrga.patch(model, GAIN), pytest.raises(SteeringError, match="only 2 of the model's 3"):
        generate(model, inputs, 4)


def test_a_loop_by_hand_without_a_cache_is_told():
    model, inputs = tiny_model(), batch([[(6, 6)]])
    ids = inputs["input_ids"]
    with vrga.patch(model, GAIN), torch.no_grad():
        for i in range(2):
            more = torch.cat([ids, torch.full((1, i), 40)], 1)
            given = inputs | dict(input_ids=more, attention_mask=torch.ones_like(more))
            if "mm_token_type_ids" in inputs:
                given["mm_token_type_ids"] = (more == 90).int()
            if i:
                with pytest.raises(SteeringError, match="whole prompt is computed again"):
                    model(**given, use_cache=False)
            else:
                model(**given, use_cache=False)


def test_layers_that_drop_the_cache_in_train_mode_are_told():
    """Gradient checkpointing does; in some versions also where no gradient is wanted."""
    model, inputs = tiny_model().train(), batch([[(6, 6)]])
    for layer in (model, *model.modules()):
        if hasattr(layer, "gradient_checkpointing"):
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = lambda function, *args: function(*args)
    with vrga.patch(model, VRGAConfig.published(gain=20.0)) as patch:
        with pytest.raises(SteeringError, match="model.eval()"):
            model(**inputs, use_cache=True)
        try:
            generate(model, inputs, 4)
        except SteeringError as error:
            assert "model.eval()" in str(error)
        else:
            assert patch.steps[0].steered == 3


def test_a_failed_pass_leaves_nothing_behind(model):
    """An exception amid a prompt or a step: the next call begins anew."""
    inputs, calls = QWEN.batch([1]).inputs, []

    def fail(module, args, kwargs):
        calls.append(1)
        if len(calls) == limit:
            raise KeyError("stop")

    with vrga.patch(model, GAIN) as patch:
        wanted = generate(model, inputs, 4)[1]
        for last in (1, 3):
            limit = last
            calls.clear()
            handle = model.model.language_model.layers[1].register_forward_pre_hook(
                fail, with_kwargs=True
            )
            with pytest.raises(KeyError):
                generate(model, inputs, 4)
            handle.remove()
            assert patch._hooks._here.call is None
            assert torch.equal(generate(model, inputs, 4)[1], wanted)
            assert counts(patch) == [(4, 3, {})]
            with torch.no_grad():  # nothing of the failed call is still announced
                assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]


def test_an_answer_in_words_of_a_generate_of_somebody_elses(model):
    """A wrapper that returns no tokens: nothing can be summed, and the steps are still told."""
    own = model.generate
    model.generate = lambda **kwargs: f"{own(**kwargs).shape[1]} tokens"
    try:
        with vrga.patch(model, GAIN) as patch:
            said = model.generate(**QWEN.batch([1]).inputs, max_new_tokens=3, min_new_tokens=3)
            assert said.endswith("tokens") and patch.steps[0].steered == 2
    finally:
        del model.generate


def test_counting_waits_for_no_device(model, monkeypatch):
    """What tells passes apart and counts them asks no tensor for a value between two steps."""
    counting = {"hooks.py", "arrival.py", "passes.py", "run.py", "answer.py", "account.py",
                "steps.py", "generate_call.py", "cache.py"}  # fmt: skip
    inputs, asked, called = QWEN.batch([1, 2]).inputs, [], []

    def spy(name, own):
        def told(self, *args, **kwargs):
            file = sys._getframe(1).f_code.co_filename
            called.append(name)
            if "vrga" in file and file.rpartition("/")[2] in counting:
                asked.append((name, file))
            return own(self, *args, **kwargs)

        return told

    with vrga.patch(model, GAIN) as patch, torch.no_grad():
        out = model(**inputs, use_cache=True)
        step = {"input_ids": torch.tensor([[7], [8]]), cache_name(model): cache_in(out)}
        with monkeypatch.context() as spied:
            for name in ("item", "cpu", "tolist", "__bool__", "__int__", "nonzero"):
                spied.setattr(torch.Tensor, name, spy(name, getattr(torch.Tensor, name)))
            model(**step, use_cache=True)
            assert asked == []
            assert patch.steps[0].steered == 1  # which does read the device
            assert asked and called


def test_a_deep_copy_keeps_its_own_account(model):
    inputs = QWEN.batch([1]).inputs
    with vrga.patch(model, GAIN) as patch:
        generate(model, inputs, 3)
        twin = copy.deepcopy(model)
        other = vrga.steering.patching.patch_of(twin)
        generate(twin, inputs, 6)
        assert counts(other) == [(6, 5, {})] and counts(patch) == [(3, 2, {})]
        assert other is not patch


def test_the_account_of_a_run_that_nothing_steers_is_complete(model):
    """Steps by hand, too: their number is what generate() would have made."""
    with vrga.patch(model, VRGAConfig.published(gain=1.0)) as patch:
        loop(model, QWEN.batch([1]).inputs, 4)
        assert counts(patch) == [(4, 0, {"gain 1": 3})]


def test_notes_of_drafts_that_were_rejected_go():
    from vrga.steering.steps import Ledger

    ledger = Ledger(rows=1, start=10)
    ledger.note(10, 4, None)
    ledger.note(11, 1, "gain 1")
    assert ledger.passed == 2 and ledger.of_rows()[0].left_alone == {"gain 1": 1}


def test_a_patch_that_is_taken_off_amid_an_answer_is_told(model):
    def stop(ids, scores, **kwargs):
        vrga.unpatch(model)
        return torch.zeros(len(ids), dtype=torch.bool)

    inputs = QWEN.batch([1]).inputs
    with vrga.patch(model, GAIN), pytest.raises(SteeringError, match="not, or not wholly"):
        model.generate(**inputs, do_sample=False, max_new_tokens=7, min_new_tokens=7,
                       stopping_criteria=[stop])  # fmt: skip
