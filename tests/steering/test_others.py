"""Other people's problems with a model in use: each is steered rightly, or refused in words."""

import copy
import functools
import io
import pickle
import threading
import types

import pytest
import torch
from families import EOS, FAMILIES, IMAGE, TEXT
from loops import cache_name, loop
from tiny import VISION_END, VISION_START, batch, generate, tiny_model, token_types
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import vrga
from vrga import VRGAConfig
from vrga.hf.cache import cache_in
from vrga.hf.turns import TurnMarks
from vrga.steering.passes import SteeringError

GAIN = VRGAConfig.published(gain=3.0)
STATIC = VRGAConfig.paper(gain=3.0)
LLAVA = FAMILIES["llava"]


def steps(model, inputs, tokens=5, **more):
    out = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                         return_dict_in_generate=True, output_logits=True, **more)  # fmt: skip
    return torch.stack(out.logits, 1)


# --- compiled by its user, before ---


@pytest.mark.parametrize("how", ["forward", "method", "layers", "text"])
def test_code_compiled_before_the_patch_is_set_aside(how):
    model, inputs = copy.deepcopy(LLAVA.shared), LLAVA.batch([1]).inputs
    plain = steps(model, inputs)
    with vrga.patch(model, GAIN):
        wanted = steps(model, inputs)
    text = model.model.language_model
    torch._dynamo.reset()
    if how == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    elif how == "method":
        model.compile(backend="eager")
    elif how == "text":
        text.forward = torch.compile(text.forward, backend="eager")
    else:
        for layer in text.layers:
            layer.compile(backend="eager")
    torch.testing.assert_close(steps(model, inputs), plain, rtol=1e-4, atol=1e-4)
    compiled = dict(vars(model)), dict(vars(text)), dict(vars(text.layers[0]))
    with pytest.warns(UserWarning, match="is compiled .*runs uncompiled"):
        patch = vrga.patch(model, GAIN)
    assert torch.equal(steps(model, inputs), wanted)
    patch.remove()
    assert (vars(model), vars(text), vars(text.layers[0])) == compiled
    torch.testing.assert_close(steps(model, inputs), plain, rtol=1e-4, atol=1e-4)


def test_a_compiled_wrapper_is_refused():
    with pytest.raises(ValueError, match="wrapped by torch.compile.*patch the model itself"):
        vrga.patch(torch.compile(tiny_model(), backend="eager"))


# --- several prompts at a time ---


def test_threads_have_a_prompt_each():
    model = LLAVA.shared
    prompts = [LLAVA.batch([1], seed=s).inputs for s in range(3)]
    got, regions, told = {}, {}, []
    with vrga.patch(model, GAIN) as patch:
        wanted = [(steps(model, one), patch.region[0].focus) for one in prompts]
        gate = threading.Barrier(len(prompts))

        def work(k):
            try:
                gate.wait()
                for _ in range(3):
                    got[k] = steps(model, prompts[k])
                    regions[k] = patch.region[0].focus
                    assert patch.steps[0].steered == 4
            except Exception as error:  # shown by the assertion below
                told.append(error)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(len(prompts))]
        [t.start() for t in threads], [t.join() for t in threads]
    assert not told
    for k, (logits, focus) in enumerate(wanted):
        torch.testing.assert_close(got[k], logits, rtol=1e-5, atol=1e-5)
        assert torch.equal(regions[k], focus)


def in_a_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def test_a_recording_is_of_the_first_prompt_in_whatever_thread():
    """A worker generates while the main thread reads its stream; others' prompts are theirs."""
    model, inputs = LLAVA.shared, LLAVA.batch([1]).inputs
    with vrga.patch(model, GAIN) as patch:
        steps(model, LLAVA.batch([1], seed=9).inputs, 3)  # an earlier one in this thread
        with patch.record() as trace:
            in_a_thread(lambda: steps(model, inputs, 7))
            in_a_thread(lambda: steps(model, inputs, 9))
        assert len(trace.steps) == 6
        assert patch.steps[0].generated == 9  # the last prompt's thread has ended
        with patch.record():
            steps(model, inputs, 3)
            with pytest.raises(ValueError, match="one call of generate"):
                steps(model, inputs, 3)


@pytest.mark.parametrize("negative", [False, True], ids=["last token", "negative prompt"])
def test_guidance_runs_a_second_prompt_amid_the_first(negative):
    """Its unconditional branch has no image: it stays as it is, and the region is the answer's."""
    model, inputs = LLAVA.shared, LLAVA.batch([1]).inputs
    more = {"guidance_scale": 1.5}
    if negative:
        more["negative_prompt_ids"] = torch.tensor([[20, 21, 22]])
    plain = steps(model, inputs, **more)
    with vrga.patch(model, VRGAConfig.published(gain=1.0)):
        assert torch.equal(steps(model, inputs, **more), plain)
    with vrga.patch(model, GAIN) as patch:
        found = steps(model, inputs, **more)
        region = patch.region[0]
        assert patch.steps[0].steered == 4
        steps(model, inputs)
        assert torch.equal(patch.region[0].mask, region.mask) and region.mask.any()
    assert not torch.equal(found[:, 1:], plain[:, 1:])


@torch.no_grad()
def test_two_caches_in_turns():
    """Each prompt's steps are steered by its own region, whichever came last."""
    model, name = LLAVA.shared, cache_name(LLAVA.shared)
    prompts = [LLAVA.batch([1], seed=s).inputs for s in range(2)]

    def both(interleaved):
        outs = [model(**one, use_cache=True) for one in prompts]
        found = [[], []]
        order = [0, 1] * 4 if interleaved else [0] * 4 + [1] * 4
        if not interleaved:
            outs[0] = model(**prompts[0], use_cache=True)
        for i, k in enumerate(order):
            if not interleaved and i == 4:
                outs[1] = model(**prompts[1], use_cache=True)
            token = {"input_ids": torch.tensor([[40 + len(found[k])]])}
            outs[k] = model(**token, **{name: cache_in(outs[k])}, use_cache=True)
            found[k].append(outs[k].logits[:, -1])
        return torch.stack([torch.stack(one) for one in found])

    plain = both(True)
    with vrga.patch(model, GAIN):
        torch.testing.assert_close(both(True), both(False), rtol=1e-5, atol=1e-5)
        assert (both(True) - plain).abs().max() > 1e-2


# --- options, however they are given ---


BASE = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False, eos_token_id=1, pad_token_id=0)


def by_keyword(model, inputs, **fields):
    return model.generate(**inputs, **BASE, **fields)


def by_config(model, inputs, **fields):
    return model.generate(**inputs, generation_config=GenerationConfig(**BASE, **fields))


def by_position(model, inputs, **fields):
    rest = {name: x for name, x in inputs.items() if name != "input_ids"}
    return model.generate(inputs["input_ids"], GenerationConfig(**BASE, **fields), **rest)


def by_the_model(model, inputs, **fields):
    for name, value in fields.items():
        setattr(model.generation_config, name, value)
    return model.generate(**inputs, generation_config=GenerationConfig(**BASE))


WAYS = [by_keyword, by_config, by_position, by_the_model]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_an_answer_without_a_cache_is_refused(way):
    model = tiny_model()
    with vrga.patch(model), pytest.raises(ValueError, match="use_cache=False recomputes"):
        way(model, batch([[(6, 6)]]), use_cache=False)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_beams_are_known_however_they_are_asked_for(way):
    model, inputs = tiny_model(), batch([[(6, 6)]])
    with vrga.patch(model, VRGAConfig.published(gain=1.0)) as patch:
        with patch.record() as wanted:
            by_keyword(model, inputs, num_beams=3)
        with patch.record() as found:
            way(model, inputs, num_beams=3)
    assert len(patch.region) == 3
    torch.testing.assert_close(found.image, wanted.image, rtol=1e-4, atol=1e-4)


def test_an_unknown_positional_argument_is_told_as_generate_tells_it():
    model, inputs = tiny_model(), batch([[(6, 6)]])
    with vrga.patch(model), pytest.raises(ValueError, match="generate.*positional"):
        model.generate(inputs["input_ids"], *[None] * 30)


def test_the_end_token_of_the_call_closes_the_turn():
    model, inputs = tiny_model(), batch([[(6, 6)]])
    end = inputs["input_ids"][0].tolist().index(EOS)
    model.generation_config.eos_token_id = model.config.text_config.eos_token_id = None
    with vrga.patch(model) as patch:
        by_keyword(model, inputs)
        assert patch.region[0].query == end - 1
        model.generate(**inputs, max_new_tokens=2)
        assert patch.region[0].query == inputs["input_ids"].shape[1] - 1


# --- turns ---


class Chat:
    """A tokenizer of words with a chat template of its own."""

    added_tokens_encoder: dict = {}

    def __init__(self, template):
        self.chat_template, self.words = template, {}

    def ids(self, text):
        return [10 + self.words.setdefault(w, len(self.words)) for w in text.split()]

    def decode(self, ids, skip_special_tokens=True):
        known = {10 + i: w for w, i in self.words.items()}
        return "".join(known.get(i, f"<{i}>") + " " for i in ids)

    def apply_chat_template(self, messages, chat_template=None, **kwargs):
        assert chat_template is self.chat_template and kwargs["add_generation_prompt"]
        said = [(m["role"], "".join(p["text"] for p in m["content"])) for m in messages]
        return chat_template(said)


VICUNA = (
    "vicuna",
    lambda said: "".join(  # the model's turns alone are closed
        f"USER: {text} ASSISTANT: " if role == "user" else f"{text} </s> " for role, text in said
    ),
)
CLOSED = (
    "closed",
    lambda said: (
        "".join(f"<|start| {role} {text} <|end|> " for role, text in said) + "<|start| assistant "
    ),
)
IDEFICS = (
    "idefics",
    lambda said: (
        "".join(f"{role.title()}: {text} <end_of_utterance> " for role, text in said)
        + "Assistant: "
    ),
)


@pytest.mark.parametrize(("name", "template"), [VICUNA, CLOSED, IDEFICS])
@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("prefix", ["", "The answer is "], ids=["", "prefilled"])
def test_the_chat_template_says_where_the_question_ends(name, template, turns, prefix):
    chat = Chat(template)
    said = [
        (role, text)
        for i in range(turns)
        for role, text in (("user", f"what is {i} here"), ("assistant", f"it is {i}"))
    ]
    text = "X " + template(said[:-1]) + prefix
    ids = chat.ids(text)
    image = [VISION_START, *[IMAGE] * 36, VISION_END]
    row = torch.tensor([[ids[0], *image, *ids[1:]]])
    inputs = dict(input_ids=row, attention_mask=torch.ones_like(row), **token_types(row),
                  image_grid_thw=torch.tensor([[1, 12, 12]]),
                  pixel_values=torch.randn(144, 1176))  # fmt: skip
    model = tiny_model()
    with vrga.patch(model, tokenizer=chat) as patch:
        model.generate(**inputs, max_new_tokens=2)
        region = patch.region[0]
    words = chat.decode(row[0].tolist()).split()
    asked = max(i for i, word in enumerate(words) if word == "here")
    assert region.query == asked, chat.decode(row[0].tolist())
    wanted = f"what is {turns - 1} here"
    assert region.question in (wanted, f"X {wanted}")  # the very first turn's opening is no mark
    assert f"question {region.question!r}" in repr(region)


def test_a_few_shot_prompts_last_turn_is_open():
    chat = Chat(VICUNA[1])
    shots = chat.ids("USER: first shot ASSISTANT: done </s> USER: now this")
    image = [VISION_START, *[IMAGE] * 36, VISION_END]
    row = torch.tensor([[5, *image, *shots]])
    inputs = dict(input_ids=row, attention_mask=torch.ones_like(row), **token_types(row),
                  image_grid_thw=torch.tensor([[1, 12, 12]]),
                  pixel_values=torch.randn(144, 1176))  # fmt: skip
    model = tiny_model()
    with vrga.patch(model, tokenizer=chat) as patch:
        model.generate(**inputs, max_new_tokens=2)
        assert patch.region[0].query == row.shape[1] - 1


@pytest.mark.parametrize("template", [lambda said: "always the same", lambda said: 1 / 0])
def test_a_template_that_tells_nothing_is_done_without(template):
    assert TurnMarks.of(Chat(template), template) is None
    model, inputs = tiny_model(), batch([[(6, 6)]])
    end = inputs["input_ids"][0].tolist().index(EOS)
    with vrga.patch(model, tokenizer=Chat(template)) as patch:
        model.generate(**inputs, max_new_tokens=2)
        assert patch.region[0].query == end - 1 and patch.region[0].question


@pytest.mark.parametrize("closed", [True, False], ids=["a new turn", "words forced"])
def test_words_behind_an_answer_on_its_cache(closed):
    """Words put into the model's mouth go on with its answer; a turn that closes is a new one."""
    model, inputs = tiny_model(), batch([[(6, 6)]])
    cache = DynamicCache(config=model.config.get_text_config())
    with vrga.patch(model, GAIN) as patch:
        out = model.generate(**inputs, **{cache_name(model): cache}, max_new_tokens=4,
                             min_new_tokens=4)  # fmt: skip
        before = patch.region[0]
        words = [20, 21, 22, EOS, 5, 6] if closed else [20, 21, 22]
        ids = torch.cat([out, torch.tensor([words])], 1)
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids),
                       **{cache_name(model): cache}, **token_types(ids), max_new_tokens=3,
                       min_new_tokens=3)  # fmt: skip
        after = patch.region[0]
        assert (after is before) == (not closed)
        assert after.query == (out.shape[1] + 2 if closed else before.query)
        assert patch.steps[0].steered == (2 if closed else 3 + 1 + 3 + 2)


# --- adapters with virtual tokens ---


def test_a_prompt_tuned_adapters_virtual_tokens_are_told():
    """They stand before the prompt, where nobody knows of them: positions would be off."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, num_layers=3, token_dim=128,
        num_attention_heads=8, num_transformer_submodules=1,
    )  # fmt: skip
    model, inputs = peft.get_peft_model(tiny_model(), config).eval(), batch([[(6, 6)]])
    with vrga.patch(model, GAIN), pytest.raises(ValueError, match="virtual tokens|inputs_embeds"):
        model.generate(**inputs, max_new_tokens=3)


@pytest.mark.parametrize("whole", [True, False], ids=["mask as long", "mask of all keys"])
def test_keys_that_stand_in_the_cache_before_the_prompt_are_told(whole):
    """As a prefix-tuned adapter puts them there."""
    model, inputs = tiny_model(), batch([[(6, 6)]])
    cache = DynamicCache(config=model.config.get_text_config())
    for layer in range(3):
        cache.update(torch.randn(1, 2, 4, 16), torch.randn(1, 2, 4, 16), layer)
    if not whole:
        longer = torch.ones(1, inputs["input_ids"].shape[1] + 4, dtype=torch.int64)
        inputs["attention_mask"] = longer
    with vrga.patch(model, GAIN), pytest.raises(ValueError, match="virtual tokens|has not seen"):
        with torch.no_grad():
            prompt = {k: v for k, v in inputs.items()}
            model(**prompt, **{cache_name(model): cache}, use_cache=True)


# --- attention that is no plain softmax ---


def sharper(module, query, *rest, **more):
    return sdpa_attention_forward(module, query * 2.0, *rest, **more)


def with_a_sink(module, query, key, value, mask, **more):
    """Probabilities that sum to less than 1."""
    out, weights = sdpa_attention_forward(module, query, key, value, mask, **more)
    return out * 0.75, weights


BACKENDS = {"sharper": sharper, "with_a_sink": with_a_sink}


@pytest.fixture(params=list(BACKENDS))
def registered(request):
    AttentionInterface.register(request.param, BACKENDS[request.param])
    AttentionMaskInterface.register(request.param, sdpa_mask)
    model = LLAVA.model().eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, 0
    model.set_attn_implementation({"text_config": request.param})
    return model, request.param


def loops(model, inputs, tokens, patch, gain, factor, kept):
    """Steered steps of a backend with `factor` on the query and `kept` of the output, by hand."""
    region, length = patch.region[0], inputs["input_ids"].shape[1]
    gate = region.visual
    mask = region.mask

    def attend(module, query, key, value, mask_, **more):
        scores = factor * query @ key.repeat_interleave(2, 1).transpose(2, 3) * more["scaling"]
        rows, keys = query.shape[2], key.shape[2]
        hidden = torch.ones(rows, keys).tril(keys - rows) == 0
        probs = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        if keys > length:
            heads = gate[module.layer_idx]
            weight = torch.ones(len(heads), keys)
            weight[heads.nonzero()[:, 0][:, None], mask.nonzero()[:, 0]] = gain
            probs = probs * weight[None, :, None]
            probs = probs / probs.sum(-1, keepdim=True)
        out = kept * probs @ value.repeat_interleave(2, 1)
        return out.transpose(1, 2), None

    AttentionInterface.register("loops", attend)
    AttentionMaskInterface.register("loops", sdpa_mask)
    model.set_attn_implementation({"text_config": "loops"})
    found = steps(model, inputs, tokens)
    return found


@pytest.mark.parametrize("gain", [1.0 + 1e-9, 4.0], ids=["next to nothing", "4"])
def test_another_backend_is_kept_and_steered(registered, gain):
    """Its probabilities are read off it, for the region and for every step."""
    model, name = registered
    inputs = LLAVA.batch([1]).inputs
    plain = steps(model, inputs)
    with vrga.patch(model, VRGAConfig.paper(gain=gain)) as patch:
        found = steps(model, inputs)
        region = patch.region[0]
    if gain < 2:
        torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-3)
    else:
        assert (found[:, 1:] - plain[:, 1:]).abs().max() > 1e-2
    assert torch.equal(steps(model, inputs), plain)
    factor, kept = (2.0, 1.0) if name == "sharper" else (1.0, 0.75)
    if name == "with_a_sink":
        return  # what is left of its probabilities is steered and renormalised
    wanted = loops(model, inputs, 5, patch, gain, factor, kept)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    with vrga.patch(LLAVA.shared, VRGAConfig.paper()) as plain_patch:
        steps(LLAVA.shared, inputs)
    assert not torch.equal(plain_patch.region[0].heads.focus, region.heads.focus)


def test_a_backend_that_is_no_weighted_sum_is_refused():
    def squashed(*args, **more):
        out, weights = sdpa_attention_forward(*args, **more)
        return out.tanh(), weights

    AttentionInterface.register("squashed", squashed)
    AttentionMaskInterface.register("squashed", sdpa_mask)
    model = LLAVA.model().eval()
    model.set_attn_implementation({"text_config": "squashed"})
    with (
        vrga.patch(model, STATIC),
        pytest.raises(ValueError, match="no weighted sum of the values"),
    ):
        steps(model, LLAVA.batch([1]).inputs)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_bias_in_the_mask_is_kept_and_steered(attention):
    """Emphasis on a span as a finite bias: kept under a gain of next to nothing; a bias of
    log 4 on T is a gain of 4."""
    model, inputs = LLAVA.model().eval(), LLAVA.batch([1]).inputs
    model.set_attn_implementation({"text_config": attention})
    name, length = cache_name(model), inputs["input_ids"].shape[1]

    def run(span, by):
        out, found = model(**inputs, use_cache=True), []
        for i in range(3):
            bias = torch.zeros(1, 1, 1, length + i + 1)
            bias[..., span] = by
            out = model(input_ids=torch.tensor([[30 + i]]), attention_mask=bias, use_cache=True,
                        **{name: cache_in(out)})  # fmt: skip
            found.append(out.logits[:, -1])
        return torch.stack(found)

    plain = run(slice(2, 8), -2.0)
    with vrga.patch(model, VRGAConfig.paper(gain=1.0 + 1e-9)):
        torch.testing.assert_close(run(slice(2, 8), -2.0), plain, rtol=1e-3, atol=1e-3)
    every = VRGAConfig.paper(gain=4.0, efr_percentile=100.0, focus_percentile=0.0)
    with vrga.patch(model, every) as patch:
        steered = run(slice(2, 8), -2.0)
        region = patch.region[0]
    assert region.visual.all()
    both = region.mask.nonzero().flatten()

    def run_both():
        out, found = model(**inputs, use_cache=True), []
        for i in range(3):
            bias = torch.zeros(1, 1, 1, length + i + 1)
            bias[..., 2:8] = -2.0
            bias[..., both] += torch.tensor(4.0).log()
            out = model(input_ids=torch.tensor([[30 + i]]), attention_mask=bias, use_cache=True,
                        **{name: cache_in(out)})  # fmt: skip
            found.append(out.logits[:, -1])
        return torch.stack(found)

    torch.testing.assert_close(steered, run_both(), rtol=1e-3, atol=1e-3)
    assert (steered - plain).abs().max() > 1e-2


# --- a model that is not pristine ---


def test_a_generate_of_the_users_is_kept_and_put_back():
    model, inputs, calls = tiny_model(), batch([[(6, 6)]]), []
    own = model.generate

    def replaced(self, *args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    mine = types.MethodType(replaced, model)
    model.generate = mine
    for inside in (True, False):
        if inside:
            with vrga.patch(model, GAIN) as patch:
                model.generate(**inputs, max_new_tokens=3, min_new_tokens=3)
                assert patch.steps[0].steered == 2
        else:
            model.generate(**inputs, max_new_tokens=3)
        assert model.generate is mine
    assert len(calls) == 2


@pytest.mark.parametrize("how", [pickle.dumps, lambda m: torch.save(m, io.BytesIO())])
def test_pickling_a_patched_model_says_why_not(how):
    model = tiny_model()
    with vrga.patch(model):
        with pytest.raises(pickle.PicklingError, match="vrga.unpatch.*save_pretrained"):
            how(model)
    how(model)


def test_attributes_that_do_nothing_are_refused():
    with vrga.patch(tiny_model()) as patch:
        for name, value in (("gain", 100), ("quary", "x"), ("region", [])):
            with pytest.raises(AttributeError, match=f"{name}.*patch.config = "):
                setattr(patch, name, value)
        for name, value in (("config", "paper"), ("enabled", 1), ("query", None)):
            with pytest.raises(ValueError, match=f"{name}="):
                setattr(patch, name, value)


WRONG = {
    "pixels": [[(10, 10, 50, 50)]],
    "a tensor": torch.zeros(6, 6),
    "one mask": [torch.zeros(6, 6, dtype=torch.bool)],
    "weights": [[torch.full((6, 6), 0.5)]],
    "words": "the cat",
    "nothing": [[None]],
    "another grid": [[torch.zeros(5, 6, dtype=torch.bool)]],
}


@pytest.mark.parametrize("name", list(WRONG))
def test_a_region_in_another_form_is_told_in_words(name):
    model, inputs = tiny_model(), batch([[(6, 6)]])
    with vrga.patch(model) as patch:
        patch.given = WRONG[name]
        with pytest.raises(ValueError, match=r"given has .*|given is .*"):
            generate(model, inputs, 2)


def test_a_region_that_was_given_is_the_region():
    model, inputs = tiny_model(), batch([[(6, 6)]])
    cell = torch.zeros(6, 6, dtype=torch.bool)
    cell[2, 3] = True
    with vrga.patch(model) as patch:
        patch.given = [[cell]]
        generate(model, inputs, 2)
        region = patch.region[0]
        place = region.grids[0].index[2 * 6 + 3]
        assert region.mask.nonzero().flatten().tolist() == [int(place)]
        assert "T 1 of 36 tokens" in repr(patch)


# --- layouts against the vision config ---


def llava(tower, strategy, side=4, images=2):
    torch.manual_seed(0)
    vision = tower(hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                   num_attention_heads=2, image_size=8 * side, patch_size=8)  # fmt: skip
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**TEXT, hidden_size=64),
        image_token_index=IMAGE,
        vision_feature_select_strategy=strategy,
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    return model


def of_llava(ids, images):
    """The inputs of one row with images of 32 x 32 pixels."""
    ids = torch.tensor([ids])
    return dict(input_ids=ids, attention_mask=torch.ones_like(ids),
                pixel_values=torch.randn(images, 3, 32, 32))  # fmt: skip


@pytest.mark.parametrize(
    ("tower", "strategy", "lead"),
    [("CLIPVisionConfig", "default", 0), ("CLIPVisionConfig", "full", 1),
     ("SiglipVisionConfig", "full", 0)],
)  # fmt: skip
def test_the_grids_are_those_of_the_vision_tower(tower, strategy, lead):
    import transformers

    model = llava(getattr(transformers, tower), strategy)
    image = [IMAGE] * (16 + lead)
    inputs = of_llava([3, 4, *image, 5, *image, 6, 7], 2)
    model.generate(**inputs, max_new_tokens=2)
    with vrga.patch(model) as patch:
        model.generate(**inputs, max_new_tokens=2)
        found = [grid.index.tolist() for grid in patch.region[0].grids]
    first, second = 2 + lead, 3 + 16 + 2 * lead
    assert found == [list(range(first, first + 16)), list(range(second, second + 16))]


def test_pixtrals_rows_have_breaks_between_them():
    from transformers import PixtralVisionConfig

    torch.manual_seed(0)
    vision = PixtralVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        head_dim=16,
    )
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**TEXT, hidden_size=64),
                         image_token_index=IMAGE, vision_feature_layer=-1,
                         vision_feature_select_strategy="full")  # fmt: skip
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    ids = [3, 4]
    for i in range(2):
        ids += [*[IMAGE] * 3, 50 if i == 0 else 51]
    ids = torch.tensor([[*ids, 6, 7]])
    inputs = dict(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=torch.randn(1, 3, 16, 24),
        image_sizes=torch.tensor([[16, 24]]),
    )
    with vrga.patch(model) as patch:
        model.generate(**inputs, max_new_tokens=2)
        (grid,) = patch.region[0].grids
        assert (grid.h, grid.w, grid.index.tolist()) == (2, 3, [2, 3, 4, 6, 7, 8])


def test_a_tower_or_a_strategy_that_is_not_known_is_unsupported():
    from transformers import SiglipVisionConfig

    inputs = of_llava([3, 4, *[IMAGE] * 15, 6, 7], 1)
    model = llava(SiglipVisionConfig, "default")
    with vrga.patch(model), pytest.raises(ValueError, match="leaves tokens that are no grid"):
        model.generate(**inputs, max_new_tokens=2)
    model.config.vision_config.model_type = "some_tower"
    with vrga.patch(model), pytest.raises(ValueError, match="'some_tower' is not supported"):
        model.generate(**inputs, max_new_tokens=2)


def test_a_grid_never_reaches_across_text():
    model = llava(__import__("transformers").CLIPVisionConfig, "default")
    inputs = of_llava([3, 4, *[IMAGE] * 10, 5, *[IMAGE] * 6, 6, 7], 1)
    with vrga.patch(model), pytest.raises(ValueError, match="over 17 positions, with text among"):
        model.generate(**inputs, max_new_tokens=2)


# --- sizes, and devices ---


@pytest.mark.parametrize("between", [False, True], ids=["", "another prompt between"])
@pytest.mark.parametrize("sizes", ["all", "none"])
def test_a_later_turn_may_bring_the_sizes_of_all_images(between, sizes):
    family = FAMILIES["qwen2_5_vl"]
    model, inputs = copy.deepcopy(family.shared), family.batch([1]).inputs
    name = cache_name(model)
    with vrga.patch(model, GAIN) as patch:
        cache = DynamicCache(config=model.config.get_text_config())
        out = model.generate(**inputs, **{name: cache}, max_new_tokens=4, min_new_tokens=4)
        grids = patch.region[0].grids
        if between:
            model.generate(**family.batch([2], seed=2).inputs, max_new_tokens=2)
            generate(model, inputs, 2)  # whose rotary shift is the first prompt's again
        ids = torch.cat([out, torch.tensor([[EOS, 30, 31, 32, EOS, 40, 41]])], 1)
        more = dict(input_ids=ids, attention_mask=torch.ones_like(ids), **token_types(ids))
        if sizes == "all":
            more["image_grid_thw"] = inputs["image_grid_thw"]
        model.generate(**more, **{name: cache}, max_new_tokens=3, min_new_tokens=3)
        region = patch.region[0]
        assert region.query == out.shape[1] + 3
        assert torch.equal(region.grids[0].index, grids[0].index)
        assert patch.steps[0].steered == 2


@pytest.mark.parametrize("config", [GAIN, VRGAConfig.published(gain=3.0, relocate="back")])
def test_tensors_go_where_they_belong_whatever_the_default_device(config):
    """As with torch.set_default_device("cuda"); "meta" shows it on a CPU."""
    from test_back import SAID, WORDS, say

    family = FAMILIES["qwen2_5_vl"]
    model, one = family.shared, family.batch([1, 2])
    with vrga.patch(model, config, tokenizer=WORDS) as patch:
        with patch.record(maps="visual", layer_maps=True) as wanted:
            say(model, one, SAID)
        with torch.no_grad():
            plain = loop(model, one.inputs, 4)
        own, inside = patch._hooks.before, []

        def before(*args):
            with torch.device("meta"):
                inside.append(1)
                return own(*args)

        def after(*args):
            with torch.device("meta"):
                return patch._hooks.after(*args)

        outer, text = model.model, model.model.language_model
        hooks = {outer: (outer._forward_pre_hooks, own, before),
                 text: (text._forward_hooks, patch._hooks.after, after)}  # fmt: skip
        for where, old, new in hooks.values():
            (key,) = [k for k, hook in where.items() if hook == old]
            where[key] = new
        with patch.record(maps="visual", layer_maps=True) as found:
            say(model, one, SAID)
        with torch.no_grad():
            torch.testing.assert_close(loop(model, one.inputs, 4), plain)
        assert inside
    torch.testing.assert_close(found.image, wanted.image)


# --- what a fresh pair of eyes found ---


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_of_a_prompt_are_the_unpatched_models(reentrant):
    """Layers that are computed again in the backward pass do what they did in the forward."""
    inputs = LLAVA.batch([1]).inputs
    grads = {}
    for patched in (False, True):
        model = copy.deepcopy(LLAVA.shared).train()
        for module in model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = True
                module._gradient_checkpointing_func = lambda function, *args: (
                    torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=reentrant)
                )
        model.enable_input_require_grads()
        if patched:
            vrga.patch(model, GAIN)
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        grads[patched] = model.model.language_model.layers[1].self_attn.v_proj.weight.grad
    torch.testing.assert_close(grads[True], grads[False])


@torch.no_grad()
def test_a_cache_of_another_patch_is_a_prompt_not_seen():
    model, one, name = LLAVA.shared, LLAVA.batch([1]).inputs, cache_name(LLAVA.shared)
    with vrga.patch(model, VRGAConfig.published(gain=1.0)):
        held = cache_in(model(**one, use_cache=True))
    with vrga.patch(model, GAIN), pytest.raises(ValueError, match="has not seen"):
        model(input_ids=torch.tensor([[40]]), use_cache=True, **{name: held})
    with vrga.patch(model, GAIN) as patch:
        held = cache_in(model(**one, use_cache=True))
        patch.config = VRGAConfig.published(gain=5.0)
        with pytest.raises(ValueError, match="patch.config was set since"):
            model(input_ids=torch.tensor([[40]]), use_cache=True, **{name: held})


@pytest.mark.parametrize("how", ["wrapped", "kernel"])
def test_a_function_in_the_place_of_a_known_backend_is_kept(how, monkeypatch):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, one = LLAVA.shared, LLAVA.batch([1]).inputs
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if how == "wrapped":

        @functools.wraps(own)
        def sharp(module, query, *rest, **more):
            return own(module, 3 * query, *rest, **more)

        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", sharp)
    else:
        kernel = torch.nn.functional.scaled_dot_product_attention

        def sharp(query, *rest, **more):
            return kernel(3 * query, *rest, **more)

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", sharp)
    plain = steps(model, one)
    with vrga.patch(model, VRGAConfig.paper(gain=1.0 + 1e-9)):
        torch.testing.assert_close(steps(model, one), plain, rtol=1e-3, atol=1e-3)


def test_a_question_ends_with_its_last_character_whole():
    """Of a byte-level vocabulary a character may take several tokens."""

    class Bytes(Chat):
        def decode(self, ids, skip_special_tokens=True):
            return bytes(i for i in ids if i < 80 or i >= 120).decode("utf-8", "replace")

    text = "U: Un café C: "
    chat = Bytes(lambda said: "".join(f"U: {t} C: " if r == "user" else t for r, t in said))
    from vrga.hf.question_ends import template_end
    from vrga.method.prompt import Prompt

    ids = torch.tensor([list(text.upper().encode())])
    ids = torch.tensor([[b for b in "U: 1é C: ".encode()]])
    decode = lambda tokens: bytes(tokens).decode("utf-8", "replace")  # noqa: E731
    visible = torch.ones_like(ids, dtype=torch.bool)
    prompt = Prompt(ids, visible, torch.zeros_like(visible), [[]])
    marks = TurnMarks(opening="U:", closing="C:")
    assert template_end(prompt, decode, marks, 0) == "U: 1é".encode().__len__() - 1
    assert chat.chat_template


@torch.no_grad()
def test_the_text_model_by_itself_is_told():
    model, one, name = LLAVA.shared, LLAVA.batch([1]).inputs, cache_name(LLAVA.shared)
    with vrga.patch(model, GAIN):
        held = cache_in(model(**one, use_cache=True))
        embeds = model.get_input_embeddings()(torch.tensor([[40]]))
        with pytest.raises(SteeringError, match="called by itself"):
            model.model.language_model(inputs_embeds=embeds, use_cache=True, **{name: held})
        model.model.language_model(inputs_embeds=embeds, use_cache=True)  # on a cache of its own


@torch.no_grad()
def test_rows_that_were_chosen_from_a_cache_are_told():
    model, name = LLAVA.shared, cache_name(LLAVA.shared)
    with vrga.patch(model, GAIN):
        held = cache_in(model(**LLAVA.batch([1, 1]).inputs, use_cache=True))
        held.batch_select_indices(torch.tensor([1]))
        with pytest.raises(SteeringError, match="prompt has 2 rows, and this pass has 1"):
            model(input_ids=torch.tensor([[40]]), use_cache=True, **{name: held})


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_a_patched_model_may_be_an_assistant(family):
    model, one = FAMILIES[family].shared, FAMILIES[family].batch([1]).inputs
    with vrga.patch(model, GAIN) as patch:
        wanted = generate(model, one, 8)[0]
        found = generate(model, one, 8, assistant_model=model)[0]
        assert torch.equal(found, wanted) and patch.steps[0].steered == 7


# Without a tokenizer, two tokens more are a new question to LLaVA, whose turns need no end.
@pytest.mark.parametrize(("family", "left"), [("llava", 1), ("qwen2_5_vl", 1), ("qwen2_5_vl", 2)])
@torch.no_grad()
def test_the_end_of_a_prompt_is_not_its_answer(family, left):
    """Prefilled by hand up to the header, or cut back to it and asked again."""
    model, one = FAMILIES[family].shared, FAMILIES[family].batch([1]).inputs
    name, length = cache_name(model), one["input_ids"].shape[1]

    def fresh():
        return DynamicCache(config=model.config.get_text_config())

    with vrga.patch(model, GAIN) as patch:
        wanted = generate(model, one, 5)[1]
        region = patch.region[0]
        held = fresh()
        cut = {k: v[:, :-left] if v.shape[:2] == (1, length) else v for k, v in one.items()}
        if hasattr(model.model, "rope_deltas"):
            model.model.rope_deltas = None
        model(**cut, **{name: held}, use_cache=True)
        seen = {k: v for k, v in one.items() if k != "pixel_values"}  # they are cached
        found = generate(model, seen, 5, **{name: held})[1]
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        assert patch.steps[0].steered == 4 and torch.equal(patch.region[0].focus, region.focus)
        held = fresh()
        generate(model, one, 5, **{name: held})
        held.crop(length - left - held.get_seq_length())
        again = generate(model, seen, 5, **{name: held})[1]
        torch.testing.assert_close(again, wanted, rtol=1e-3, atol=1e-3)
        assert patch.steps[0].steered == 4


@pytest.mark.parametrize("how", ["method", "forward"])
def test_code_compiled_after_the_patch_is_set_aside_by_generate(how):
    model, one = copy.deepcopy(LLAVA.shared), LLAVA.batch([1]).inputs
    with vrga.patch(model, GAIN) as patch:
        wanted = steps(model, one)
        if how == "method":
            model.compile(backend="eager")
        else:
            model.forward = torch.compile(model.forward, backend="eager")
        with pytest.warns(UserWarning, match="is compiled .*runs uncompiled"):
            assert torch.equal(steps(model, one), wanted)
        assert patch.steps[0].steered == 4
        model.model = torch.compile(model.model, backend="eager")
        with pytest.raises(ValueError, match="model of the patched model is wrapped by torch.comp"):
            steps(model, one)


@pytest.mark.parametrize("ends", [torch.tensor(EOS), torch.tensor([EOS, 70]), [EOS, 70]])
def test_end_tokens_in_every_form_close_a_turn(ends):
    model, inputs = tiny_model(), batch([[(6, 6)]])
    end = inputs["input_ids"][0].tolist().index(EOS)
    model.generation_config.eos_token_id = model.config.text_config.eos_token_id = None
    with vrga.patch(model) as patch:
        model.generate(**inputs, eos_token_id=ends, max_new_tokens=2)
        assert patch.region[0].query == end - 1


def test_a_wrapper_that_returns_the_new_tokens_alone_or_draws_twice():
    model, inputs = tiny_model(), batch([[(6, 6)]])
    own, width = model.generate, inputs["input_ids"].shape[1]
    model.generate = lambda **more: [own(**more) for _ in range(2)][-1][:, width:]
    with vrga.patch(model, GAIN) as patch:
        assert model.generate(**inputs, max_new_tokens=3, min_new_tokens=3).shape[1] == 3
        assert patch.steps[0].steered == 2


def test_a_generate_within_a_generate_is_not_recorded():
    model, inputs = tiny_model(), batch([[(6, 6)]])
    asked = []

    def processor(ids, scores):
        if ids.shape[1] == inputs["input_ids"].shape[1] + 2 and not asked:
            asked.append(1)
            generate(model, batch([[(4, 5)]]), 3)
        return scores

    with vrga.patch(model, GAIN) as patch, patch.record() as trace:
        model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, logits_processor=[processor])
    assert asked and len(trace.steps) == 5 and patch.steps[0].steered == 5


@torch.no_grad()
def test_an_answer_that_was_begun_by_hand_goes_on_in_generate():
    """The chat template tells that the prompt was whole: what follows is the answer."""
    chat = Chat(CLOSED[1])
    ids = chat.ids(CLOSED[1]([("user", "what is here")]))
    image = [VISION_START, *[IMAGE] * 36, VISION_END]
    row = torch.tensor([[5, *image, *ids]])
    inputs = dict(input_ids=row, attention_mask=torch.ones_like(row), **token_types(row),
                  image_grid_thw=torch.tensor([[1, 12, 12]]),
                  pixel_values=torch.randn(144, 1176))  # fmt: skip
    model = tiny_model()
    with vrga.patch(model, GAIN, tokenizer=chat) as patch:
        wanted = generate(model, inputs, 5)[0]
        out = model(**inputs, use_cache=True)
        more = torch.cat([row, out.logits[:, -1:].argmax(-1)], 1)
        seen = dict(input_ids=more, attention_mask=torch.ones_like(more), **token_types(more))
        found = generate(model, seen, 4, **{cache_name(model): cache_in(out)})[0]
        assert patch.steps[0].steered == 4
    assert torch.equal(found, wanted[:, 1:])
