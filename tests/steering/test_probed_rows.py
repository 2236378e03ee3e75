"""What a prefill keeps for its regions: query rows, or scores where keys are not kept."""

import gc
import itertools
import json
import weakref

import pytest
import torch
from families import FAMILIES
from saying import SAID, WORDS, say
from tiny import CACHE, generate, tiny_model
from torch.profiler import ProfilerActivity, profile
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_hqq_available
from windowed import windowed

import vrga
from vrga import VRGAConfig
from vrga.hf.cache import KeyCache
from vrga.hf.host import Host
from vrga.kernels.probe import probe_scores
from vrga.kernels.reference import probe_scores_reference
from vrga.method.attention_rows import WholeRows
from vrga.steering import probe as probe_module
from vrga.steering import probed_rows
from vrga.steering.patching import patch_of
from vrga.steering.probe_scores import KeptScores, LateScores
from vrga.steering.probed_rows import ProbedRows
from vrga.steering.query_rows import QueryRows

QWEN = FAMILIES["qwen2_5_vl"]
GAIN = VRGAConfig.published(gain=3.0)
LAYERS = 3


@pytest.fixture
def kinds(monkeypatch):
    """What each layer left, of every pass that held a question: True for query rows alone."""
    seen = []

    def spied(layers, *args):
        seen.append([isinstance(layers[i], LateScores) for i in sorted(layers)])
        return ProbedRows(layers, *args)

    monkeypatch.setattr(probe_module, "ProbedRows", spied)
    return seen


def keep_scores(monkeypatch):
    """As where no cache keeps keys as attention saw them."""
    monkeypatch.setattr(Host, "holds", lambda self, inputs: lambda layer, key: False)


def check_same(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        for name in ("focus", "mask", "image", "visual", "background"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        for name in ("focus", "entropy", "efr"):
            mine, theirs = getattr(one.heads, name), getattr(other.heads, name)
            assert torch.equal(mine.nan_to_num(-1), theirs.nan_to_num(-1)), name
        for mine, theirs in zip(one.map, other.map, strict=True):
            assert torch.equal(mine, theirs)


def static(model, batch):
    return generate(model, batch.inputs, 3, cache_implementation="static", disable_compile=True)


@torch.no_grad()
def by_hand(model, batch):
    return model(**batch.inputs, use_cache=True)


def pieces(model, batch):
    """The rows' questions end in different pieces."""
    length = batch.inputs["input_ids"].shape[1]
    patch_of(model).query = torch.tensor([length - 6, length - 2])
    return generate(model, batch.inputs, 3, prefill_chunk_size=length - 4)


WAYS = {
    "dynamic": lambda model, batch: generate(model, batch.inputs, 3),
    "static": static,
    "no cache given": by_hand,
    "pieces": pieces,
    "drafts": lambda model, batch: generate(
        model, QWEN.alone(batch, 0).inputs, 4, prompt_lookup_num_tokens=2
    ),
    "beams": lambda model, batch: generate(model, batch.inputs, 3, num_beams=2),
}
CONFIGS = {
    "paper": VRGAConfig.paper(),
    "released": VRGAConfig.released(),
    "released_mask": VRGAConfig.released_mask(),
    "ablation": VRGAConfig.ablation("visual"),
}


def regions_of(model, batch, way, config=GAIN):
    with vrga.patch(model, config) as patch:
        WAYS[way](model, batch)
        return patch.region


@pytest.mark.parametrize("way", list(WAYS))
def test_query_rows_give_the_regions_that_kept_scores_give(way, kinds, monkeypatch):
    model, batch = QWEN.shared, QWEN.batch([1, 2])
    found = regions_of(model, batch, way)
    assert kinds == [[True] * LAYERS] * (2 if way == "pieces" else 1)
    kinds.clear()
    keep_scores(monkeypatch)
    check_same(found, regions_of(model, batch, way))
    assert kinds == [[False] * LAYERS] * (2 if way == "pieces" else 1)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_method_finds_the_same_either_way(name, kinds, monkeypatch):
    model, batch = QWEN.shared, QWEN.batch([1, 0, 1])
    found = regions_of(model, batch, "dynamic", CONFIGS[name])
    assert kinds == [[True] * LAYERS]
    keep_scores(monkeypatch)
    check_same(found, regions_of(model, batch, "dynamic", CONFIGS[name]))


def test_a_back_span_finds_the_same_either_way(kinds, monkeypatch):
    model, batch = QWEN.shared, QWEN.batch([1, 1])
    config = VRGAConfig.published(gain=3.0, relocate="back")

    def episodes():
        with vrga.patch(model, config, tokenizer=WORDS) as patch:
            say(model, batch, SAID)
            return [episode.region for episode in patch.episodes]

    found = episodes()
    assert len(found) == 4 and all(all(pass_) for pass_ in kinds) and len(kinds) == 3
    keep_scores(monkeypatch)
    check_same(found, episodes())


# --- what keeps its scores ---


class Rounding(DynamicLayer):
    """Keeps what nobody else sees."""

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return keys.bfloat16().to(keys.dtype), values


def rounding():
    cache = DynamicCache(config=QWEN.shared.config.get_text_config())
    cache.layers[1] = Rounding()
    return cache


def autocast(model, batch):
    """Its attention is given keys that were rounded for it."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return generate(model, batch.inputs, 2)


def biased(model, batch):
    inputs = dict(batch.inputs)
    length = inputs["input_ids"].shape[1]
    hidden = torch.ones(length, length).triu(1).bool() | (inputs["attention_mask"] == 0)[:, None]
    hidden = hidden & ~torch.eye(length, dtype=torch.bool)
    bias = torch.linspace(0, 1, length).expand(len(hidden), length, length)
    mask = bias.masked_fill(hidden, torch.finfo(torch.float32).min)[:, None]
    places = torch.arange(length).expand(3, len(mask), length)
    with torch.no_grad():
        return model(**inputs | dict(attention_mask=mask, position_ids=places), use_cache=True)


def sharper():
    """A model on an attention backend of somebody's own."""

    def attend(module, query, *rest, **more):
        return sdpa_attention_forward(module, query * 2.0, *rest, **more)

    AttentionInterface.register("sharper_probe", attend)
    AttentionMaskInterface.register("sharper_probe", sdpa_mask)
    model = tiny_model()
    model.set_attn_implementation({"text_config": "sharper_probe"})
    return model


@torch.no_grad()
def without_a_cache(model, batch):
    return model(**batch.inputs, use_cache=False)


@torch.no_grad()
def in_training(model, batch):
    model.train()
    try:
        return model(**batch.inputs, use_cache=True)
    finally:
        model.eval()


KEPT = {
    "sliding windows": (
        lambda: windowed(12), lambda m, b: generate(m, b.inputs, 2), [True, False, True]
    ),
    "a layer that gives other keys than it keeps": (
        lambda: QWEN.shared, lambda m, b: generate(m, b.inputs, 2, **{CACHE: rounding()}),
        [True, False, True],
    ),
    "autocast": (lambda: QWEN.shared, autocast, [False] * LAYERS),
    "another backend": (sharper, WAYS["dynamic"], [False] * LAYERS),
    "a mask with biases": (lambda: QWEN.shared, biased, [False] * LAYERS),
    "no cache": (lambda: QWEN.shared, without_a_cache, [False] * LAYERS),
    "training": (lambda: QWEN.shared, in_training, [False] * LAYERS),
}  # fmt: skip


@pytest.mark.parametrize("name", list(KEPT))
def test_where_keys_are_not_kept_as_they_were_scores_are(name, kinds, monkeypatch):
    make, way, wanted = KEPT[name]
    model, batch = make(), QWEN.batch([1, 2])
    with vrga.patch(model, GAIN) as patch:
        way(model, batch)
        found = patch.region
        assert kinds == [wanted]
        keep_scores(monkeypatch)
        way(model, batch)
        check_same(found, patch.region)


@pytest.mark.skipif(not is_hqq_available(), reason="hqq is not installed")
def test_a_quantised_cache_keeps_scores(kinds):
    model, batch = tiny_model(heads=4, kv_heads=2, size=64), QWEN.batch([1])
    config = dict(backend="hqq", nbits=8, axis_key=1, axis_value=1, residual_length=8)
    with vrga.patch(model, GAIN) as patch:
        generate(model, batch.inputs, 2)
        plain = patch.region
        generate(model, batch.inputs, 2, cache_implementation="quantized", cache_config=config)
        check_same(patch.region, plain)  # the prompt's attention is given the keys unrounded
    assert kinds == [[True] * LAYERS, [False] * LAYERS]


def test_keys_that_are_offloaded_later_are_not_held():
    cache = DynamicCache(config=QWEN.shared.config.get_text_config())
    key = cache.update(torch.ones(1, 2, 3, 16), torch.ones(1, 2, 3, 16), 0)[0]
    assert KeyCache(cache).holds(0, key)
    assert not KeyCache(cache).holds(0, key.clone())
    assert not KeyCache(cache).holds(LAYERS, key)  # of a layer that has no keys of its own
    cache.offloading = True
    assert not KeyCache(cache).holds(0, key)


# --- what it takes ---


def test_amid_a_prompt_the_probe_holds_a_query_row_of_each_layer_and_no_more(monkeypatch):
    model, batch, held = QWEN.shared, QWEN.batch([1, 2]), {}
    whole = probe_module.Probe.rows

    def rows(self, *args):
        held.update(self._scored)
        return whole(self, *args)

    monkeypatch.setattr(probe_module.Probe, "rows", rows)
    with vrga.patch(model, GAIN), torch.no_grad():
        cache = model(**batch.inputs, use_cache=True)[CACHE]
    assert len(held) == LAYERS
    for layer, one in held.items():
        assert one.key is cache.layers[layer].keys
        assert one.query.untyped_storage().nbytes() == 2 * 8 * 16 * 4  # B H d in float32


@pytest.mark.parametrize("whole", [True, False], ids=["a prompt", "the first piece of one"])
def test_a_cache_goes_when_its_user_lets_go_of_it(whole):
    model, batch = QWEN.shared, QWEN.batch([1, 2])
    cache = DynamicCache(config=model.config.get_text_config())
    gone = weakref.ref(cache)
    with vrga.patch(model, GAIN) as patch:
        gc.disable()  # which would find a circle, some day
        try:
            if whole:
                generate(model, batch.inputs, 2, **{CACHE: cache})
            else:
                patch.announce(batch.inputs)
                with torch.no_grad():
                    model(input_ids=batch.inputs["input_ids"][:, :2], **{CACHE: cache})
            del cache
            assert gone() is None
        finally:
            gc.enable()


def layers_of(last, kinds, *, heads=6, kv_heads=3, length=50, score=probe_scores_reference):
    """What layers of random queries and keys leave, and their attention, float64 [L, B, H, S].

    Args:
        last: query position of each sample, -1 for none.
        kinds: of each layer, whether it leaves its query rows; else it leaves scores.
    """
    g = torch.Generator().manual_seed(0)
    size, layers, exact = (len(last), heads, 16), {}, []
    place, hidden = torch.tensor(last, dtype=torch.int32), torch.zeros(len(last), length) > 0
    hidden[0, :4] = True
    unseen = (hidden | (torch.arange(length) > place[:, None]))[:, None]
    for layer, late in enumerate(kinds):
        query = torch.randn(size, generator=g)
        key = torch.randn(len(last), kv_heads, length + 7, 16, generator=g)
        each = key[:, :, :length].double().repeat_interleave(heads // kv_heads, 1)
        scores = torch.einsum("bhd,bhnd->bhn", query.double(), each) * 0.5
        scores = scores.masked_fill(unseen, -torch.inf)
        one = LateScores(query[:, :, None], key, place, hidden, unseen, 0, length, 0.5, score)
        layers[layer] = one if late else KeptScores(scores.float(), kv_heads)
        exact.append(scores.softmax(-1))
    return layers, torch.stack(exact)


@pytest.mark.parametrize("last", [[49, -1, 40, 30], [49]], ids=["four rows", "one row"])
@pytest.mark.parametrize(
    ("at_once", "score"),
    [(1, "torch"), (110, "torch"), (400, "torch"), (2000, "torch"), (1 << 17, "torch"),
     (400, "triton")],
)  # fmt: skip
def test_blocks_of_any_size_give_what_whole_rows_give(at_once, score, last, monkeypatch, poisoned):
    """Images of several sizes, a row without a query, and layers of both kinds; of one row alone,
    KV heads are scored apart."""
    score = probe_scores if score == "triton" else probe_scores_reference
    monkeypatch.setattr(probed_rows, "AT_ONCE", at_once)
    layers, exact = layers_of(last, [True, True, False, True, True], score=score)
    samples = [row for row, place in enumerate(last) if place >= 0]
    images = [torch.arange(5, 25), torch.arange(7, 16), torch.arange(3, 28)][: len(samples)]
    rows = ProbedRows(layers, samples, QueryRows(last, torch.ones(len(last), 50) > 0, None))
    whole = WholeRows([exact[:, row] for row in samples])
    for found, wanted in zip(rows.sums(images), whole.sums(images), strict=True):
        for name in ("total", "mass", "entropy", "mass_entropy"):
            mine, theirs = getattr(found, name).double(), getattr(wanted, name)
            torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-6)
    g = torch.Generator().manual_seed(1)
    heads = [(torch.rand(5, 6, generator=g) < 0.3, torch.zeros(5, 6) > 0) for _ in samples]
    for chosen, _ in heads:
        chosen[3] = False  # a layer that is not asked for
    for found, wanted in zip(rows.means(heads, images), whole.means(heads, images), strict=True):
        for mine, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine.double(), theirs, rtol=2e-5, atol=2e-7)
        assert found[0].sum() > 0 and not found[1].any()


def highest(measured, folder):
    """The largest total of bytes allocated and not yet freed since the profile began."""
    measured.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    events = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    return max(itertools.accumulate((event["args"]["Bytes"] for event in events), initial=0))


@pytest.mark.parametrize(("batch", "length"), [(1, 4200), (8, 1070), (1, 16000)])
def test_scoring_takes_two_megabytes_beyond_the_scores_of_one_layer(tmp_path, batch, length):
    """At the 7B shape: 28 heads, 4 KV heads."""
    layers, _ = layers_of([length - 1] * batch, [True], heads=28, kv_heads=4, length=length)
    images = [torch.arange(10, length - 50)] * batch
    asked = QueryRows([length - 1] * batch, torch.ones(batch, length) > 0, None)
    rows = ProbedRows(layers, list(range(batch)), asked)
    heads = [(torch.ones(1, 28) > 0, torch.zeros(1, 28) > 0)] * batch
    for ask in (lambda: rows.sums(images), lambda: rows.means(heads, images)):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
            ask()
        # The image's positions, 8 bytes each and 1, are of the prompt, not of a layer.
        own = batch * length * 9
        assert highest(measured, tmp_path) - own <= 4 * batch * 28 * length + (2 << 20)
