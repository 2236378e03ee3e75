"""Beside others' wrappers: PEFT adapters, accelerate's device maps and offloading."""

import copy

import pytest
import torch
from families import FAMILIES
from tiny import generate, tiny_model
from transformers import Qwen2_5_VLForConditionalGeneration

import vrga
from vrga import VRGAConfig

QWEN = FAMILIES["qwen2_5_vl"]
GAIN = VRGAConfig.published(gain=3.0)


def adapted():
    """A model with random LoRA adapters on the attention projections."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], r=4,
                             init_lora_weights=False)  # fmt: skip
    torch.manual_seed(0)
    return peft.get_peft_model(tiny_model(), config).eval()


def test_lora_adapters_merged_or_not():
    model, batch = adapted(), QWEN.batch([1, 2])
    base = generate(model, batch.inputs)[1]
    with vrga.patch(model, GAIN) as patch:
        tokens, logits = generate(model, batch.inputs)
        regions = patch.region
        with model.disable_adapter():
            assert not torch.equal(generate(model, batch.inputs)[1], logits)
    assert not torch.equal(logits, base)
    assert torch.equal(generate(model, batch.inputs)[1], base)
    assert vrga.unpatch(model) is False
    merged = copy.deepcopy(model).merge_and_unload()
    with vrga.patch(merged, GAIN) as patch:
        same, close = generate(merged, batch.inputs)
        assert all(torch.equal(a.mask, b.mask) for a, b in zip(regions, patch.region, strict=True))
    assert torch.equal(same, tokens)
    torch.testing.assert_close(close, logits, rtol=2e-3, atol=2e-3)


def test_patching_the_model_inside_an_adapter_is_the_same():
    model, batch = adapted(), QWEN.batch([1])
    with vrga.patch(model, GAIN):
        logits = generate(model, batch.inputs)[1]
        with pytest.raises(ValueError, match="patched already"):
            vrga.patch(model.get_base_model())
    with vrga.patch(model.get_base_model(), GAIN):
        assert torch.equal(generate(model, batch.inputs)[1], logits)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    QWEN.shared.save_pretrained(folder, max_shard_size="100KB")
    return folder


PARTS = ("model.visual", "lm_head", *(
    f"model.language_model.{part}"
    for part in ("embed_tokens", "layers.0", "layers.1", "layers.2", "norm", "rotary_emb")
))  # fmt: skip
MAPS = {
    "auto": "auto",
    "disk": {part: "disk" if part.endswith("layers.1") else "cpu" for part in PARTS},
    "one device": {"": "cpu"},
}


@pytest.mark.parametrize("name", list(MAPS))
def test_device_maps_and_offloading(saved, tmp_path, name):
    """Layers whose weights are on the disk come and go; the state follows each layer's device."""
    batch = QWEN.batch([1, 2])
    with vrga.patch(QWEN.shared, GAIN) as patch:
        expected, regions = generate(QWEN.shared, batch.inputs)[1], patch.region
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        saved, device_map=MAPS[name], offload_folder=tmp_path, attn_implementation="sdpa"
    ).eval()
    if name == "disk":
        placed = model.model.language_model.layers[1].self_attn.q_proj.weight.device
        assert placed.type == "meta"
    base = generate(model, batch.inputs)[1]
    with vrga.patch(model, GAIN) as patch:
        logits = generate(model, batch.inputs)[1]
        assert all(torch.equal(a.mask, b.mask) for a, b in zip(regions, patch.region, strict=True))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(generate(model, batch.inputs)[1], base)


def test_cpu_offload_by_accelerate(saved):
    accelerate = pytest.importorskip("accelerate")
    batch = QWEN.batch([1])
    with vrga.patch(QWEN.shared, GAIN):
        expected = generate(QWEN.shared, batch.inputs)[1]
    model = copy.deepcopy(QWEN.shared)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with vrga.patch(model, GAIN):
        logits = generate(model, batch.inputs)[1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_layers_on_two_gpus(saved):
    batch = QWEN.batch([1, 2])
    with vrga.patch(QWEN.shared, GAIN):
        expected = generate(QWEN.shared, batch.inputs)[1]
    places = {"": 0, "model.language_model.layers.1": 1}
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(saved, device_map=places).eval()
    inputs = {name: x.to(0) for name, x in batch.inputs.items()}
    with vrga.patch(model, GAIN, impl="torch"):
        logits = generate(model, inputs)[1]
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-3, atol=1e-3)
