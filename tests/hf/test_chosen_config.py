"""A checkpoint brings its configuration; defaults are the paper's; whatever a file says is told."""

import dataclasses
import json
import shutil

import pytest
from command import worked
from transformers import ImageTextToTextPipeline

import vrga
from vrga import VRGAConfig
from vrga.analysis import recovery
from vrga.config import FILE, PRESETS
from vrga.demo import build
from vrga.hf.chosen_config import choose, chosen_for
from vrga.hf.files import embedded


@pytest.fixture(scope="module")
def loaded():
    return vrga.load()


@pytest.fixture
def model(loaded, monkeypatch, tmp_path):
    """The embedded model as if it were loaded from an empty folder."""
    monkeypatch.setattr(loaded[0], "name_or_path", str(tmp_path))
    return loaded[0]


def config_of(model, *arguments, **more):
    with vrga.patch(model, *arguments, **more) as patch:
        return patch.config


def test_the_defaults_are_the_papers():
    assert VRGAConfig() == VRGAConfig.paper() == VRGAConfig.from_dict({})
    assert VRGAConfig.sparing() != VRGAConfig()
    assert "sparing" in PRESETS and VRGAConfig.named("sparing") == VRGAConfig.sparing()


def test_the_embedded_model_brings_sparing(loaded):
    with vrga.patch(loaded[0]) as patch:
        assert patch.config == VRGAConfig.sparing()
        assert "gain 3 from vrga_config.json" in repr(patch)
        patch.config = VRGAConfig.sparing(gain=4)
        assert FILE not in repr(patch)
    assert VRGAConfig.from_pretrained(embedded()) == VRGAConfig.sparing()


def test_a_checkpoint_without_a_file_is_steered_by_the_paper(model):
    with vrga.patch(model) as patch:
        assert patch.config == VRGAConfig.paper() and FILE not in repr(patch)
    with vrga.patch(model, "default") as patch:
        assert patch.config == VRGAConfig.paper()


def test_a_checkpoint_brings_its_own(model, tmp_path):
    own = VRGAConfig.released(gain=2.5)
    assert own.save_pretrained(tmp_path) == tmp_path / FILE
    assert config_of(model) == config_of(model, None) == config_of(model, "default") == own
    assert config_of(model, VRGAConfig()) == config_of(model, "paper") == VRGAConfig.paper()


def test_presets_and_fields_may_be_given_by_name(model, tmp_path):
    assert config_of(model, "published") == VRGAConfig.published()
    assert config_of(model, "released_mask") == VRGAConfig.released_mask()
    assert config_of(model, gain=2) == VRGAConfig.paper(gain=2)
    assert config_of(model, "sparing", gain=2, dilation=1) == VRGAConfig.sparing(gain=2, dilation=1)
    assert config_of(model, VRGAConfig.sparing(), gain=2) == VRGAConfig.sparing(gain=2)
    VRGAConfig.sparing().save_pretrained(tmp_path)
    with vrga.patch(model, gain=2) as patch:
        assert patch.config == VRGAConfig.sparing(gain=2)
        assert "gain 2, others from vrga_config.json" in repr(patch)


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"config": "papper"}, ValueError, "preset 'papper': known are default, sparing, publ"),
        ({"config": 3}, ValueError, "config=3 is not a VRGAConfig.*preset.*gain=2"),
        ({"config": {"gain": 2}}, ValueError, "is not a VRGAConfig"),
        ({"gian": 2}, TypeError, "no field 'gian' .did you mean gain"),
        ({"gain": -1}, ValueError, "gain=-1 must be"),
        ({"config": "released_mask", "gain": 2}, ValueError, "gain=2 is not read by"),
    ],
    ids=str,
)
def test_what_is_no_configuration_is_refused_and_leaves_no_patch(model, given, error, told):
    with pytest.raises(error, match=told):
        vrga.patch(model, **given)
    assert vrga.unpatch(model) is False


def test_a_pipeline_stands_for_its_model(loaded):
    model, processor = loaded
    pipe = object.__new__(ImageTextToTextPipeline)  # its __init__ needs torchvision
    pipe.model, pipe.tokenizer, pipe.processor = model, None, processor
    with vrga.patch(pipe, gain=2) as patch:
        assert patch.model is model and patch.config.gain == 2
        assert patch._reader.known_tokenizer is processor.tokenizer
        assert vrga.unpatch(pipe) is True
    assert vrga.unpatch(pipe) is False


DAMAGED = {
    "cut short": '{"gain": 1',
    "no object": "[1]",
    "a word": '"paper"',
    "unknown field": '{"fain": 1}',
    "of an older name": '{"gain": 1, "preset": "paper"}',
    "out of range": '{"gain": -1}',
    "not a number": '{"gain": NaN}',
    "of another type": '{"region_min": 1.5}',
    "not read": '{"method": "released_mask", "gain": 2}',
    "twice": '{"gain": 1, "gain": 2}',
    "too deep": "[" * 100_000,
    "no text": b"\xff\xfe\x00",
    "too large": '{"gain": 1' + " " * (1 << 20) + "}",
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named_by_its_path(model, tmp_path, text):
    path = tmp_path / FILE
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for ask in (lambda: vrga.patch(model), lambda: VRGAConfig.from_pretrained(tmp_path)):
        with pytest.raises(ValueError, match=f"{FILE} is no configuration: .") as error:
            ask()
        assert str(path) in str(error.value) and len(str(error.value)) < 700
    assert vrga.unpatch(model) is False


def test_a_file_that_cannot_be_one_is_not_passed_over(model, tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(ValueError, match="it is no file"):
        vrga.patch(model)
    (tmp_path / FILE).rmdir()
    (tmp_path / FILE).symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=f"{FILE} does not exist"):
        vrga.patch(model)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "default"])
def test_what_is_saved_is_what_is_read(tmp_path, preset):
    config = VRGAConfig.named(preset)
    assert VRGAConfig.from_dict(config.to_dict()) == config
    config.save_pretrained(tmp_path / "deep" / "folder")
    assert VRGAConfig.from_pretrained(tmp_path / "deep" / "folder") == config
    assert VRGAConfig.from_pretrained(str(tmp_path / "deep" / "folder" / FILE)) == config
    assert [path.name for path in (tmp_path / "deep" / "folder").iterdir()] == [FILE]
    assert config.name == preset


def test_fields_left_out_are_those_of_the_method():
    assert VRGAConfig.from_dict({"method": "released"}) == VRGAConfig.released()
    assert VRGAConfig.from_dict({"gain": 2, "when": "back"}) == VRGAConfig(gain=2, when="back")
    ablated = VRGAConfig.ablation("random", heads=3)
    assert VRGAConfig.from_dict(ablated.to_dict()) == ablated


def test_unknown_fields_are_refused_by_name():
    with pytest.raises(ValueError, match="no field 'gian', 'other' .did you mean gain"):
        VRGAConfig.from_dict({"gian": 1, "other": 2, "gain": 1})
    with pytest.raises(ValueError, match="is no configuration: give fields"):
        VRGAConfig.from_dict([("gain", 1)])


def test_a_callable_cannot_be_saved(tmp_path):
    def sometimes(tokens, position):
        return tokens > 3

    with pytest.raises(ValueError, match="when='sometimes' is a function.*cannot hold"):
        VRGAConfig(when=sometimes).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_place_without_a_configuration_is_told(tmp_path):
    for where, told in (
        (tmp_path, f"brings no {FILE}.*save_pretrained"),
        (tmp_path / "gone", "no configuration at.*hub id"),
        ("", "no configuration at ''"),
        ("gone", "no configuration at 'gone'"),
    ):
        with pytest.raises(FileNotFoundError, match=told):
            VRGAConfig.from_pretrained(where)


def cached(folder, repository, commit, text):
    """The hub's cache as a download leaves it."""
    base = folder / f"models--{repository.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text(commit)
    snapshot = base / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / FILE).write_text(text)
    return snapshot / FILE


def test_of_a_hub_id_the_cache_is_read_and_nothing_else(loaded, monkeypatch, tmp_path):
    from huggingface_hub import file_download

    monkeypatch.setattr(file_download.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *a: pytest.fail("asked the network"))
    model, commit = loaded[0], "0" * 40
    monkeypatch.setattr(model, "name_or_path", "someone/a-model")
    assert config_of(model) == VRGAConfig()
    path = cached(tmp_path, "someone/a-model", commit, '{"gain": 2}')
    assert config_of(model) == VRGAConfig(gain=2)
    monkeypatch.setattr(
        model.config, "_commit_hash", "1" * 40, raising=False
    )  # another commit was loaded
    assert config_of(model) == VRGAConfig()
    monkeypatch.setattr(model.config, "_commit_hash", commit)
    path.write_text("{")
    with pytest.raises(ValueError, match=str(path)):
        vrga.patch(model)


def test_a_hub_that_is_not_reached_is_not_taken_for_a_checkpoint_without_one(monkeypatch, tmp_path):
    from huggingface_hub import file_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for error, kind, told in (
        (LocalEntryNotFoundError("offline"), OSError, "cannot be had from the hub: .*offline"),
        (EntryNotFoundError("404"), FileNotFoundError, f"someone/a-model brings no {FILE}"),
    ):

        def cached_file(name, file, error=error):
            raise OSError(str(error)) from error

        monkeypatch.setattr("transformers.utils.cached_file", cached_file)
        with pytest.raises(kind, match=told):
            VRGAConfig.from_pretrained("someone/a-model")
    asked = []
    monkeypatch.setattr(file_download.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("vrga.hf.files.checkpoint_file", lambda *a, **b: asked.append(a))
    assert (
        choose(None, {}, "someone/a-model", fetch=True).config == VRGAConfig() and len(asked) == 1
    )
    path = cached(tmp_path, "someone/a-model", "0" * 40, '{"gain": 2}')
    assert choose(None, {}, "someone/a-model", fetch=True).config.gain == 2
    path.unlink()
    none = tmp_path / "models--someone--a-model" / ".no_exist" / ("0" * 40)
    none.mkdir(parents=True)
    (none / FILE).touch()  # what the cache remembers is not asked again: no stall offline
    assert (
        choose(None, {}, "someone/a-model", fetch=True).config == VRGAConfig() and len(asked) == 1
    )


@pytest.mark.parametrize("name", ["", "a name of my own", "/gone/since", "a/b/c"])
def test_a_name_that_is_no_place_brings_nothing(loaded, monkeypatch, name, tmp_path):
    monkeypatch.chdir(tmp_path)
    VRGAConfig.sparing().save_pretrained(".")  # "" must not be taken for the current folder
    monkeypatch.setattr(loaded[0], "name_or_path", name)
    assert config_of(loaded[0]) == VRGAConfig()


def test_a_config_says_which_preset_it_is():
    assert VRGAConfig.paper(gain=3).name == "paper, gain 3"
    assert VRGAConfig.ablation("visual").name == "ablation visual"
    assert (
        str(choose("published", {"gain": 2}, None))
        == "published, gain 2 (preset published and gain)"
    )
    assert str(choose(None, {}, embedded())) == "sparing (vrga_config.json of the checkpoint)"
    assert str(choose(None, {}, None)) == "paper (the default)"


def test_a_trained_embedded_model_is_saved_with_its_configuration(loaded, tmp_path):
    build.save(*loaded, tmp_path)
    assert VRGAConfig.from_pretrained(tmp_path) == VRGAConfig.sparing()


def test_commands_take_what_the_checkpoint_brings(tmp_path):
    assert chosen_for(None).config == VRGAConfig.sparing()
    assert chosen_for(None, "default", 2.0).config == VRGAConfig.sparing(gain=2.0)
    assert chosen_for(None, "paper").config == VRGAConfig.paper()
    other = tmp_path / "model"
    shutil.copytree(embedded(), other)
    (other / FILE).unlink()
    assert chosen_for(str(other)).config == VRGAConfig.paper()
    assert recovery.named(["default", "paper"], str(other))["default"] == VRGAConfig.paper()
    assert recovery.named(["default"], None)["default"] == VRGAConfig.sparing()


def test_tune_writes_what_a_checkpoint_can_bring(tmp_path):
    command = ["tune", "--sweep", "gain=1.5,3", "--preset", "published", "--prompt", "direct"]
    done = worked(*command, "--limit", 4, "--output", tmp_path)
    assert "config: published (preset published)" in done.stderr
    best = VRGAConfig.from_pretrained(tmp_path)
    assert dataclasses.replace(best, gain=1.5) == VRGAConfig.published()
    assert json.loads((tmp_path / "best.json").read_text()) == best.to_dict()
