"""Steps that wait to be measured, and compiled ones: their trace is that of steps taken at once."""

import pytest
import torch
import transformers
from families import FAMILIES
from loops import COMPILED
from saying import BACK, LESS, MORE, SAID, WORDS, say
from tiny import CACHE, generate
from traces import assert_same
from transformers import DynamicCache, StaticCache

import vrga
from vrga import VRGAConfig
from vrga.hf.cache import KeyCache
from vrga.recording.meter import Meter
from vrga.recording.waiting import CHUNK

QWEN = FAMILIES["qwen2_5_vl"]
STATIC = dict(cache_implementation="static", disable_compile=True)
FULLGRAPH = dict(cache_implementation="static", compile_config=COMPILED)
LONG = CHUNK + 7  # more steps than wait at a time


@pytest.fixture
def model():
    vars(QWEN.shared).pop("_cache", None)
    return QWEN.shared


@pytest.fixture
def at_once(monkeypatch):
    """A switch: from now on no step waits."""
    return lambda: monkeypatch.setattr(KeyCache, "only_grows", False)


@pytest.fixture
def rows_measured(monkeypatch):
    """How many steps each computation of statistics is of."""
    rows, own = [], Meter.statistics

    def statistics(self, layer, query, *rest):
        rows.append(query.shape[2])
        return own(self, layer, query, *rest)

    monkeypatch.setattr(Meter, "statistics", statistics)
    return rows


def record(model, inputs, tokens, *, config=None, impl="auto", of=None, how=None, **options):
    """A trace, and the tokens and logits of the run."""
    config = VRGAConfig.published(gain=1.0) if config is None else config
    with vrga.patch(model, config, impl=impl, tokenizer=WORDS) as patch:
        with patch.record(**options) as trace:
            out = (of or generate)(model, inputs, tokens, **(how or {}))
    return trace, out


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("how", [{}, STATIC, FULLGRAPH], ids=["dynamic", "static", "compiled"])
def test_steps_that_wait_are_measured_as_if_at_once(model, at_once, rows_measured, how, impl):
    torch._dynamo.reset()
    inputs = QWEN.batch([1, 2, 0]).inputs
    tokens = LONG if impl == "torch" else 5
    maps = dict(maps="visual", layer_maps=True)
    waited, out = record(model, inputs, tokens, impl=impl, how=how, **maps)
    assert max(rows_measured) == min(tokens, CHUNK) - 1 and 1 < len(rows_measured) <= 6
    plain = generate(model, inputs, tokens, **how)
    assert torch.equal(out[0], plain[0]) and torch.equal(out[1], plain[1])  # bit for bit
    at_once()
    rows_measured.clear()
    wanted = record(model, inputs, tokens, impl=impl, **maps)[0]
    assert set(rows_measured) == {1}
    assert len(waited.steps) == tokens - 1 and waited.maps.any()
    assert_same(waited, wanted)


CONFIGS = {
    "boost": VRGAConfig.published(gain=4.0),
    "static gate": VRGAConfig.paper(gain=3.0),
    "released": VRGAConfig.released(gain=4.0),
    "hard mask": VRGAConfig.released_mask(),
    "inside": VRGAConfig.published(gain=3.0, when="back"),
    "ablation": VRGAConfig.ablation("visual", heads=2, first_layer=1),
}


@pytest.mark.parametrize(
    ("name", "impl"), [*((name, "torch") for name in CONFIGS), ("inside", "triton")]
)
def test_compiled_steps_are_recorded_as_eager_ones_are(model, name, impl):
    torch._dynamo.reset()
    config = CONFIGS[name]
    batch = QWEN.batch([1, 1] if config.reproduces else [1, 2])

    def answer(model, inputs, tokens, **how):
        return say(model, batch, SAID, **how)

    traces = [
        record(model, None, 0, config=config, impl=impl, of=answer, how=how, maps="all",
               layer_maps=True)
        for how in ({}, FULLGRAPH)
    ]  # fmt: skip
    (eager, logits), (compiled, others) = traces
    torch.testing.assert_close(others, logits, rtol=2e-3, atol=2e-3)
    assert 0 < eager.gate.mean() < 1 and len(eager.steps) == len(SAID) - 1
    assert eager.inside is not None and eager.inside.any()
    assert_same(compiled, eager)


@pytest.mark.slow
def test_one_compiled_step_serves_a_long_recording(model):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    inputs = QWEN.batch([1]).inputs
    trace = record(model, inputs, LONG, config=VRGAConfig.published(gain=2.0), how=FULLGRAPH)[0]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    wanted = record(model, inputs, LONG, config=VRGAConfig.published(gain=2.0))[0]
    assert_same(trace, wanted)


@pytest.mark.parametrize("gain", [1.0, 3.0], ids=["off", "steered"])
def test_chosen_steps_and_layers_of_a_compiled_run(model, gain):
    torch._dynamo.reset()
    inputs, config = QWEN.batch([1, 2]).inputs, VRGAConfig.published(gain=gain)
    chosen = dict(layers=[2, 0], steps=[0, 1, 2, 5, 7, 70], maps=[(2, 1)])
    trace = record(model, inputs, LONG + 5, config=config, how=FULLGRAPH, **chosen)[0]
    assert trace.steps.tolist() == [0, 1, 2, 5, 7, 70] and trace.layers.tolist() == [0, 2]
    assert_same(trace, record(model, inputs, LONG + 5, config=config, **chosen)[0])


@pytest.mark.parametrize(
    "how",
    [
        dict(prompt_lookup_num_tokens=3),
        dict(num_beams=2),
        dict(num_return_sequences=2, do_sample=True),
        dict(cache_implementation="offloaded"),
    ],
    ids=["drafts", "beams", "sampled", "offloaded"],
)
def test_ways_of_generating(model, at_once, rows_measured, how):
    def answer(model, inputs, tokens, **how):
        torch.manual_seed(0)
        return model.generate(**inputs, **{"do_sample": False} | how, max_new_tokens=tokens)

    if how.get("cache_implementation") and not torch.cuda.is_available():
        pytest.skip("an offloaded cache needs an accelerator")
    inputs = QWEN.batch([1] if "prompt_lookup_num_tokens" in how else [1, 2]).inputs
    found = record(model, inputs, 12, of=answer, how=how, maps="visual")[0]
    # Beams reorder the cache, and keys that were offloaded are not there: nothing waits.
    assert (max(rows_measured) == 1) == ("num_beams" in how or "cache_implementation" in how)
    at_once()
    assert_same(found, record(model, inputs, 12, of=answer, how=how, maps="visual")[0])


def test_regions_found_anew_are_those_of_their_steps(model, at_once, rows_measured):
    batch, config = QWEN.batch([1]), VRGAConfig.published(gain=1.0, relocate="back")
    said = [40, 41, 42, LESS, BACK, MORE, 43, 44]

    def answer(model, inputs, tokens, **how):
        return say(model, batch, said)

    found = record(model, None, 0, config=config, of=answer)[0]
    assert set(rows_measured) == {6, 1}  # up to the span, whose last token brings a new region
    at_once()
    wanted = record(model, None, 0, config=config, of=answer)[0]
    assert_same(found, wanted)
    assert not torch.equal(found.region[3], found.region[6])
    (relocation,) = found.relocated
    assert (relocation.row, relocation.step) == (0, 6)  # <back> is tokens 3 to 5
    assert found.region_at(0, 5) is found.regions[0] is not found.region_at(0, 6)


def test_a_loop_by_hand_is_measured_at_once(model, rows_measured):
    """Nobody knows what it does with the cache between two steps."""
    inputs = QWEN.batch([1]).inputs
    with vrga.patch(model, VRGAConfig.published(gain=1.0)) as patch, patch.record() as trace:
        out = model(**inputs, use_cache=True)
        for _ in range(3):
            token = out.logits[:, -1:].argmax(-1)
            out = model(input_ids=token, **{CACHE: out[CACHE]}, use_cache=True)
    assert rows_measured == [1] * 9 and len(trace.steps) == 3


def test_a_recording_lets_go_of_the_cache(model):
    with vrga.patch(model, VRGAConfig.published(gain=3.0)) as patch:
        with patch.record():
            generate(model, QWEN.batch([1]).inputs, 4, **STATIC)
        assert patch._hooks.run.step.meter is None


def by_hand(model, step, cache, tokens=3):
    """A trace of a loop of one's own, `step` making the passes after the prefill."""
    inputs = QWEN.batch([1, 2]).inputs
    with vrga.patch(model, VRGAConfig.published(gain=1.0)) as patch, patch.record() as trace:
        out = model(**inputs, **{CACHE: cache}, use_cache=True)
        length = inputs["input_ids"].shape[1]
        for i in range(tokens):
            mask = torch.ones(2, length + i + 1, dtype=torch.int64)
            mask[:, :length] = inputs["attention_mask"]
            place = (mask.sum(1) - 1).expand(3, -1)[..., None]
            token = torch.full((2, 1), 40 + i)
            out = step(input_ids=token, **{CACHE: cache}, use_cache=True, position_ids=place,
                       attention_mask=mask)  # fmt: skip
    return trace, out


def static(model):
    return StaticCache(model.config.get_text_config(), max_cache_len=80)


@pytest.mark.skipif(
    transformers.__version__ < "5", reason="its forward asks a static cache for its length"
)
def test_a_compiled_loop_by_hand(model):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, out = by_hand(model, compiled, static(model))
    wanted, same = by_hand(model, model, static(model))
    torch.testing.assert_close(out.logits, same.logits, rtol=1e-4, atol=1e-4)
    assert len(found.steps) == 3
    assert_same(found, wanted)


def test_a_compiled_step_without_a_static_cache_is_refused(model):
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="with a static cache alone.*disable_compile=True"):
        by_hand(model, compiled, DynamicCache())
