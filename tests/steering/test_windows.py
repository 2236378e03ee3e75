"""Sliding-window layers: only the keys that a layer still sees count."""

import pytest
import torch
import transformers
from families import FAMILIES
from loops import COMPILED, passes
from replay import Replay
from tiny import CACHE, generate, tiny_model
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from windowed import windowed

import vrga
from vrga import VRGAConfig

GAIN = VRGAConfig.published(gain=3.0)
QWEN = FAMILIES["qwen2_5_vl"]
CLOSE = dict(rtol=2e-3, atol=2e-3)


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
            return model(**batch.inputs, **{CACHE: cache}, use_cache=True)[CACHE]

        cache, single = prefilled(), []
        delta = model.model.rope_deltas.view(1, 1, 1)
        for i in range(4):
            place = (length + i + delta).expand(3, 1, 1)
            single.append(
                model(input_ids=tokens[:, i : i + 1], **{CACHE: cache}, position_ids=place).logits
            )
        with passes(model) as seen:
            block = model(
                input_ids=tokens, **{CACHE: prefilled()},
                attention_mask=torch.ones(1, length + 4, dtype=torch.long),
                position_ids=torch.arange(length, length + 4).expand(3, 1, -1) + delta,
            ).logits  # fmt: skip
    assert seen[-1]["inputs_embeds"].shape[1] == 4
    torch.testing.assert_close(block, torch.cat(single, 1), **CLOSE)


def flash_stand_in(model):
    """Make the text model's backend one that gets flash attention's mask, and a window by name."""

    def backend(module, query, key, value, mask, sliding_window=None, scaling=None, **kwargs):
        rows, keys = query.shape[2], key.shape[2]
        place = torch.arange(keys)
        seen = torch.ones(len(query), keys, dtype=torch.bool)
        if mask is not None:
            seen = torch.nn.functional.pad(mask.bool(), (0, keys - mask.shape[1]))
        end = keys if mask is None else mask.shape[1]
        row = torch.arange(end - rows, end)[:, None]
        allowed = place <= row
        if sliding_window is not None:
            allowed = allowed & (place > row - sliding_window)
        allowed = allowed & seen[:, None, None]
        sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return sdpa(module, query, key, value, allowed, scaling=scaling)

    # One of those that are known to be a plain softmax, by where they are written.
    backend.__code__ = backend.__code__.replace(co_filename=transformers.__file__)
    AttentionInterface.register("flash_attention_stand_in", backend)
    AttentionMaskInterface.register(
        "flash_attention_stand_in", ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"]
    )
    model.set_attn_implementation({"text_config": "flash_attention_stand_in"})
    model.config._attn_implementation_internal = "flash_attention_2"
    return model


@pytest.mark.parametrize("cache", ["dynamic", "dynamic without windows", "static"])
@pytest.mark.parametrize("window", [12, None])
def test_masks_and_windows_as_flash_attention_has_them(window, cache):
    """The mask is [B, keys so far] or None; the window is an argument."""
    plain = tiny_model() if window is None else windowed(window)
    batch = QWEN.batch([1, 2])
    how = {"dynamic": dict(), "static": dict(cache_implementation="static", disable_compile=True),
           "dynamic without windows": {CACHE: DynamicCache()}}[cache]  # fmt: skip
    base = generate(plain, batch.inputs, 6)[1]
    with vrga.patch(plain, GAIN):
        tokens, logits = generate(plain, batch.inputs, 6)
    model = flash_stand_in(plain)
    if cache != "static" or window is None:
        torch.testing.assert_close(generate(model, batch.inputs, 6, **how)[1], base, **CLOSE)
    if cache == "dynamic without windows":
        how = {CACHE: DynamicCache()}
    with vrga.patch(model, GAIN):
        other = generate(model, batch.inputs, 6, **how)
    assert torch.equal(other[0], tokens)
    torch.testing.assert_close(other[1], logits, **CLOSE)


def test_windows_of_a_text_model_that_has_no_such_attribute():
    """Mistral's layers hand their window to the attention function alone."""
    from families import TEXT
    from transformers import (
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        MistralConfig,
    )

    torch.manual_seed(0)
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                              num_attention_heads=2, image_size=32, patch_size=8)  # fmt: skip
    text = MistralConfig(**TEXT, hidden_size=64, sliding_window=16)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=90,
                         image_seq_length=16)  # fmt: skip
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    llava = FAMILIES["llava"]
    batch = llava.batch([1, 2])
    with vrga.patch(model, GAIN):
        tokens, logits = generate(model, batch.inputs, 6)
    for row in range(2):
        alone = llava.alone(batch, row)
        expected = Replay(model, GAIN.gain).turn(
            alone.inputs, tokens[row], alone.query[0], alone.grids[0]
        )
        torch.testing.assert_close(logits[row], expected, **CLOSE)
    with vrga.patch(model, VRGAConfig.released()):
        with pytest.raises(ValueError, match="without sliding windows"):
            generate(model, llava.batch([1]).inputs)


def test_a_trace_of_drafts_and_windows():
    model, batch = windowed(12), QWEN.batch([1])
    options = dict(max_new_tokens=8, do_sample=False)
    with vrga.patch(model, VRGAConfig.published(gain=1.2)) as patch:
        with patch.record() as single:
            tokens = model.generate(**batch.inputs, **options)
        with patch.record() as trace:
            assisted = model.generate(**batch.inputs, **options, assistant_model=tiny_model())
    assert torch.equal(assisted, tokens)
    assert trace.image.shape[1:] == single.image.shape[1:] == (3, 1, 8)
    assert not trace.image.isnan().any() and (trace.image[:, 0] > 0).all()


@pytest.mark.parametrize("cache", ["static", "dynamic without windows"])
def test_other_caches_see_the_same_window(cache):
    model, batch = windowed(12), QWEN.batch([1, 2])
    how = dict(cache_implementation="static", disable_compile=True)
    if cache != "static":
        how = {CACHE: DynamicCache()}
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
