"""One call asks with and without VRGA, leaves the model as it was, and draws itself."""

import inspect
import re
import subprocess
import sys
import types
import typing
import warnings
import webbrowser
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ImageTextToTextPipeline

import vrga
from vrga import VRGAConfig
from vrga.answers.page import edges
from vrga.demo.data import SPLITS, TEST_SEEDS, is_card, make_samples, prepare, split_options
from vrga.text_diff import marked_words

NOISY = make_samples(2, seed=TEST_SEEDS.start, noise=140.0)


@pytest.fixture(scope="module")
def loaded():
    return vrga.load(dtype=torch.float32)


@pytest.fixture(scope="module")
def answered(loaded):
    return vrga.ask(*loaded, NOISY[0].image, NOISY[0].question)


def plain(loaded, sample, count=256):
    model, processor = loaded
    inputs = prepare(processor, [sample], "direct")
    tokens = model.generate(**inputs, max_new_tokens=count, do_sample=False)
    new = tokens[0, inputs["input_ids"].shape[1] :]
    return processor.decode(new, skip_special_tokens=True).strip()


def test_the_answers_are_those_of_generate_with_and_without_a_patch(loaded, answered):
    assert answered.base == plain(loaded, NOISY[0])
    with vrga.patch(loaded[0]) as patch:
        assert answered.text == plain(loaded, NOISY[0])
        assert torch.equal(answered.region.mask, patch.region[0].mask)
        assert answered.steps == patch.steps[0] and answered.steps.steered > 0
    assert answered.config == VRGAConfig.sparing()  # what the checkpoint brings
    assert answered.trace.image is not None and answered.base_trace.config["gain"] == 1
    assert vrga.unpatch(loaded[0]) is False


def test_an_answer_and_a_trace_are_told_in_a_line(answered):
    told = repr(answered)
    assert re.fullmatch(
        r"Answer\('answer .*', base 'answer .*', T \d+ of 36 tokens, \d+ of \d+ steps steered\)",
        told,
    )
    assert repr(answered.trace).startswith("Trace(8 steps, 6 layers of 8 heads, maps of ")
    assert repr(vrga.Trace()) == "Trace(empty: it was not recorded yet)"
    for one in (told, repr(answered.trace), repr(answered.region)):
        assert "\n" not in one and len(one) < 300


def test_images_may_be_paths_and_several(loaded, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path, sample in zip(paths, NOISY, strict=True):
        sample.image.save(path)
    first = vrga.ask(*loaded, [paths[0], NOISY[1].image], "what color is the K?", max_new_tokens=4)
    second = vrga.ask(*loaded, list(map(str, paths)), "what color is the K?", max_new_tokens=4)
    assert len(first.region.grids) == len(first.images) == 2
    assert torch.equal(first.region.mask, second.region.mask) and first.text == second.text
    assert first._repr_html_().count("<svg") == 2


def test_without_a_base_one_answer_is_made(loaded):
    found = vrga.ask(*loaded, NOISY[0].image, "what color is the K?", "paper", base=False)
    assert found.base is None and found.base_trace is None and found.config == VRGAConfig.paper()
    assert "without VRGA" not in found._repr_html_() and "base" not in repr(found)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"question": "  "}, ValueError, "question '  ' is empty"),
        ({"question": None}, ValueError, "question None is empty"),
        ({"images": []}, ValueError, "no image is given"),
        ({"images": "gone.png"}, OSError, "gone.png does not exist"),
        ({"images": np.zeros((2, 2))}, ValueError, "is no path"),
        ({"processor": None}, ValueError, "processor=NoneType is none of a model with images"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens=0 must be ≥ 1"),
        ({"max_new_tokens": True}, ValueError, "max_new_tokens=True is not a whole"),
        ({"config": "papper"}, ValueError, "preset 'papper': known are"),
        ({"config": 2}, ValueError, "config=2 is not a VRGAConfig"),
        ({"streamers": {"steerd": None}}, ValueError, "steerd: the answers are base and steered"),
    ],
    ids=lambda value: "",
)
def test_bad_input_is_told_and_leaves_no_patch(loaded, change, error, told):
    given = {"model": loaded[0], "processor": loaded[1], "images": NOISY[0].image, "question": "?"}
    with pytest.raises(error, match=told):
        vrga.ask(**{**given, **change})
    assert vrga.unpatch(loaded[0]) is False


def test_a_patched_model_is_asked_through_its_own_patch(loaded, answered):
    sample = NOISY[0]
    with vrga.patch(loaded[0], "published", gain=4) as patch:
        found = vrga.ask(*loaded, sample.image, sample.question)
        assert found.config == patch.config == VRGAConfig.published(gain=4)
        assert found.base == answered.base
        assert torch.equal(found.region.mask, patch.region[0].mask)
        other = vrga.ask(*loaded, sample.image, sample.question, "sparing", base=False)
        assert other.config == VRGAConfig.sparing() and other.text == answered.text
        assert patch.config == VRGAConfig.published(gain=4) and patch.enabled
        corner = torch.zeros(6, 6, dtype=torch.bool)
        corner[0, 0] = True
        patch.given = [[corner]]
        given = vrga.ask(*loaded, sample.image, sample.question, base=False, max_new_tokens=3)
        assert given.region.mask.sum() == 1


def test_what_a_patch_had_is_put_back_after_an_error(loaded):
    with vrga.patch(loaded[0], "paper") as patch:
        patch.query = "words that the prompt has not"
        with pytest.raises(ValueError, match="words that the prompt"):
            vrga.ask(*loaded, NOISY[0].image, "what color is the K?", "published")
        assert patch.config == VRGAConfig.paper() and patch.query.startswith("words")


def test_an_ablation_is_asked_with_a_base_that_keeps_its_heads(loaded, answered):
    with vrga.patch(loaded[0], VRGAConfig.ablation("given")) as patch:
        patch.ablated = torch.ones(6, 8, dtype=torch.bool)
        found = vrga.ask(*loaded, NOISY[0].image, NOISY[0].question, max_new_tokens=12)
        assert found.base == answered.base and found.text != found.base
        assert patch.ablated.all() and patch.config == VRGAConfig.ablation("given")


def test_a_patch_that_is_switched_off_or_records_is_told(loaded):
    with vrga.patch(loaded[0]) as patch:
        patch.enabled = False
        with pytest.raises(ValueError, match="switched off: set patch.enabled = True"):
            vrga.ask(*loaded, NOISY[0].image, "?")
        patch.enabled = True
        with patch.record(), pytest.raises(RuntimeError, match="records already"):
            vrga.ask(*loaded, NOISY[0].image, "what color is the K?", max_new_tokens=2)


def test_a_pipeline_brings_its_processor(loaded, answered):
    pipe = object.__new__(ImageTextToTextPipeline)  # its __init__ needs torchvision
    pipe.model, pipe.tokenizer, pipe.processor = loaded[0], None, loaded[1]
    found = vrga.ask(pipe, None, NOISY[0].image, NOISY[0].question, base=False)
    assert found.text == answered.text


def test_the_report_shows_both_answers(answered, tmp_path):
    path = answered.report(tmp_path / "deep" / "answer.html")
    page = path.read_text("utf-8")
    assert page.count("data:image/png") >= 1 and NOISY[0].question in page


def test_an_answer_of_one_token_has_no_report(loaded, tmp_path):
    found = vrga.ask(*loaded, NOISY[0].image, "what color is the K?", max_new_tokens=1)
    with pytest.raises(ValueError, match="the trace is empty"):
        found.report(tmp_path / "answer.html")
    assert not list(tmp_path.iterdir()) and "0 of 0 steps" in repr(found)
    assert "<svg" in found._repr_html_()


def test_a_notebook_draws_image_region_and_answers(answered):
    page = answered._repr_html_()
    assert page.count("<svg") == 1 and page.count("<image ") == 2 and "<script" not in page
    assert "without VRGA" in page and "with VRGA" in page and NOISY[0].question in page
    grid = answered.region.grids[0]
    cells = answered.region.mask[grid.index].view(grid.h, grid.w)
    drawn = edges(answered.region, grid)
    inner = int((cells[1:] & cells[:-1]).sum() + (cells[:, 1:] & cells[:, :-1]).sum())
    assert len(re.findall(r"M\d+ \d+[hv]1", drawn)) == 4 * int(cells.sum()) - 2 * inner


@pytest.mark.parametrize(
    ("first", "second", "marked"),
    [
        ("K is red", "K is blue", ("K is <mark>red</mark>", "K is <mark>blue</mark>")),
        ("same words", "same words", ("same words", "same words")),
        ("", "<b>new</b>", ("", "<mark>&lt;b&gt;new&lt;/b&gt;</mark>")),
        ("a  b\nc", "a b\nc", ("a  b\nc", "a b\nc")),
    ],
)
def test_words_that_differ_are_marked(first, second, marked):
    assert marked_words(first, second) == marked


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a b", "a b"),
        ("", "x <y>"),
        ("a  a", "a a a"),
        ("a a", "a a a"),  # alike at both ends, which overlap
        ("see K red. " * 600, "see K blue. " * 500),  # a model that repeats itself
        ("one " + "so red. " * 900 + "end", "one " + "so blue. " * 900 + "end"),
    ],
    ids=["same", "empty", "spaces", "overlap", "repeated", "repeated between"],
)
def test_marks_leave_both_texts_as_they_are(first, second):
    found = marked_words(first, second)
    for text, marked in zip((first, second), found, strict=True):
        assert unescape(re.sub("</?mark>", "", marked)) == text
        assert first != second or "<mark>" not in marked


def test_show_draws_in_a_notebook_and_opens_a_page_elsewhere(answered, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or False)
    answered.show()
    path = Path(opened[0].removeprefix("file://"))
    assert "<svg" in path.read_text("utf-8")
    path.unlink()
    said = capsys.readouterr().out
    assert f"with VRGA: {answered.text}" in said and "no browser was found" in said
    shell = type("ZMQInteractiveShell", (), {})()
    drawing = types.SimpleNamespace(display=opened.append)
    python = types.SimpleNamespace(get_ipython=lambda: shell, display=drawing)
    monkeypatch.setitem(sys.modules, "IPython", python)
    monkeypatch.setitem(sys.modules, "IPython.display", drawing)
    answered.show()
    assert opened[-1] is answered and not capsys.readouterr().out


def test_another_picture_warns_on_the_embedded_model(loaded, monkeypatch):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8))
    with pytest.warns(UserWarning, match="reads coloured letters.*means nothing"):
        vrga.ask(*loaded, photo, "who is this?", base=False, max_new_tokens=2)
    monkeypatch.setattr(loaded[0], "name_or_path", "another")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vrga.ask(*loaded, photo, "who is this?", base=False, max_new_tokens=2)


@pytest.mark.parametrize("split", SPLITS)
def test_cards_are_known_and_other_pictures_are_not(split):
    assert all(is_card(s.image) for s in make_samples(20, seed=7, **split_options(split)))
    for size, color in (((168, 168), "black"), ((168, 140), "white"), ((170, 170), "white")):
        assert not is_card(Image.new("RGB", size, color))


def test_a_trace_plots_itself(answered):
    assert answered.trace.plot().axes
    assert len(answered.trace.plot(kind="tokens", tokens=[0, 1]).axes) == 2
    with pytest.raises(ValueError, match="kind='map': known are trend, tokens"):
        answered.trace.plot(kind="map")


def test_the_public_names_are_all_that_is_listed():
    import vrga.config  # a submodule becomes an attribute

    assert dir(vrga) == sorted(vrga.__all__)
    assert not [name for name in dir(vrga) if name.startswith("_")]
    assert (Path(vrga.__file__).parent / "py.typed").is_file()


def test_type_checkers_are_told_every_lazy_name():
    source = Path(vrga.__file__).read_text("utf-8")
    told = dict(
        (name, module)
        for module, name in re.findall(r"    from (vrga[\w.]*) import (\w+) as \2\n", source)
    )
    assert told.keys() == set(vrga.__all__)
    for name, home in vrga._HOME.items():
        assert told[name] == f"vrga.{home}"
    assert typing.get_type_hints(vrga.VRGAConfig.save_pretrained)["return"] is Path
    assert inspect.signature(vrga.ask).parameters["max_new_tokens"].default == 256


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, vrga; dir(vrga); vrga.VRGAConfig; import vrga.cli; "
        "print([m for m in ('torch', 'transformers', 'numpy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
