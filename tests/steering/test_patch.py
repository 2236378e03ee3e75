"""What a patch promises: it steers, and it comes off without a trace."""

import copy
import subprocess
import sys

import pytest
import torch
from loops import COMPILED
from naive import region as naive_region
from naive import steered as naive_steered
from tiny import CACHE, EOS, IMAGE, batch, generate, shared_model, single, tiny_model
from transformers import AttentionInterface, AttentionMaskInterface, StaticCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vrga
from vrga import VRGAConfig
from vrga.hf.attention import KEYWORD

ONE = [[(6, 6)]]
MIXED = [[(6, 6)], [], [(4, 5), (3, 7)], [(5, 5)]]


@pytest.fixture
def model():
    return shared_model()


def state(model):
    """Everything a patch could leave behind."""
    return (
        model.config.get_text_config()._attn_implementation,
        model.config._attn_implementation,
        model.config.vision_config._attn_implementation,
        [(name, len(m._forward_pre_hooks), len(m._forward_hooks), sorted(vars(m)))
         for name, m in model.named_modules()],
    )  # fmt: skip


def test_steering_changes_the_output_and_comes_off(model):
    inputs, before = batch(ONE), state(model)
    tokens, logits = generate(model, inputs)
    with vrga.patch(model) as patch:
        steered = generate(model, inputs)
        assert patch.region[0].mask.any()
    after = generate(model, inputs)
    assert not torch.equal(steered[1], logits)
    assert torch.equal(after[0], tokens) and torch.equal(after[1], logits)
    assert state(model) == before


def test_the_prefill_is_untouched(model):
    inputs = batch(MIXED)
    logits = generate(model, inputs, tokens=1)[1]
    with vrga.patch(model):
        assert torch.equal(generate(model, inputs, tokens=1)[1], logits)


@pytest.mark.parametrize(
    ("images", "config"),
    [
        (ONE, VRGAConfig.published(gain=1.0)),
        (MIXED, VRGAConfig.published(gain=1.0)),
        (ONE, VRGAConfig.released(gain=1)),
        ([[], []], VRGAConfig.published()),
    ],
    ids=["gain 1", "gain 1, mixed", "released, gain 1", "no image"],
)
def test_bit_identical_where_nothing_is_steered(model, images, config):
    inputs = batch(images)
    tokens, logits = generate(model, inputs)
    with vrga.patch(model, config):
        patched = generate(model, inputs)
    assert torch.equal(patched[0], tokens) and torch.equal(patched[1], logits)


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_a_row_without_an_image_is_bit_identical_among_steered_rows(model, impl):
    inputs = batch(MIXED)
    logits = generate(model, inputs, tokens=4)[1]
    with vrga.patch(model, impl=impl):
        steered = generate(model, inputs, tokens=4)[1]
    assert torch.equal(steered[1], logits[1])
    for row in (0, 2, 3):
        assert not torch.equal(steered[row], logits[row])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "config", [VRGAConfig.published(), VRGAConfig.paper()], ids=["dynamic", "static"]
)
def test_a_row_does_not_depend_on_its_batch(attention, config):
    model = tiny_model(attention=attention)
    inputs = batch(MIXED)
    with vrga.patch(model, config) as patch:
        tokens, logits = generate(model, inputs)
        together = patch.region
        for row in range(len(MIXED)):
            alone = single(inputs, row, MIXED)
            alone_tokens, alone_logits = generate(model, alone)
            assert torch.equal(alone_tokens[0], tokens[row])
            torch.testing.assert_close(alone_logits[0], logits[row], rtol=1e-3, atol=1e-3)
            pads = inputs["input_ids"].shape[1] - alone["input_ids"].shape[1]
            region = patch.region[0]
            assert torch.equal(region.focus + pads, together[row].focus)
            assert torch.equal(region.mask, together[row].mask[pads:])
            assert torch.equal(region.visual, together[row].visual)


def naive_generate(model, inputs, config, tokens, whole=False):
    """One row, step by step, with attention matrices in full and the method in loops.

    whole: steer to the whole image instead of T.
    """
    text, calls = model.model.language_model, []
    grids = [(h // 2, w // 2) for _, h, w in inputs["image_grid_thw"].tolist()]
    places = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0].tolist()
    layout, start = [], 0
    for h, w in grids:
        layout.append((places[start : start + h * w], h, w))
        start += h * w
    query = (inputs["input_ids"][0] == EOS).nonzero()[0, 0].item() - 1
    rows, found = {}, {}

    def attend(module, q, k, v, mask, scaling, **kwargs):
        group, keys = q.shape[1] // k.shape[1], k.shape[2]
        if q.shape[2] > 1:
            k, v = (x.repeat_interleave(group, 1) for x in (k, v))
            scores = q @ k.transpose(2, 3) * scaling
            probs = scores.masked_fill(torch.ones(keys, keys).triu(1) > 0, -torch.inf).softmax(-1)
            rows[module.layer_idx] = probs[0, :, query]
            return (probs @ v).transpose(1, 2), None
        if not found:
            stacked = torch.stack([rows[i] for i in range(len(rows))]).double().numpy()
            focus, mask, visual, _ = naive_region(stacked, layout, query + 1)
            found.update(focus=focus, mask=mask, visual=visual)
        gate = None
        if config.gate == "static":
            gate = [(module.layer_idx, h) in found["visual"] for h in range(q.shape[1])]
        image = torch.tensor(places)
        focus = image if whole else torch.tensor(found["mask"])
        out, opened = naive_steered(
            q[0, :, 0], k[0], v[0], image, focus, scale=scaling, gain=config.gain, gate=gate,
        )  # fmt: skip
        calls.append(len(opened))
        return out.to(q.dtype)[None, None], None

    AttentionInterface.register("naive", attend)
    AttentionMaskInterface.register("naive", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    own = text.config._attn_implementation
    model.set_attn_implementation({"text_config": "naive"})
    try:
        result = generate(model, inputs, tokens)
    finally:
        model.set_attn_implementation({"text_config": own})
    return *result, found, calls


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize(
    "config",
    [VRGAConfig.published(gain=3.0), VRGAConfig.paper(gain=3.0)],
    ids=["dynamic", "static"],
)
@pytest.mark.parametrize("images", [[(6, 6)], [(4, 5), (3, 7)]], ids=["one image", "two images"])
def test_steering_is_the_papers(model, images, config, impl):
    inputs = batch([images])
    tokens, logits, found, opened = naive_generate(model, inputs, config, 5)
    with vrga.patch(model, config, impl=impl) as patch:
        steered = generate(model, inputs, 5)
        region = patch.region[0]
    assert region.focus.tolist() == found["focus"]
    assert region.mask.nonzero()[:, 0].tolist() == found["mask"]
    assert torch.equal(steered[0], tokens)
    torch.testing.assert_close(steered[1], logits, rtol=1e-3, atol=1e-3)
    assert 0 < sum(opened) < 8 * len(opened)  # some heads open, some shut


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_a_static_cache_steers_like_a_dynamic_one(model, impl):
    inputs = batch([[(6, 6)], [(4, 5)]])
    with vrga.patch(model, VRGAConfig.paper(gain=3.0), impl=impl) as patch:
        dynamic, regions = generate(model, inputs), patch.region
        static = generate(model, inputs, cache_implementation="static", disable_compile=True)
        for a, b in zip(regions, patch.region, strict=True):
            torch.testing.assert_close(a.heads.focus, b.heads.focus)
            assert torch.equal(a.visual, b.visual)
        kept = generate(model, inputs, cache_implementation="static", compile_config=COMPILED)
    for other in (static, kept):
        assert torch.equal(other[0], dynamic[0])
        torch.testing.assert_close(other[1], dynamic[1], rtol=1e-4, atol=1e-4)


def test_prompts_of_any_length_share_one_compiled_step():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = tiny_model(layers=2)
    cache = StaticCache(model.config.get_text_config(), max_cache_len=128)
    with vrga.patch(model):
        for length in range(3, 8):  # more lengths than dynamo would recompile for
            cache.reset()
            inputs = batch([[(4, length)]])
            plain = generate(model, inputs)[1]
            compiled = generate(model, inputs, **{CACHE: cache}, compile_config=COMPILED)[1]
            torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_backend_sees_its_own_name():
    """Flash attention looks up its kernel by the name in the module's config."""
    seen = set()

    def backend(module, *args, **kwargs):
        seen.add(module.config._attn_implementation)
        assert module.layer_idx >= 0 and module.num_key_value_groups == 4
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *args, **kwargs)

    AttentionInterface.register("named", backend)
    AttentionMaskInterface.register("named", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model = tiny_model(attention={"text_config": "named", "vision_config": "sdpa"})
    logits = generate(model, batch(ONE))[1]
    with vrga.patch(model):
        steered = generate(model, batch(ONE))[1]
    assert seen == {"named"} and torch.equal(steered[:, 0], logits[:, 0])


def test_query_as_tensor_text_and_callable(model):
    inputs = batch([[(6, 6)], [(4, 5)]])
    ids = inputs["input_ids"]
    end = torch.stack([(row == EOS).nonzero()[0, 0] for row in ids]) - 1

    class Letters:
        def decode(self, tokens, skip_special_tokens=True):
            assert not skip_special_tokens
            return "".join(chr(200 + t) for t in tokens)

    question = [Letters().decode(ids[i, e - 2 : e + 1].tolist(), False) for i, e in enumerate(end)]
    found = {}
    with vrga.patch(model, tokenizer=Letters()) as patch:
        for name, query in {
            "default": "user_end",
            "tensor": end,
            "list": end.tolist(),
            "text": question,
            "callable": lambda ids, visible: end,
        }.items():
            patch.query = query
            generate(model, inputs, 2)
            found[name] = [region.query for region in patch.region]
        patch.query = end - 2
        generate(model, inputs, 2)
        assert [region.query for region in patch.region] == (end - 2).tolist()
    assert set(map(tuple, found.values())) == {tuple(end.tolist())}


def test_query_text_without_a_tokenizer_says_what_to_do(model):
    with vrga.patch(model, query="where?") as patch:
        with pytest.raises(ValueError, match="tokenizer=processor.tokenizer"):
            generate(model, batch(ONE))
        patch.query = torch.tensor([4])
        with pytest.raises(ValueError, match=r"query\[0\]=4 is on an image token"):
            generate(model, batch(ONE))
        patch.query = ["a", "b"]
        with pytest.raises(ValueError, match="2 texts for 1 rows"):
            generate(model, batch(ONE))
        patch.query = torch.tensor([44])
        generate(model, batch(ONE), num_beams=2)  # one position, two rows
        assert [region.query for region in patch.region] == [44, 44]


def test_enabled_switches_off_and_on(model):
    inputs = batch(ONE)
    base = generate(model, inputs)[1]
    with vrga.patch(model) as patch:
        steered = generate(model, inputs)[1]
        patch.enabled = False
        assert torch.equal(generate(model, inputs)[1], base)
        patch.enabled = True
        assert torch.equal(generate(model, inputs)[1], steered)


def test_the_config_may_change_between_calls(model):
    inputs = batch(ONE)
    with vrga.patch(model) as patch:
        first = generate(model, inputs)[1]
        patch.config = VRGAConfig.published(gain=4.0)
        assert not torch.equal(generate(model, inputs)[1], first)
        patch.config = VRGAConfig()
        assert torch.equal(generate(model, inputs)[1], first)


def test_two_models_of_which_one_is_patched(model):
    other = copy.deepcopy(model)
    inputs = batch(ONE)
    base = generate(model, inputs)[1]
    with vrga.patch(other):
        assert torch.equal(generate(model, inputs)[1], base)
        assert not torch.equal(generate(other, inputs)[1], base)


def test_a_copy_of_a_patched_model_is_patched_itself(model):
    inputs = batch(ONE)
    base = generate(model, inputs)[1]
    with vrga.patch(model):
        other = copy.deepcopy(model)
        steered = generate(model, inputs)[1]
        assert torch.equal(generate(other, inputs)[1], steered)
        with torch.no_grad():
            other.lm_head.weight.zero_()
        assert not generate(other, inputs)[1].any()
        assert torch.equal(generate(model, inputs)[1], steered)
        assert vrga.unpatch(other) is True and vrga.unpatch(other) is False
        assert torch.equal(generate(model, inputs)[1], steered)
    assert torch.equal(generate(model, inputs)[1], base)


def test_patching_twice_is_refused_and_harmless(model):
    before = state(model)
    with vrga.patch(model) as patch:
        once = state(model)
        with pytest.raises(ValueError, match="patched already.*vrga.unpatch"):
            vrga.patch(model)
        assert state(model) == once and patch.enabled
    assert state(model) == before


def test_unpatch_tells_whether_there_was_a_patch(model):
    before = state(model)
    assert vrga.unpatch(model) is False
    patch = vrga.patch(model)
    assert vrga.unpatch(model) is True and state(model) == before
    assert vrga.unpatch(model) is False
    patch.remove()  # a second removal does nothing
    assert state(model) == before


@pytest.mark.parametrize("during", ["outside", "prefill", "decode"])
def test_an_exception_inside_the_block_unpatches(model, during):
    inputs, before = batch(ONE), state(model)
    base = generate(model, inputs)[1]
    calls = {"n": 0}

    def fail(module, args):
        calls["n"] += 1
        if (during, calls["n"]) in (("prefill", 1), ("decode", 3)):
            raise KeyError(during)

    handle = model.model.language_model.layers[1].register_forward_pre_hook(fail)
    try:
        with pytest.raises(KeyError), vrga.patch(model):
            if during == "outside":
                raise KeyError(during)
            generate(model, inputs)
    finally:
        handle.remove()
    assert state(model) == before
    assert torch.equal(generate(model, inputs)[1], base)


def test_a_failed_generation_leaves_nothing_for_the_next(model):
    with vrga.patch(model) as patch:
        steered = generate(model, batch(ONE))[1]
        patch.query = torch.tensor([999])
        with pytest.raises(ValueError, match="out of the row"):
            generate(model, batch(ONE))
        patch.query = "user_end"
        assert torch.equal(generate(model, batch(ONE))[1], steered)


def test_a_saved_patched_model_is_the_unpatched_one(model, tmp_path):
    model.save_pretrained(tmp_path / "plain")
    with vrga.patch(model):
        model.save_pretrained(tmp_path / "patched")
    files = sorted(f.name for f in (tmp_path / "plain").iterdir())
    assert files == sorted(f.name for f in (tmp_path / "patched").iterdir())
    for name in files:
        plain, patched = (tmp_path / d / name for d in ("plain", "patched"))
        assert plain.read_bytes() == patched.read_bytes(), name


def test_unsupported_models_are_named():
    with pytest.raises(ValueError, match="Linear .*not supported.*qwen2_5_vl"):
        vrga.patch(torch.nn.Linear(2, 2))
    before = state(shared_model())
    with pytest.raises(ValueError, match="Qwen2_5_VLModel.*generate"):
        vrga.patch(shared_model().model)
    with pytest.raises(ValueError, match="is not a VRGAConfig"):
        vrga.patch(shared_model(), {"gain": 2})
    with pytest.raises(ValueError, match="impl='cuda' is not one of"):
        vrga.patch(shared_model(), impl="cuda")
    assert state(shared_model()) == before


def test_triton_without_cuda_or_interpreter_is_refused(model, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="impl='triton' needs a model on a CUDA device"):
        vrga.patch(model, impl="triton")


def test_attention_matrices_are_refused_with_the_alternative(model):
    inputs = batch(ONE)
    with vrga.patch(model) as patch:
        with pytest.raises(ValueError, match="output_attentions=True.*patch.record"):
            model.generate(**inputs, output_attentions=True, max_new_tokens=2)
        with pytest.raises(ValueError, match="output_attentions=True"):
            model(**inputs, output_attentions=True)
        patch.enabled = False
        model(**inputs)


def test_continuous_batching_is_refused(model):
    if not hasattr(model, "generate_batch"):
        pytest.skip("this version of transformers has no continuous batching")
    with vrga.patch(model):
        with pytest.raises(ValueError, match="generate_batch packs requests"):
            model.generate_batch([[1, 2, 3]])
    assert "generate_batch" not in vars(model)


def test_another_attention_implementation_while_patched_is_noticed():
    model = tiny_model()
    with vrga.patch(model):
        model.set_attn_implementation("eager")
        with pytest.raises(RuntimeError, match="'eager' while the model is patched"):
            generate(model, batch(ONE))
    assert model.config.get_text_config()._attn_implementation == "eager"


def test_a_cache_that_the_patch_has_not_seen_is_refused(model):
    inputs = batch(ONE)
    cache = model(**inputs, use_cache=True)[CACHE]
    step = {"input_ids": torch.tensor([[5]]), CACHE: cache}
    with vrga.patch(model) as patch:
        with pytest.raises(ValueError, match="a prompt this patch has not seen"):
            model(**step)
        patch.enabled = False
        model(**step)


def test_region_before_the_first_prompt_says_so(model):
    with vrga.patch(model) as patch, pytest.raises(RuntimeError, match="no region yet"):
        patch.region  # noqa: B018


def test_a_region_can_be_given(model):
    inputs = batch([[(6, 6)]])
    cell = torch.zeros(6, 6, dtype=torch.bool)
    cell[3, 4] = True
    with vrga.patch(model, VRGAConfig.published(gain=5.0)) as patch:
        found = generate(model, inputs)[1]
        patch.given = [[cell]]
        given = generate(model, inputs)[1]
        with patch.record() as trace:
            generate(model, inputs)
        assert not torch.equal(found, given)
        assert trace.region.max() > 0
        patch.given = [[cell[:5]]]
        with pytest.raises(ValueError, match=r"given has cells of shape \[\[\(5, 6\)\]\]"):
            generate(model, inputs)


def visual(regions):
    return torch.stack([region.visual for region in regions])


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_given_heads_lose_the_image(model, impl):
    images = [(4, 5), (3, 7)]
    inputs = batch([images])
    # A static gain of 0 on the whole image takes it from the visual heads.
    wanted = naive_generate(model, inputs, VRGAConfig.paper(gain=0.0), 5, whole=True)
    own, draft = generate(model, inputs, 5)[1], copy.deepcopy(model)
    with vrga.patch(model, VRGAConfig.ablation("given"), impl=impl) as patch:
        patch.ablated = visual
        tokens, logits = generate(model, inputs, 5)
        chosen = patch.region[0].visual
        assert set(map(tuple, chosen.nonzero().tolist())) == set(wanted[2]["visual"])
        torch.testing.assert_close(logits, wanted[1], rtol=1e-3, atol=1e-3)
        assert torch.equal(tokens, wanted[0])
        patch.ablated = chosen  # for every row
        assert torch.equal(generate(model, inputs, 5)[1], logits)
        # Drafts of another model come in passes of several tokens.
        drafted = model.generate(**inputs, max_new_tokens=5, do_sample=False, output_logits=True,
                                 return_dict_in_generate=True, assistant_model=draft)  # fmt: skip
        drafts = drafted.sequences[:, inputs["input_ids"].shape[1] :]
        assert torch.equal(drafts, tokens[:, : drafts.shape[1]]) and drafts.shape[1] > 2
        torch.testing.assert_close(torch.stack(drafted.logits, 1), logits[:, : drafts.shape[1]],
                                   rtol=1e-3, atol=1e-3)  # fmt: skip
        patch.ablated = ~chosen
        assert not torch.equal(generate(model, inputs, 5)[1], logits)
        patch.ablated = torch.zeros_like(chosen)
        torch.testing.assert_close(generate(model, inputs, 5)[1], own, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(own, logits, atol=1e-2)


def test_heads_are_given_to_each_row(model):
    inputs = batch(MIXED)
    with vrga.patch(model, VRGAConfig.ablation("given")) as patch:
        patch.ablated = visual
        together = generate(model, inputs)[1]
        for row in range(len(MIXED)):
            alone = generate(model, single(inputs, row, MIXED))[1]
            torch.testing.assert_close(alone[0], together[row], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("config", "ablated", "told"),
    [
        (VRGAConfig.published(), torch.ones(3, 8).bool(), "patch.ablated is set, ablate=None"),
        (VRGAConfig.ablation("given"), None, "patch.ablated is None, ablate='given'"),
        (VRGAConfig.ablation("given"), torch.ones(3, 8), r"float32 \[3, 8\]; wanted: bool"),
        (VRGAConfig.ablation("given"), torch.ones(2, 8).bool(), r"wanted: bool \[1, 3, 8\]"),
    ],
    ids=["not read", "missing", "not bool", "shape"],
)
def test_heads_that_do_not_fit_are_refused(model, config, ablated, told):
    with vrga.patch(model, config) as patch:
        patch.ablated = ablated
        with pytest.raises(ValueError, match=told):
            generate(model, batch([[(6, 6)]]))


@pytest.mark.parametrize("gain", [1.0, 3.0])
def test_a_trace_measures_attention_as_it_was(model, gain):
    """Against the attention matrices of the unpatched model, steered by hand."""
    inputs = batch([[(6, 6)], [(4, 5)]])
    cells = [[torch.rand(6, 6) < 0.2], [torch.rand(4, 5) < 0.2]]
    config = VRGAConfig.published(gain=gain)
    with vrga.patch(model, config) as patch:
        plain = generate(model, inputs, 4)[1]
        with patch.record(watch=cells) as trace:
            tokens, logits = generate(model, inputs, 4)
        regions = patch.region
    assert torch.equal(logits, plain)  # measuring changes nothing
    assert trace.image.shape == (3, 3, 2, 8) == trace.gate.shape
    if gain != 1:
        return
    own = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation({"text_config": "eager"})
    out = model.generate(
        **inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False,
        output_attentions=True, return_dict_in_generate=True,
    )  # fmt: skip
    model.set_attn_implementation({"text_config": own})
    assert torch.equal(out.sequences[:, -4:], tokens)
    for step in range(3):
        for layer in range(3):
            a = out.attentions[step + 1][layer][:, :, 0]
            for row, region in enumerate(regions):
                watched = torch.zeros(a.shape[-1], dtype=torch.bool)
                watched[region.grids[0].index] = cells[row][0].flatten()
                image = torch.nn.functional.pad(region.image, (0, step + 1))
                mask = torch.nn.functional.pad(region.mask, (0, step + 1))
                for name, keys in (("image", image), ("region", mask), ("watched", watched)):
                    found = getattr(trace, name)[step, layer, row]
                    torch.testing.assert_close(found, a[row][:, keys].sum(-1), rtol=1e-3, atol=1e-5)
                on = a[row][:, image]
                torch.testing.assert_close(
                    trace.entropy[step, layer, row], -torch.xlogy(on, on).sum(-1),
                    rtol=1e-3, atol=1e-4,
                )  # fmt: skip


def test_positions_without_token_types_are_noticed(model):
    inputs = batch(ONE)
    if inputs.pop("mm_token_type_ids", None) is None:
        pytest.skip("this version's model finds images by their token id")
    with vrga.patch(model), pytest.raises(ValueError, match="mm_token_type_ids"):
        generate(model, inputs)


def test_importing_vrga_is_light():
    code = (
        "import sys, vrga; vrga.VRGAConfig.published(); "
        "heavy = [m for m in ('triton', 'transformers') if m in sys.modules]; "
        "sys.exit(', '.join(heavy) or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_attribute_stays_on_the_attention_modules(model):
    with vrga.patch(model):
        generate(model, batch(ONE), 2)
        assert not [n for m in model.modules() for n in vars(m) if KEYWORD in n]
