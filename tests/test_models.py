"""Loading: what works, and what is refused in words."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import batch, generate, tiny_model, token_types

import vrga
from vrga.hf.checkpoints import embedded, load_processor


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


def sharded(folder, target, renamed=True):
    """The folder's checkpoint in three shards with an index.

    renamed: as Qwen2.5-VL was first published, with a flat config and tensors named `visual.*` and
    `model.*`; else with the names that the modules have now.
    """
    config = json.loads((folder / "config.json").read_text())
    flat = config
    if renamed:
        flat = config.pop("text_config")
    flat = flat | {k: v for k, v in config.items() if k not in ("architectures",)}
    flat |= {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"}
    (target / "config.json").write_text(json.dumps(flat))
    for file in folder.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            (target / file.name).write_bytes(file.read_bytes())
    rename = (("model.visual.", "visual."), ("model.language_model.", "model."))
    tensors = {}
    for name, tensor in tiny_model().state_dict().items():
        for new, old in rename if renamed else ():
            name = name.replace(new, old)
        tensors[name] = tensor.contiguous()
    assert ("visual.blocks.0.norm1.weight" in tensors) == renamed
    names, where = sorted(tensors), {}
    for i in range(3):
        file = f"model-{i + 1:05}-of-00003.safetensors"
        where |= dict.fromkeys(names[i::3], file)
        save_file({n: tensors[n] for n in names[i::3]}, target / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": where}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))


def test_checkpoints_of_the_old_layout_load(checkpoint, tmp_path):
    """That of the Look-Back checkpoints: flat config, old names, shards with an index."""
    sharded(checkpoint, tmp_path)
    inputs = batch([[(6, 6)]])
    new, old = (vrga.load(where)[0] for where in (checkpoint, tmp_path))
    torch.testing.assert_close(
        generate(old, inputs)[1], generate(new, inputs)[1], rtol=1e-4, atol=1e-4
    )
    with vrga.patch(old) as patch:
        generate(old, inputs)
        assert patch.region[0].mask.any()


def test_the_names_of_now_load_as_well(checkpoint, tmp_path):
    sharded(checkpoint, tmp_path, renamed=False)
    inputs = batch([[(6, 6)]])
    torch.testing.assert_close(
        generate(vrga.load(tmp_path)[0], inputs)[1],
        generate(vrga.load(checkpoint)[0], inputs)[1],
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("short", ["semantic-back-7b", "Solution-Back-7B"])
def test_look_back_checkpoints_have_short_names(short, monkeypatch):
    import transformers

    asked = []

    def note(where):
        asked.append(where)
        raise OSError("offline")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", note)
    with pytest.raises(OSError, match="offline"):
        vrga.load(short)
    assert asked[0].lower() == f"shuoy/{short.lower()}"


def change_tensors(checkpoint, target, change):
    for file in checkpoint.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def remove_norm(tensors):
    del tensors[next(name for name in tensors if name.endswith("model.norm.weight"))]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (remove_norm, "lacks 1 tensors, among them .*norm.weight"),
        (lambda x: x.update(odd=torch.zeros(1)), "has unknown 1 tensors, among them odd"),
    ],
    ids=["missing", "extra"],
)
def test_missing_and_extra_tensors_are_named(checkpoint, tmp_path, change, told):
    change_tensors(checkpoint, tmp_path, change)
    with pytest.raises(ValueError, match=told):
        vrga.load(tmp_path)


def test_a_shard_that_is_cut_short_is_an_error(checkpoint, tmp_path):
    sharded(checkpoint, tmp_path)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged or cut short.*download it again"):
        vrga.load(tmp_path)
    shard.unlink()
    with pytest.raises(OSError, match="00002"):
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
