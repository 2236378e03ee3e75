"""A damaged trace is refused when it is loaded, in words; what is loaded can be shown."""

import json
import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file
from traces import filled_trace

from vrga import Trace
from vrga.method.timeline import Relocation
from vrga.recording import trace_folder as folder

WORDS, TENSORS = "trace.json", "trace.safetensors"


@pytest.fixture(scope="module")
def whole():
    trace = filled_trace()
    trace.relocated = [Relocation(1, 2, trace.regions[1])]
    return trace


@pytest.fixture
def saved(whole, tmp_path):
    return whole.save(tmp_path / "trace")


def tensor(name, change):
    def damage(path):
        tensors = load_file(path / TENSORS)
        found = change(tensors.pop(name))
        if found is not None:
            tensors[name] = found.contiguous()
        save_file(tensors, path / TENSORS)

    return damage


def word(change):
    def damage(path):
        words = json.loads((path / WORDS).read_text("utf-8"))
        change(words)
        (path / WORDS).write_text(json.dumps(words))

    return damage


def put(value, *place):
    def change(tensor):
        changed = tensor.clone()
        changed[place or tuple(0 for _ in tensor.shape)] = value
        return changed

    return change


SHARES = ("image", "region", "question", "prompt", "generated")
OTHERS = ("entropy", "gate", "maps", "layer_maps", "region.0.map.0", "region.0.heads.efr")
DAMAGES = {
    **{f"{n} nan": tensor(n, put(float("nan"))) for n in (*SHARES, *OTHERS)},
    **{f"{n} inf": tensor(n, put(float("inf"))) for n in (*SHARES, *OTHERS, "spread")},
    **{f"{n} above": tensor(n, put(1.5)) for n in (*SHARES, "gate", "maps", "layer_maps")},
    **{f"{n} below": tensor(n, put(-0.5)) for n in (*SHARES, "entropy", "region.1.map.1")},
    **{f"{n} missing": tensor(n, lambda x: None) for n in ("image", "steps", "layers", "heads",
       "region", "maps", "region.0.mask", "region.1.index.1", "relocated.0.heads.focus")},
    **{f"{n} cut": tensor(n, lambda x: x[:-1]) for n in ("image", "steps", "layers", "inside",
       "ids", "ends", "maps", "heads", "region.0.mask", "region.0.index.0", "region.0.visual")},
    **{f"{n} flat": tensor(n, lambda x: x.flatten()) for n in ("image", "inside", "ids", "maps",
       "layer_maps", "heads", "region.0.visual", "region.0.heads.focus")},
    **{f"{n} float": tensor(n, lambda x: x.float()) for n in ("steps", "layers", "inside", "ids",
       "ends", "heads", "region.0.mask", "region.0.focus", "region.0.index.0")},
    **{f"{n} whole": tensor(n, lambda x: x.nan_to_num().long()) for n in ("image", "spread", "maps",
       "region.0.map.0", "region.0.heads.entropy")},
    **{f"{n} far": tensor(n, put(10**6)) for n in ("layers", "ends", "heads", "region.0.focus",
       "region.0.index.0", "relocated.0.index.0")},
    **{f"{n} negative": tensor(n, put(-1)) for n in ("steps", "layers", "ends", "heads", "ids",
       "region.0.focus", "region.0.index.0")},
    **{f"{n} turned": tensor(n, lambda x: x.flip(0)) for n in ("steps", "layers")},
    "heads twice": tensor("heads", lambda x: x[:1].expand_as(x)),
    "steps late": tensor("steps", lambda x: x + 100),
    "empty": tensor("image", lambda x: x[:0]),
    "another width": tensor("layer_maps", lambda x: x[..., :2]),
    **{f"{n} null": word(lambda w, n=n: w.update({n: None})) for n in ("config", "versions",
       "regions", "relocated")},
    **{f"{n} gone": word(lambda w, n=n: w.pop(n)) for n in ("config", "texts", "asked", "images",
       "versions", "regions")},
    **{f"{n} number": word(lambda w, n=n: w.update({n: 3})) for n in ("config", "texts", "asked",
       "images", "versions", "regions", "relocated")},
    "a text that is none": word(lambda w: w["texts"][0].__setitem__(0, 3)),
    "too few texts": word(lambda w: w["texts"][0].clear()),
    "texts that are text": word(lambda w: w.update(texts=["abcdefgh", "abcdefgh"])),
    "a question that is none": word(lambda w: w["asked"].__setitem__(0, None)),
    "one question": word(lambda w: w["asked"].pop()),
    "an image too many": word(lambda w: w["images"].__setitem__(0, 2)),
    "images by truth": word(lambda w: w["images"].__setitem__(0, True)),
    "a query that is none": word(lambda w: w["regions"][0].update(query="4")),
    "a query before": word(lambda w: w["regions"][0].update(query=-1)),
    "a grid of another shape": word(lambda w: w["regions"][0]["grids"].__setitem__(0, [1, 3])),
    "a grid of text": word(lambda w: w["regions"][0]["grids"].__setitem__(0, ["3", 4])),
    "a grid of none": word(lambda w: w["regions"][0]["grids"].__setitem__(0, [0, 0])),
    "a grid too many": word(lambda w: w["regions"][0]["grids"].append([3, 4])),
    "no grid": word(lambda w: w["regions"][0].update(grids=[])),
    "a region too many": word(lambda w: w["regions"].append(w["regions"][0])),
    "a row that is not there": word(lambda w: w["relocated"][0].update(row=7)),
    "a row of text": word(lambda w: w["relocated"][0].update(row="1")),
    "a step of half": word(lambda w: w["relocated"][0].update(step=1.5)),
    "a config with nan": word(lambda w: w["config"].update(gain=float("nan"))),
    "a config with infinity": lambda p: (p / WORDS).write_text(
        (p / WORDS).read_text().replace('"gain": 3.0', '"gain": 1e999')),
    "too deep": lambda p: (p / WORDS).write_text("[" * 100_000),
    "tensors cut": lambda p: (p / TENSORS).write_bytes((p / TENSORS).read_bytes()[:-9]),
    "tensors of nothing": lambda p: (p / TENSORS).write_bytes(b""),
    "an image that is none": lambda p: (p / "image-0-0.png").write_bytes(b"DDS " + bytes(124)),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_told_when_a_trace_is_loaded(saved, damage):
    damage(saved)
    with pytest.raises(ValueError) as error:
        Trace.load(saved)
    assert type(error.value) is ValueError and str(saved) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_folder_that_is_a_file_or_none_has_no_trace(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "none", tmp_path / "file", tmp_path):
        with pytest.raises(FileNotFoundError, match="no trace at"):
            Trace.load(path)


def test_what_cannot_be_loaded_is_not_saved_over_what_can(whole, saved):
    before = whole.image
    try:
        whole.image = before.clone()
        whole.image[0, 0, 0, 0] = float("nan")
        with pytest.raises(ValueError, match="cannot be saved: image is not finite"):
            whole.save(saved)
    finally:
        whole.image = before
    assert torch.equal(Trace.load(saved).image, before)


def test_writing_that_is_cut_short_leaves_no_mixture(whole, saved, monkeypatch):
    def full(tensors, path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folder, "save_file", full)
        with pytest.raises(OSError, match="No space left"):
            whole.save(saved)
    with pytest.raises(FileNotFoundError, match="no trace at"):
        Trace.load(saved)  # the old words with new tensors would be another trace
    whole.save(saved)
    Trace.load(saved)


def test_every_file_may_be_read_by_those_who_may_read_others(whole, tmp_path):
    for mask, mode in ((0o022, 0o644), (0o027, 0o640), (0o077, 0o600)):
        own = os.umask(mask)
        try:
            path = whole.save(tmp_path / oct(mask))
        finally:
            os.umask(own)
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {mode}


@pytest.mark.parametrize("name", [WORDS, TENSORS, "image-0-0.png"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(saved, monkeypatch, name):
    """Root may read anything, so what the system would say is said for it."""
    import builtins
    import io
    from pathlib import Path

    own, own_text = builtins.open, Path.read_text

    def refuse(path):
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))

    def opened(path, *args, **options):
        refuse(path)
        return own(path, *args, **options)

    def loaded(path):
        refuse(path)
        return load_file(path)

    def text(self, *args, **options):
        refuse(self)
        return own_text(self, *args, **options)

    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(io, "open", opened)
    monkeypatch.setattr(Path, "read_text", text)
    monkeypatch.setattr(folder, "load_file", loaded)
    with pytest.raises(PermissionError, match="may not be read"):
        Trace.load(saved)
