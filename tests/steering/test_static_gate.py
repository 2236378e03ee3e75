"""A gate that is known beforehand is a bias on the keys, where nothing needs the sums."""

from dataclasses import replace

import pytest
import torch
from families import FAMILIES
from loops import COMPILED
from replay import Replay
from saying import INSIDE, SAID, WORDS, say
from tiny import generate, tiny_model
from windowed import windowed

import vrga
from vrga import VRGAConfig
from vrga.kernels import api
from vrga.method import steered_keys
from vrga.method.call import AttentionCall
from vrga.method.key_groups import KeyGroups
from vrga.method.region import empty_region

QWEN = FAMILIES["qwen2_5_vl"]
PAPER = VRGAConfig.paper(gain=3.0)
STATIC = dict(cache_implementation="static", disable_compile=True)
FULLGRAPH = dict(cache_implementation="static", compile_config=COMPILED)
CLOSE = dict(rtol=2e-3, atol=2e-3)
SAME = dict(rtol=1e-4, atol=1e-4)


@pytest.fixture
def model():
    vars(QWEN.shared).pop("_cache", None)
    return QWEN.shared


@pytest.fixture
def ways(monkeypatch):
    """What computed the attention of steered layers, call by call."""
    found = []

    def noted(name, way):
        own = getattr(api, name)

        @torch._dynamo.assume_constant_result  # of a compiled step once, where it is compiled
        def note():
            found.append(way)

        def function(*args, **kwargs):
            note()
            return own(*args, **kwargs)

        monkeypatch.setattr(api, name, function)

    noted("biased_attention", "biased")
    noted("gated_attention", "gated")
    noted("decode_attention_reference", "sums")
    return found


def layers_of(regions):
    """How many layers have a chosen head in some row."""
    return int(torch.stack([region.visual for region in regions]).any(0).any(1).sum())


def check_replay(model, batch, tokens, logits, gain):
    for row in range(len(tokens)):
        alone = QWEN.alone(batch, row)
        replay = Replay(model, gain, "static")
        expected = replay.turn(alone.inputs, tokens[row], alone.query[0], alone.grids[0])
        torch.testing.assert_close(logits[row], expected, **CLOSE)


@pytest.mark.parametrize("gain", [3.0, 0.3])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_with_padding_are_the_method_in_loops(ways, gain, attention):
    model = tiny_model(attention=attention)
    batch = QWEN.batch([1, 2])
    with vrga.patch(model, PAPER, gain=gain) as patch:
        tokens, logits = generate(model, batch.inputs, 5)
        steered = layers_of(patch.region)
    assert ways == ["biased"] * 4 * steered and steered
    check_replay(model, batch, tokens, logits, gain)


def test_layers_without_a_chosen_head_run_the_models_own_attention(model, monkeypatch):
    batch, called = QWEN.batch([1]), []
    own = AttentionCall.output

    def output(call):
        called.append(call.layer)
        return own(call)

    monkeypatch.setattr(AttentionCall, "output", output)
    with vrga.patch(model, PAPER) as patch:
        generate(model, batch.inputs, 3)
        chosen = patch.region[0].visual.any(1).tolist()
    untouched = [layer for layer in range(3) if not chosen[layer]]
    assert called == [0, 1, 2] + 2 * untouched and 0 < len(untouched) < 3


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        (dict(), {"biased"}),
        (dict(impl="torch"), {"sums"}),
        (dict(impl="triton"), set()),
        (dict(gate="dynamic"), {"gated"}),
    ],
    ids=["static", "torch", "triton", "dynamic"],
)
def test_what_computes_a_step(model, ways, how, wanted):
    batch, gate = QWEN.batch([1]), how.get("gate", "static")
    with vrga.patch(model, PAPER, **how):
        tokens, logits = generate(model, batch.inputs, 4)
    assert set(ways) == wanted
    replay = Replay(model, 3.0, gate)
    expected = replay.turn(batch.inputs, tokens[0], batch.query[0], batch.grids[0])
    torch.testing.assert_close(logits[0], expected, **CLOSE)


def another_sdpa(monkeypatch):
    """Put a function in the place of torch's attention, which may do anything."""
    own = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: own(*a, **k)
    )


def test_attention_that_may_be_anything_is_read_off(model, ways, monkeypatch):
    batch = QWEN.batch([1])
    with vrga.patch(model, PAPER):
        wanted = generate(model, batch.inputs, 4)[1]
    ways.clear()
    another_sdpa(monkeypatch)
    with vrga.patch(model, PAPER):
        found = generate(model, batch.inputs, 4)[1]
    assert set(ways) == {"sums"}
    torch.testing.assert_close(found, wanted, **CLOSE)


def test_drafts_take_the_sums(model, ways):
    inputs = QWEN.batch([1]).inputs
    with vrga.patch(model, PAPER):
        tokens = generate(model, inputs, 12)[0]
        assert set(ways) == {"biased"}
        drafted = generate(model, inputs, 12, prompt_lookup_num_tokens=3)[0]
    assert set(ways) == {"biased", "sums"} and torch.equal(tokens, drafted)


@pytest.mark.parametrize("gate", ["static", "dynamic"])
@pytest.mark.parametrize("options", [{}, dict(layers=[1]), dict(steps=[1, 3]), dict(maps="all")],
                         ids=["all", "layers", "steps", "maps"])  # fmt: skip
def test_recording_changes_no_bit_of_the_answer(model, ways, gate, options):
    batch = QWEN.batch([1, 2, 0])
    with vrga.patch(model, PAPER, gate=gate) as patch:
        plain = generate(model, batch.inputs, 5)
        way = "biased" if gate == "static" else "gated"
        assert set(ways) == {way}
        with patch.record(**options) as trace:
            recorded = generate(model, batch.inputs, 5)
        assert set(ways) == {way} and trace.gate.any()
    assert torch.equal(plain[0], recorded[0]) and torch.equal(plain[1], recorded[1])


@pytest.mark.parametrize("how", [{}, dict(cache_implementation="static", disable_compile=True),
                                 dict(prompt_lookup_num_tokens=3)],
                         ids=["waits", "static cache", "drafts"])  # fmt: skip
def test_what_is_measured_beside_a_step_is_what_the_sums_give(model, ways, how):
    """Of drafts some passes are measured at once and some wait: their order is that of steps."""
    batch = QWEN.batch([1] if "prompt_lookup_num_tokens" in how else [1, 2, 0])
    traces = {}
    for impl in ("torch", "auto"):
        with vrga.patch(model, PAPER, impl=impl) as patch:
            with patch.record(maps="all") as traces[impl]:
                generate(model, batch.inputs, 12, **how)
    found, wanted = traces["auto"], traces["torch"]
    assert "biased" in ways and torch.equal(found.gate, wanted.gate)
    assert found.gate.any() and not found.gate.all()
    for name in ("image", "region", "entropy"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), **SAME)
    torch.testing.assert_close(found.maps, wanted.maps, rtol=2e-3, atol=1e-6)  # half precision


def test_rows_outside_of_their_spans_are_recorded_with_a_shut_gate(model, ways):
    batch, traces = QWEN.batch([1, 2, 0]), {}
    for impl in ("torch", "auto"):
        with vrga.patch(model, PAPER, impl=impl, when="back", tokenizer=WORDS) as patch:
            with patch.record() as traces[impl]:
                say(model, batch, SAID)
    found, wanted = traces["auto"], traces["torch"]
    assert "biased" in ways and torch.equal(found.gate, wanted.gate)
    assert found.gate.any() and torch.equal(found.inside, wanted.inside)
    torch.testing.assert_close(found.image, wanted.image, **SAME)


@pytest.mark.parametrize("window", [3, 12, 30])
def test_windows(ways, window):
    model, batch = windowed(window), QWEN.batch([1, 2])
    with vrga.patch(model, PAPER):
        tokens, logits = generate(model, batch.inputs, 6)
    assert set(ways) == {"biased"}
    check_replay(model, batch, tokens, logits, 3.0)


@pytest.mark.parametrize("how", [{}, STATIC, FULLGRAPH], ids=["dynamic", "static", "compiled"])
def test_caches_that_grow_and_caches_of_full_length(model, ways, monkeypatch, how):
    """The kept bias grows with the cache; a compiled step serves all layers and prompts."""
    torch._dynamo.reset()
    monkeypatch.setattr(steered_keys, "ROOM", 2)
    for batch in (QWEN.batch([1, 2, 0]), QWEN.batch([2, 1, 1])):
        with vrga.patch(model, PAPER, impl="torch"):
            wanted = generate(model, batch.inputs, 9)
        assert set(ways) == {"sums"}
        ways.clear()
        with vrga.patch(model, PAPER):
            found = generate(model, batch.inputs, 9, **how)
        assert set(ways) == {"biased"}
        ways.clear()
        assert torch.equal(found[0], wanted[0])
        torch.testing.assert_close(found[1], wanted[1], **SAME)


@pytest.mark.parametrize("how", [{}, FULLGRAPH], ids=["eager", "compiled"])
def test_spans(model, ways, how):
    torch._dynamo.reset()
    batch, spans = QWEN.batch([1, 2, 0]), dict(when="back", tokenizer=WORDS)
    base = say(model, batch, SAID)
    with vrga.patch(model, PAPER, impl="torch", **spans):
        wanted = say(model, batch, SAID)
    assert set(ways) == {"sums"}
    ways.clear()
    with vrga.patch(model, PAPER, **spans):
        logits = say(model, batch, SAID, **how)
    assert set(ways) == {"biased"}
    torch.testing.assert_close(logits, wanted, **SAME)
    outside = INSIDE.index(1) + 1
    assert not torch.equal(logits[0, outside], base[0, outside])
    if not how:  # bit for bit outside of spans, and in a row without an image
        assert torch.equal(logits[:, :outside], base[:, :outside])
        assert torch.equal(logits[2], base[2])


def test_a_region_found_anew_is_what_is_steered_to(model, ways):
    batch, logits = QWEN.batch([1, 2]), {}
    for impl in ("torch", "auto"):
        with vrga.patch(model, PAPER, relocate="back", impl=impl, tokenizer=WORDS) as patch:
            logits[impl] = say(model, batch, SAID)
            assert len(patch.episodes) == 4
        assert set(ways) == ({"sums"} if impl == "torch" else {"biased"})
        ways.clear()
    torch.testing.assert_close(logits["auto"], logits["torch"], **SAME)


def test_given_heads_that_lose_the_image(model, ways):
    batch, logits = QWEN.batch([1, 2, 0]), {}
    base = generate(model, batch.inputs, 5)[1]
    heads = torch.zeros(3, 8, dtype=torch.bool)
    heads[1, ::2] = heads[2, 3] = True
    for impl in ("torch", "auto"):
        with vrga.patch(model, VRGAConfig.ablation("given"), impl=impl) as patch:
            patch.ablated = heads
            logits[impl] = generate(model, batch.inputs, 5)[1]
        assert set(ways) == ({"sums"} if impl == "torch" else {"biased"})
        ways.clear()
    torch.testing.assert_close(logits["auto"], logits["torch"], **SAME)
    assert torch.equal(logits["auto"][2], base[2]) and not torch.equal(logits["auto"][0], base[0])


@pytest.mark.parametrize(
    ("config", "way"),
    [
        (VRGAConfig.released_mask(), "sums"),
        (VRGAConfig.ablation("visual", heads=2, first_layer=1), "sums"),
        (VRGAConfig.published(gain=0.0), "sums"),
        (VRGAConfig.released(gain=3.0), "gated"),
    ],
    ids=["hard mask", "ablation by step", "gain 0", "released"],
)
def test_a_gate_that_each_step_decides_needs_sums(model, ways, config, way):
    """All of them, where a weight is 0."""
    with vrga.patch(model, config):
        generate(model, QWEN.batch([1]).inputs, 3)
    assert set(ways) == {way}


def test_a_gain_of_zero_hides_the_region(model, ways):
    batch, logits = QWEN.batch([1]), {}
    for impl in ("torch", "auto"):
        with vrga.patch(model, PAPER, gain=0.0, impl=impl):
            logits[impl] = generate(model, batch.inputs, 5)[1]
    assert set(ways) == {"sums", "biased"} and logits["auto"].isfinite().all()
    torch.testing.assert_close(logits["auto"], logits["torch"], **SAME)


def test_triton_does_not_fall_back_where_a_backend_adds_to_the_scores(model, monkeypatch):
    another_sdpa(monkeypatch)
    with vrga.patch(model, PAPER, impl="triton"):
        with pytest.raises(RuntimeError, match="impl='triton' computes a plain softmax"):
            generate(model, QWEN.batch([1]).inputs, 3)


def test_a_kept_bias_is_that_of_its_regions():
    """Slices of one memory that grows, whatever came first; other regions begin anew."""
    config = VRGAConfig.paper(gain=2.0)
    place, heads = torch.arange(6), torch.arange(6).view(2, 3)
    region = replace(
        empty_region(5, 6, (2, 3)), image=(place > 0) & (place < 5),
        mask=(place > 1) & (place < 4), visual=heads == 5,
    )  # fmt: skip
    gate = torch.stack([region.visual], 1)
    keys = steered_keys.SteeredKeys([region], KeyGroups.of(config), gate)
    query = torch.zeros(1, 3, 1, 4)
    assert not keys.steers(0) and keys.steers(1)
    wanted = torch.zeros(1, 3, 600)
    wanted[0, 2, 2:4] = torch.tensor(2.0).log()
    for first, count in ((0, 7), (0, 8), (3, 5), (0, 600), (2, 9), (0, 4)):
        found = keys.bias(1, query, count, first)
        torch.testing.assert_close(found, wanted[:, :, first : first + count])
    before = keys.bias(1, query, 7).data_ptr()
    assert keys.bias(1, query, 590).data_ptr() == before  # no copy while there is room
    assert keys.bias(1, query.double(), 7).dtype == torch.float64
    other = keys.aimed([region], torch.zeros_like(gate))
    assert not other.steers(1) and not other.bias(1, query, 7).any()
