"""Sliding-window layers: only the keys that a layer still sees count."""

import pytest
import torch
from families import FAMILIES
from replay import Replay
from test_generation import COMPILED, passes
from tiny import generate, tiny_model
from transformers import DynamicCache

import vrga
from vrga import VRGAConfig

GAIN = VRGAConfig(gain=3.0)
QWEN = FAMILIES["qwen2_5_vl"]
CLOSE = dict(rtol=2e-3, atol=2e-3)


def windowed(window):
    """A tiny Qwen2.5-VL whose second layer sees `window` keys."""
    model = tiny_model()
    text = model.config.get_text_config()
    text.use_sliding_window, text.sliding_window, text.max_window_layers = True, window, 1
    text.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    model.model.language_model.has_sliding_layers = True
    layer = model.model.language_model.layers[1]
    layer.attention_type = layer.self_attn.layer_type = "sliding_attention"
    layer.self_attn.sliding_window = window
    return model


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("window", [3, 12, 30, 500])
def test_windows_from_none_of_the_image_to_all_of_it(window, impl):
    model, batch = windowed(window), QWEN.batch([1, 2])
    with vrga.patch(model, GAIN, impl=impl) as patch:
        tokens, logits = generate(model, batch.inputs, 6)
        regions = patch.region
    for row in range(2):
        alone = QWEN.alone(batch, row)
        replay = Replay(model, GAIN.gain)
        expected = replay.turn(alone.inputs, tokens[row], alone.query[0], alone.grids[0])
        torch.testing.assert_close(logits[row], expected, **CLOSE)
        pads = batch.inputs["input_ids"].shape[1] - alone.inputs["input_ids"].shape[1]
        assert [p - pads for p in regions[row].mask.nonzero()[:, 0].tolist()] == replay.found[
            "mask"
        ]
    if window == 3:
        assert (regions[0].heads.focus[1] == 0).all()  # the layer sees nothing of the image
    assert (regions[0].heads.focus[0] > 0).all()


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("window", [3, 12, 30])
@torch.no_grad()
def test_a_block_of_query_rows_has_a_window_per_row(window, impl):
    model, batch = windowed(window), QWEN.batch([1])
    tokens = torch.tensor([[21, 22, 23, 24]])
    length = batch.inputs["input_ids"].shape[1]
    with vrga.patch(model, GAIN, impl=impl):

        def prefilled():
            cache = DynamicCache(config=model.config.get_text_config())
            return model(**batch.inputs, past_key_values=cache, use_cache=True).past_key_values

        cache, single = prefilled(), []
        delta = model.model.rope_deltas.view(1, 1, 1)
        for i in range(4):
            place = (length + i + delta).expand(3, 1, 1)
            single.append(
                model(
                    input_ids=tokens[:, i : i + 1], past_key_values=cache, position_ids=place
                ).logits
            )
        with passes(model) as seen:
            block = model(
                input_ids=tokens, past_key_values=prefilled(),
                attention_mask=torch.ones(1, length + 4, dtype=torch.long),
                position_ids=torch.arange(length, length + 4).expand(3, 1, -1) + delta,
            ).logits  # fmt: skip
    assert seen[-1]["inputs_embeds"].shape[1] == 4
    torch.testing.assert_close(block, torch.cat(single, 1), **CLOSE)


@pytest.mark.parametrize("cache", ["static", "dynamic without windows"])
def test_other_caches_see_the_same_window(cache):
    model, batch = windowed(12), QWEN.batch([1, 2])
    how = dict(cache_implementation="static", disable_compile=True)
    if cache != "static":
        how = dict(past_key_values=DynamicCache())
    with vrga.patch(model, GAIN):
        tokens, logits = generate(model, batch.inputs, 6)
        other = generate(model, batch.inputs, 6, **how)
    assert torch.equal(other[0], tokens)
    torch.testing.assert_close(other[1], logits, **CLOSE)


def test_compiled_decoding_is_refused():
    torch._dynamo.reset()
    model, batch = windowed(12), QWEN.batch([1])
    with vrga.patch(model), pytest.raises(Exception, match="disable_compile=True"):
        generate(model, batch.inputs, cache_implementation="static", compile_config=COMPILED)


def test_the_released_presets_are_refused():
    model, batch = windowed(12), QWEN.batch([1])
    with vrga.patch(model, VRGAConfig.released()):
        with pytest.raises(ValueError, match="without sliding windows.*VRGAConfig.paper"):
            generate(model, batch.inputs)
