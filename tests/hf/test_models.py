"""Loading: what works, and what is refused in words."""

import json
import pathlib

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import batch, generate, tiny_model, token_types

import vrga
from vrga.hf import checkpoints
from vrga.hf.files import embedded
from vrga.hf.processors import load_processor


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
    asked = []

    def note(where, *args, **options):
        asked.append(where)
        raise OSError("offline")

    monkeypatch.setattr("transformers.utils.cached_file", note)
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

    def missing(where, **options):
        raise ImportError("\nLlavaOnevisionVideoProcessor requires the Torchvision library\n more")

    FAMILIES["llava_onevision"].shared.config.save_pretrained(tmp_path)
    monkeypatch.setattr("transformers.utils.is_torchvision_available", lambda: False)
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", missing)
    with pytest.raises(ValueError, match="'llava_onevision'.*requires the Torchvision library$"):
        load_processor(tmp_path)


MARK = "import pathlib; pathlib.Path({!r}).touch()\n"


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def copied(checkpoint, target):
    target.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def with_code(checkpoint, target, file, entry, **changed):
    """A checkpoint one of whose files names code that leaves a mark when it runs."""
    copied(checkpoint, target)
    mark = target / "it-ran"
    (target / "evil.py").write_text(MARK.format(str(mark)) + "class Evil: pass\n")
    path = target / file
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | changed | {"auto_map": entry}))
    return mark


@pytest.mark.parametrize(
    ("file", "entry", "changed"),
    [
        ("config.json", {"AutoConfig": "evil.Evil"}, {"model_type": "evil"}),
        ("config.json", {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}, {}),
        (
            "preprocessor_config.json",
            {"AutoImageProcessor": "evil.Evil", "AutoProcessor": "evil.Evil"},
            {"processor_class": "Evil", "image_processor_type": "Evil"},
        ),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "evil.Evil"]}, {}),
        (
            "tokenizer_config.json",
            {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoProcessor": "evil.Evil"},
            {"tokenizer_class": "Evil"},
        ),
    ],
    ids=["unknown", "known", "processor", "tokenizer", "unknown tokenizer"],
)
def test_code_of_a_checkpoint_is_not_run_whatever_is_typed(
    checkpoint, tmp_path, monkeypatch, file, entry, changed
):
    mark = with_code(checkpoint, tmp_path / "own", file, entry, **changed)
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    try:
        vrga.load(tmp_path / "own")
    except ValueError as error:
        assert "evil" in str(error).lower() or "auto_map" in str(error)
        assert "trust_remote_code=True" not in str(error)
    assert not mark.exists()


def test_an_unknown_architecture_is_refused_before_transformers_reads_it(tmp_path, monkeypatch):
    import transformers

    def read(*args, **options):
        raise AssertionError("transformers was asked first")

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil"}))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", read)
    with pytest.raises(ValueError, match="'evil' model; supported: qwen2_vl"):
        vrga.load(tmp_path)
    with pytest.raises(ValueError, match="'evil' model"):
        load_processor(tmp_path)


def test_a_kernel_of_the_hub_is_not_fetched(checkpoint, tmp_path):
    copied(checkpoint, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["_attn_implementation"] = "somebody/kernel"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="somebody/kernel', code on the hub, which is not run"):
        vrga.load(tmp_path)


def with_index(checkpoint, target, index, dummy=True):
    """A checkpoint whose weights are pickled, with an index."""
    copied(checkpoint, target)
    (target / "model.safetensors").unlink()
    if dummy:
        save_file({"x": torch.zeros(1)}, target / "dummy.safetensors")
    torch.save({"x": Payload(target / "it-ran")}, target / "weights.bin")
    text = index if isinstance(index, str) else json.dumps(index)
    (target / "model.safetensors.index.json").write_text(text)
    return target / "it-ran"


def named(*files):
    return {"metadata": {}, "weight_map": {f"x{i}": file for i, file in enumerate(files)}}


INDEXES = {
    "pickled": (named("weights.bin"), "names 'weights.bin'"),
    "beside": (named("dummy.safetensors", "weights.bin"), "names 'weights.bin'"),
    "absolute": (named("/tmp/x.safetensors"), "names '/tmp/x.safetensors'"),
    "above": (named("../x.safetensors"), "names '../x.safetensors'"),
    "below": (named("a/x.safetensors"), "names 'a/x.safetensors'"),
    "number": (named(3), "names 3"),
    "null": (named(None), "names None"),
    "list": (named(["dummy.safetensors"]), "names ."),
    "empty": (named(), "names no weights"),
    "no map": ({"metadata": {}}, "has no weight_map"),
    "no metadata": ({"weight_map": {"x": "dummy.safetensors"}}, "has no metadata"),
    "text": ({"metadata": {}, "weight_map": "dummy.safetensors"}, "has no weight_map"),
    "no object": ([1], "holds no JSON object"),
    "no json": ("{", "is damaged"),
    "deep": ("[" * 100_000, "is damaged"),
}


@pytest.mark.parametrize(("index", "told"), INDEXES.values(), ids=INDEXES)
def test_an_index_may_only_name_safetensors_beside_it(checkpoint, tmp_path, index, told):
    mark = with_index(checkpoint, tmp_path, index)
    with pytest.raises(ValueError, match=told):
        vrga.load(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["weights.bin", "../x.safetensors", "own.safetensors.index.json"])
def test_a_config_may_not_name_other_weights(checkpoint, tmp_path, name):
    mark = with_index(checkpoint, tmp_path, named("weights.bin"))
    index = tmp_path / "model.safetensors.index.json"
    index.rename(tmp_path / "own.safetensors.index.json")
    config = json.loads((tmp_path / "config.json").read_text()) | {"transformers_weights": name}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="not a safetensors file|names 'weights.bin'"):
        vrga.load(tmp_path)
    assert not mark.exists()


def test_an_adapter_beside_a_config_is_not_followed(checkpoint, tmp_path):
    copied(checkpoint, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "a/b"}))
    with pytest.raises(ValueError, match="holds an adapter .* add the adapter with peft"):
        vrga.load(tmp_path)


def test_only_safetensors_are_asked_of_transformers(checkpoint, monkeypatch):
    """Were a check of ours to miss something, transformers must refuse pickles as well."""
    import transformers

    asked = {}
    own = transformers.AutoModelForImageTextToText.from_pretrained

    def note(*args, **options):
        asked.update(options)
        return own(*args, **options)

    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", note)
    vrga.load(checkpoint)
    assert asked["use_safetensors"] is True and asked["trust_remote_code"] is False


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Puts a folder into the hub's cache, as the checkpoint somebody/model."""

    def put(folder):
        root = tmp_path / "hub" / "models--somebody--model"
        copied(folder, root / "snapshots" / ("a" * 40))
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text("a" * 40)
        return root / "snapshots" / ("a" * 40)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return put


def test_a_checkpoint_of_the_hub_is_checked_like_a_folder(checkpoint, tmp_path, cached):
    mark = with_index(checkpoint, tmp_path / "own", named("weights.bin"), dummy=False)
    cached(tmp_path / "own")
    with pytest.raises(ValueError, match="names 'weights.bin'"):
        vrga.load("somebody/model")
    assert not mark.exists()


def test_a_checkpoint_of_the_hub_loads_from_the_cache(checkpoint, cached):
    cached(checkpoint)
    model, processor = vrga.load("somebody/model")
    assert model.config.model_type == "qwen2_5_vl" and processor.tokenizer is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(checkpoint, tmp_path, value):
    def spoil(tensors):
        name = next(name for name in tensors if name.endswith("model.norm.weight"))
        tensors[name][3] = value

    change_tensors(checkpoint, tmp_path, spoil)
    with pytest.raises(ValueError, match="NaN or infinity in 1 tensors, among them .*norm.weight"):
        vrga.load(tmp_path)


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"model_type": 3}', '{"model_type": "qwen2_5_vl", "text_config": 7}']
)
def test_a_damaged_config_is_told(checkpoint, tmp_path, text):
    copied(checkpoint, tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json|3 model"):
        vrga.load(tmp_path)


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    import transformers.integrations

    assert checkpoints._own_gpu() is None or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert checkpoints._own_gpu() == {"": 0}
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert checkpoints._own_gpu() == {"": 3}
    monkeypatch.setattr(transformers.integrations, "is_deepspeed_zero3_enabled", lambda: True)
    assert checkpoints._own_gpu() is None  # ZeRO-3 places parts of the weights itself
