"""Loading: what works, and what is refused in words."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import batch, generate, tiny_model, token_types

import vrga
from vrga.models import embedded, load_processor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint folder: a tiny model with the embedded one's processor."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model().save_pretrained(folder)
    load_processor(embedded()).save_pretrained(folder)
    return folder


def test_a_local_checkpoint_is_loaded(checkpoint):
    model, processor = vrga.load(checkpoint)
    assert not model.training and model.dtype == torch.float32
    inputs = batch([[(6, 6)]])
    # Weights mapped from a file are aligned differently, which changes the last bits of a sum.
    same = dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        generate(model, inputs)[1], generate(tiny_model(), inputs)[1], **same
    )
    assert processor.tokenizer.padding_side in ("left", "right")
    model, _ = vrga.load(str(checkpoint), dtype=torch.bfloat16, attn_implementation="eager")
    assert model.dtype == torch.bfloat16
    assert model.config.get_text_config()._attn_implementation == "eager"


def test_the_embedded_model_is_the_default():
    model, _ = vrga.load()
    assert model.config.model_type == "qwen2_5_vl"
    size = sum(f.stat().st_size for f in embedded().glob("*.safetensors"))
    assert 1e6 < size <= 8e6


def test_sharded_checkpoints_load(checkpoint, tmp_path):
    model, processor = vrga.load(checkpoint)
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists()
    inputs = batch([[(6, 6)]])
    sharded, _ = vrga.load(tmp_path)
    whole, parts = generate(model, inputs)[1], generate(sharded, inputs)[1]
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


def test_the_processor_makes_what_the_model_needs(checkpoint):
    from PIL import Image

    _, processor = vrga.load(checkpoint)
    chat = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "who?"}]}],
        add_generation_prompt=True,
    )
    inputs = processor(text=[chat], images=[Image.new("RGB", (84, 56))], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 6]]
    assert token_types(inputs["input_ids"]) == {} or inputs["mm_token_type_ids"].sum() == 6


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "nothing", "a/b/c"])
def test_a_missing_path_is_named(name):
    with pytest.raises(FileNotFoundError, match=f"no checkpoint at {name}"):
        vrga.load(name)


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json"):
        vrga.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    with pytest.raises(FileNotFoundError, match="no .*safetensors weights"):
        vrga.load(tmp_path)


def test_pickled_weights_are_refused(checkpoint, tmp_path):
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    torch.save(load_file(checkpoint / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickled weights \(pytorch_model.bin\).*safetensors"):
        vrga.load(tmp_path)


def test_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="'bert' model; supported: qwen2_vl, qwen2_5_vl"):
        vrga.load(tmp_path)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "qwen3_vl_moe"])
def test_processors_of_the_other_qwen_families(name, tmp_path):
    from families import FAMILIES
    from PIL import Image

    FAMILIES[name].shared.config.save_pretrained(tmp_path)
    load_processor(embedded()).save_pretrained(tmp_path)
    processor = load_processor(tmp_path)
    text = "<|vision_start|><|image_pad|><|vision_end|>what?"
    inputs = processor(text=[text], images=[Image.new("RGB", (56, 84))], return_tensors="pt")
    pads = (inputs["input_ids"] == processor.image_token_id).sum()
    assert pads == inputs["image_grid_thw"].prod() // 4 > 1
    if "mm_token_type_ids" in inputs:
        assert (inputs["mm_token_type_ids"] == 1).sum() == pads


def test_a_processor_that_needs_torchvision_says_so(tmp_path, monkeypatch):
    import transformers
    from families import FAMILIES

    def missing(where):
        raise ImportError("\nLlavaOnevisionVideoProcessor requires the Torchvision library\n more")

    FAMILIES["llava_onevision"].shared.config.save_pretrained(tmp_path)
    monkeypatch.setattr("transformers.utils.is_torchvision_available", lambda: False)
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", missing)
    with pytest.raises(ValueError, match="'llava_onevision'.*requires the Torchvision library$"):
        load_processor(tmp_path)
