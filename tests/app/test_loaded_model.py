"""What stands behind the page: one question at a time, words as they come, files that go."""

import json
import socket
import subprocess
import sys
import threading
from base64 import b64encode

import numpy as np
import pytest
import torch
from command import run

import vrga
from vrga.app import loaded_model, messages
from vrga.app.brush import cells_of, read_painted
from vrga.app.loaded_model import Answered, LoadedModel, Question
from vrga.app.visitors import Visits
from vrga.app.word_queue import Said, Stopped
from vrga.demo.data import PROMPTS, TEST_SEEDS, make_samples
from vrga.demo.fine.data import FINE_SPLITS, make_fine_samples
from vrga.method.prompt import Grid
from vrga.report import render
from vrga.steering.patching import patch_of

SAMPLES = make_samples(2, seed=TEST_SEEDS.start, noise=140.0)


@pytest.fixture(scope="module")
def loaded():
    return LoadedModel(None, max_new_tokens=64)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for place, sample in enumerate(SAMPLES):
        sample.image.save(folder / f"{place}.png")
    return tuple(str(folder / f"{place}.png") for place in range(len(SAMPLES)))


def asked(loaded, *args, **more):
    """Everything that is told of a question."""
    return list(loaded.ask(Question(*args, **more), threading.Event()))


# --- the answers ---


def test_both_answers_come_word_by_word_and_are_those_of_ask(loaded, paths):
    text = PROMPTS["cot"].format(question=SAMPLES[0].question)
    *said, found = asked(loaded, paths[:1], text)
    wanted = vrga.ask(loaded.model, loaded.processor, paths[0], text, max_new_tokens=64)
    assert isinstance(found, Answered) and found.texts == (wanted.base, wanted.text)
    assert said and all(isinstance(one, Said) for one in said)
    for one in said:  # the base first, each a beginning of what it becomes
        assert wanted.base.startswith(one.base or "")
        assert one.steered is None or one.base == wanted.base
        assert wanted.text.startswith(one.steered or "")
    assert "the region it found" in found.told and patch_of(loaded.model) is None


def test_preset_and_gain_are_those_that_were_chosen(loaded, paths):
    found = asked(loaded, paths[:1], SAMPLES[0].question, preset="published", gain=4.0)[-1]
    assert found.traces[1].config == vars(vrga.VRGAConfig.published(gain=4.0))
    masked = asked(loaded, paths[:1], SAMPLES[0].question, preset="released_mask", gain=4.0)[-1]
    assert masked.traces[1].config["method"] == "released_mask"


def test_the_painted_region_is_what_is_steered_to(loaded, paths):
    mask = np.zeros((60, 60), bool)
    mask[:20, 40:] = True  # two by two cells, top right
    question = Question(paths, SAMPLES[0].question, gain=10.0, painted=(mask, None))
    found = list(loaded.ask(question, threading.Event()))[-1]
    region = found.traces[1].regions[0]
    first, second = (region.mask[grid.index].view(grid.h, grid.w) for grid in region.grids)
    assert first.sum() == 4 and first[:2, 4:].all() and not second.any()
    assert found.painted and "the painted region, 4 of 72 image tokens" in found.told
    free = asked(loaded, paths, SAMPLES[0].question, gain=10.0)[-1]
    assert not torch.equal(found.traces[1].layer_maps[0], free.traces[1].layer_maps[0])


def test_a_closer_look_answers_what_one_look_cannot(tmp_path):
    fine = LoadedModel("fine", max_new_tokens=28)
    (sample,) = make_fine_samples(1, seed=TEST_SEEDS.start, **FINE_SPLITS["fine-easy"])
    sample.image.save(tmp_path / "x.png")
    question = Question((str(tmp_path / "x.png"),), sample.question, closer=True)
    *said, found = fine.ask(question, threading.Event())
    assert found.closer and found.told.startswith("Looked closer: ")
    assert sample.answer in found.texts[1] and found.texts[1].startswith(said[-1].steered)
    page = json.loads(messages.answered(found))
    assert page["titles"] == ["without VRGA", "with VRGA, looked closer"]
    assert [len(one["images"]) for one in page["page"]["runs"]] == [1, 2]
    assert sample.question in render(found.traces)  # the report of both
    with pytest.raises(ValueError, match="a closer look finds its own place"):
        whole = (np.ones((4, 4), bool),)
        list(fine.ask(Question(question.paths, "?", painted=whole, closer=True), threading.Event()))


@pytest.mark.parametrize(
    ("question", "error", "told"),
    [
        (lambda paths: Question((), "?"), ValueError, "there is no picture: drop one"),
        (lambda paths: Question(paths, "  "), ValueError, "is empty: say what to ask"),
        (lambda paths: Question(paths * 5, "?"), ValueError, "10 pictures: at most 8"),
        (lambda paths: Question((__file__,), "?"), OSError, "cannot be read"),
        (lambda paths: Question(paths, "?", preset="papper"), ValueError, "known are"),
        (lambda paths: Question(paths, "?", gain=-1.0), ValueError, "gain=-1.0 must be"),
    ],
    ids=["none", "empty", "many", "damaged", "preset", "gain"],
)
def test_what_cannot_be_asked_is_told_and_leaves_no_patch(loaded, paths, question, error, told):
    with pytest.raises(error, match=told):
        list(loaded.ask(question(paths), threading.Event()))
    assert patch_of(loaded.model) is None


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(loaded, paths, monkeypatch):
    monkeypatch.setattr(loaded_model, "MOST_PIXELS", 100)
    monkeypatch.setattr(loaded_model, "read_image", None)
    with pytest.raises(ValueError, match="0.png has 168 x 168 pixels: at most"):
        loaded.pictures(paths)


def test_every_head_has_its_map_where_there_is_room(loaded, paths, monkeypatch):
    found = asked(loaded, paths[:1], SAMPLES[0].question)[-1]
    (base, _) = json.loads(messages.answered(found))["page"]["runs"]
    names = [one["name"] for one in base["channels"]]
    assert sum(name.startswith("layer ") and "head" in name for name in names) == 48
    assert [f"layer {i}" for i in range(6)] == [n for n in names if n[:-1] == "layer "]
    monkeypatch.setattr(loaded_model, "MOST_MAPS", 1000)
    fewer = asked(loaded, paths[:1], SAMPLES[0].question)[-1].traces[1]
    assert len(fewer.heads) == int(fewer.regions[0].visual.sum()) < 48


def test_an_answer_of_one_token_is_shown_without_maps(paths):
    short = LoadedModel(None, max_new_tokens=1)
    told = json.loads(messages.answered(asked(short, paths[:1], SAMPLES[0].question)[-1]))
    assert told["page"] is None and "a single token has no step" in told["notes"][-1]


# --- stopping ---


def test_an_answer_that_is_not_wanted_stops_at_the_next_word(loaded, paths):
    stop = threading.Event()
    text = PROMPTS["cot"].format(question=SAMPLES[0].question)
    words = loaded.ask(Question(paths[:1], text), stop)
    next(words)
    stop.set()
    with pytest.raises(Stopped):
        for one in words:
            assert isinstance(one, Said)
    assert patch_of(loaded.model) is None
    assert isinstance(asked(loaded, paths[:1], SAMPLES[0].question)[-1], Answered)


def test_an_answer_that_nobody_reads_on_ends(loaded, paths):
    """As the server does with one whose tab is gone: it drops what it was reading."""
    text = PROMPTS["cot"].format(question=SAMPLES[0].question)
    words = loaded.ask(Question(paths[:1], text), threading.Event())
    next(words)
    words.close()
    assert not [one for one in threading.enumerate() if one.name == "vrga-answer"]
    assert patch_of(loaded.model) is None


def test_what_the_model_raises_is_raised_by_the_reader(loaded, paths, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(loaded.model.lm_head, "forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        asked(loaded, paths[:1], SAMPLES[0].question)
    assert patch_of(loaded.model) is None


# --- the brush ---


def grid(h, w):
    return Grid(torch.arange(h * w), h, w)


def test_a_cell_is_in_the_region_from_a_third_on():
    mask = np.zeros((30, 30), bool)
    mask[:10, :4], mask[10:20, 10:13] = True, True  # 40 % of the first cell, 30 % of the middle
    mask[20:, 20:] = True  # all of the last
    (cells,) = cells_of([mask], [grid(3, 3)])
    assert cells.nonzero().tolist() == [[0, 0], [2, 2]]
    mask[:10] = mask[20:] = False
    (cells,) = cells_of([mask], [grid(3, 3)])
    assert cells.nonzero().tolist() == [[1, 1]]  # the most painted, where none is by a third


def test_strokes_on_tiles_are_refused():
    with pytest.raises(ValueError, match="cuts 1 pictures into 2 tiles"):
        cells_of([np.ones((3, 3), bool)], [grid(2, 2)] * 2)


def test_what_the_browser_sends_of_the_brush_is_read():
    raster = {"w": 3, "h": 2, "bits": b64encode(bytes([0, 1, 0, 0, 0, 1])).decode()}
    blank = raster | {"bits": b64encode(bytes(6)).decode()}
    first, second, third = read_painted(json.dumps([raster, None, blank]), 3)
    assert first.tolist() == [[False, True, False], [False, False, True]]
    assert second is None and third is None and read_painted("", 2) == [None, None]


@pytest.mark.parametrize(
    "sent",
    ["{", '["x"]', '[{"w": 3}]', '[{"w": 3, "h": 2, "bits": "AAAA"}]',
     '[{"w": 0, "h": 2, "bits": ""}]', '[{"w": 3000, "h": 2, "bits": ""}]',
     '[{"w": 3, "h": 2, "bits": "%"}]'],
)  # fmt: skip
def test_a_raster_that_is_none_is_told(sent):
    with pytest.raises(ValueError, match="cannot be read .*paint it again"):
        read_painted(sent, 1)


def test_a_stroke_on_a_picture_that_is_gone_is_told():
    raster = {"w": 1, "h": 1, "bits": b64encode(b"\1").decode()}
    with pytest.raises(ValueError, match="painted on picture 2, and there are 1"):
        read_painted(json.dumps([None, raster]), 1)


# --- whose files ---


def test_files_go_with_the_last_tab_that_has_them(tmp_path):
    visits = Visits(tmp_path)
    shared, own = tmp_path / "shared.png", tmp_path / "own.png"
    example, outside = tmp_path / "examples" / "x.png", tmp_path.parent / "outside.png"
    example.parent.mkdir()
    for path in (shared, own, example, outside):
        path.write_bytes(b"x")
    visits.keep("a", [shared, own, example, outside])
    visits.keep("b", [shared])
    folder = visits.folder_of("a")
    (folder / "report.html").write_text("x")
    visits.keep("a", [shared, example, outside])  # taken away on the page
    assert not own.exists() and shared.exists()
    stop = visits.begin("a")
    visits.leave("a")
    assert stop.is_set() and not folder.exists() and shared.exists()
    visits.leave("b")
    assert not shared.exists() and example.exists() and outside.exists() and len(visits) == 0
    assert not visits.begin("a").is_set()  # it came back, as after a sleep
    outside.unlink()


# --- the command ---


def test_the_command_is_refused_before_anything_is_loaded(monkeypatch):
    with pytest.raises(FileNotFoundError, match="no checkpoint at /no/model"):
        raise run("app", "--model", "/no/model").exception
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r'pip install "vrga\[app\]"'):
        raise run("app").exception
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1, port {port} .*--port"):
            raise run("app", "--port", port).exception


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from vrga.cli import app; "
        "assert CliRunner().invoke(app, ['app', '--help']).exit_code == 0; "
        "print([m for m in ('torch', 'gradio', 'numpy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
