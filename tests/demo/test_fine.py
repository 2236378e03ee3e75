"""The split `fine`, its arms and their figures."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from command import worked
from PIL import Image
from rich.console import Console
from untrained import NARROW, untrained

import vrga
from vrga import Zoom, look_closer
from vrga.analysis.closer import _known, analyze, pooled
from vrga.analysis.study import Study
from vrga.demo.data import CELL, LETTERS, TEST_SEEDS
from vrga.demo.fine import arms, photos, stamps, train
from vrga.demo.fine.arms import FOUND, LARGER, ONCE, RANDOM, TOLD, TRUE, TWICE, run_fine_arms
from vrga.demo.fine.batches import FineBatches
from vrga.demo.fine.cards import CARDS
from vrga.demo.fine.data import FINE_SPLITS, fine_split_options, is_right, make_fine_samples, spoken
from vrga.demo.fine.grounds import FIELD, SIDE
from vrga.demo.fine.settings import CLOSER, FINDING

pytestmark = pytest.mark.slow

GROUNDED = {"fine-photos": (photos,), "fine-stamps": (photos, stamps)}  # what a split reads
DRAWN = [split for split in FINE_SPLITS if split not in GROUNDED]


@pytest.fixture(params=FINE_SPLITS)
def split(request):
    if not all(one.available() for one in GROUNDED.get(request.param, ())):
        pytest.skip("scikit-image, or tuxpaint-stamps-default, is not installed")
    return request.param


def test_samples_are_reproducible_and_a_larger_number_only_adds_some(split):
    first, again = (make_fine_samples(n, seed=5, **fine_split_options(split)) for n in (2, 4))
    for a, b in zip(first, again, strict=False):
        assert a.cards == b.cards and a.question == b.question
        assert np.array_equal(np.asarray(a.image), np.asarray(b.image))


def test_the_true_boxes_are_cards_of_the_asked_colour_and_no_other_is(split):
    options = fine_split_options(split) | {"noise": 0.0}
    for sample in make_fine_samples(12, seed=90, **options):
        assert sample.image.size == (SIDE, SIDE) and sample.color in sample.question
        assert [c for c in sample.cards if c.color == sample.color] == list(sample.asked)
        assert len(sample.asked) == 1 + ("cards?" in sample.question)
        pixels = np.asarray(sample.image)
        for card in sample.asked:
            left, top, right, bottom = card.box
            part = pixels[top:bottom, left:right]
            assert (part == CARDS[card.color]).all(2).mean() > 0.5
            assert left < card.center[0] < right and top < card.center[1] < bottom
            # A card lies in one field, so that one token of the overview shows all of it.
            assert left // FIELD == (right - 1) // FIELD and top // FIELD == (bottom - 1) // FIELD


def test_hard_pictures_hold_what_makes_finding_hard():
    samples = make_fine_samples(12, seed=7, **fine_split_options("fine-hard"))
    assert any(len(sample.asked) == 2 for sample in samples)
    for sample in samples:
        assert sum(card.color is None for card in sample.cards) >= 6  # like colours and strays
        assert len(sample.cards) >= 14
        letters = [card.letter for card in sample.asked]
        assert len(set(letters)) == len(letters) and set(letters) <= set(LETTERS)
    near = [
        any(
            card.color is None
            and np.abs(np.subtract(card.center, sample.asked[0].center)).max() < 90
            for card in sample.cards
        )
        for sample in samples
    ]
    assert 2 < sum(near)  # a crop of the field holds a letter that was not asked for


@pytest.mark.parametrize(
    "options, told",
    [
        ({"ground": "sand"}, "ground='sand'"),
        ({"cards": (1, 3)}, "cards="),
        ({"size": (10, 50)}, "size="),
        ({"size": (60, 50)}, "size="),
        ({"two": 1.5}, "two=1.5"),
        ({"clutter": (3, 2)}, "clutter="),
        ({"strays": (-1, 2)}, "strays="),
        ({"cards": (3, 30), "clutter": (0, 9)}, "36 fields"),
        ({"alike": -1}, "36 fields"),
    ],
)
def test_pictures_that_cannot_be_drawn_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        make_fine_samples(1, seed=0, **options)


def test_an_unknown_split_names_those_there_are():
    with pytest.raises(ValueError, match="fine-easy, fine-hard, fine-photos, fine-stamps"):
        fine_split_options("fine")


def test_the_photographs_split_says_that_its_package_is_absent(monkeypatch):
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: None)
    photos.photographs.cache_clear()
    with pytest.raises(ImportError, match="fine-photos.*pip install scikit-image"):
        make_fine_samples(1, seed=0, **fine_split_options("fine-photos"))


@pytest.fixture
def two_stamps(tmp_path, monkeypatch):
    """A package of two stamps: a red square, and a blue bar, in a large transparent picture."""
    for name, color, box in (("a", "red", (30, 40, 70, 80)), ("b", "blue", (0, 90, 100, 100))):
        image = Image.new("RGBA", (100, 100))
        image.paste(Image.new("RGBA", (box[2] - box[0], box[3] - box[1]), color), box[:2])
        image.save(tmp_path / f"{name}.png")
    monkeypatch.setattr(stamps, "FOLDER", tmp_path)
    monkeypatch.setattr(stamps, "FEWEST", 2)
    for cached in (stamps._files, stamps.stamp):
        cached.cache_clear()
    yield
    for cached in (stamps._files, stamps.stamp):
        cached.cache_clear()


def test_stamps_are_cut_to_what_is_not_transparent_and_stay_in_their_fields(two_stamps):
    assert [stamps.stamp(i, 50).size for i in (0, 1, 2)] == [(50, 50), (50, 5), (50, 50)]
    image = Image.new("RGB", (SIDE, SIDE), "white")
    stamps.scatter(np.random.default_rng(0), image, 9, (6, 6))
    pixels = (np.asarray(image) != 255).any(2)
    filled = pixels.reshape(6, FIELD, 6, FIELD).any((1, 3))
    assert filled.sum() == 9
    again = Image.new("RGB", (SIDE, SIDE), "white")
    stamps.scatter(np.random.default_rng(0), again, 9, (6, 6))
    assert np.array_equal(np.asarray(again), np.asarray(image))


def test_the_stamps_split_says_that_its_package_is_absent(two_stamps, monkeypatch):
    monkeypatch.setattr(stamps, "FEWEST", 3)
    with pytest.raises(ImportError, match="holds 2 of them: apt-get install tuxpaint-stamps"):
        stamps.stamp(0, 50)


def test_letters_in_any_order_are_right_and_nothing_else_is():
    two = next(s for s in make_fine_samples(9, seed=0, two=1.0))
    a, b = (card.letter for card in two.asked)
    assert is_right(spoken(two), two) and is_right(f"\\boxed{{{b} {a}}}", two)
    for text in ("", f"\\boxed{{{a}}}", f"\\boxed{{{a} {b} {b}}}", f"{a} {b}"):
        assert not is_right(text, two)


def test_heads_are_taught_to_look_at_tokens_that_show_the_asked_letter():
    batches = FineBatches(untrained()[1], 6, seed=1)
    inputs, labels, looks, kinds = batches.conversations()
    ids, tokenizer = inputs["input_ids"], untrained()[1].tokenizer
    assert len(kinds) == len(ids) and sum(k in ("closer", "elsewhere") for k in kinds) == 6
    image = ids == batches.ids["<|image_pad|>"]
    assert image.sum() * 4 == len(inputs["pixel_values"])
    for row, query, key, among in looks.tolist():
        assert image[row, key] and key < query and among >= 1
        said = tokenizer.decode([int(ids[row, query])]).strip()
        assert said == "?" or said in CARDS
    spoken_to = {(row, query) for row, query, _, _ in looks.tolist()}
    for row in range(len(ids)):
        assert any(one == row for one, _ in spoken_to)
        target = tokenizer.decode(labels[row][labels[row] >= 0])
        assert target.startswith("answer ") and target.endswith("}<|im_end|>")


def test_training_crops_hold_the_asked_letters_and_some_what_was_not_asked_for():
    batches, beside = FineBatches(untrained()[1], 20, seed=2), 0
    for sample in batches.samples():
        views = batches.crops(sample)
        beside += len(views) - len(sample.asked)
        for view in views:
            assert view.scale == 1 and view.image.size == tuple(
                view.box[i + 2] - view.box[i] for i in (0, 1)
            )
            assert view.image.width % CELL == view.image.height % CELL == 0
        for card in sample.asked:
            cells = [(view.cell(card.center), view.grid) for view in views]
            assert any(
                cell and 1 <= cell[0] <= grid[0] - 2 and 1 <= cell[1] <= grid[1] - 2
                for cell, grid in cells
            )
    assert 0 < beside < 20


def test_finding_is_taught_until_heads_look_and_no_further(monkeypatch):
    model = copy.deepcopy(untrained()[0])
    batches = FineBatches(untrained()[1], 1, seed=3)
    kept = []

    def taught(steps, found):
        monkeypatch.setattr(train, "FOUND", found)
        return train.train_answers(model, batches, steps, 1e-4, lambda: kept.append(1), True)

    last, steps = taught(30, found=9.0)  # any loss at all, of 20 steps
    assert steps == 20 and 0 < last["look"] < 9 and not {"closer", "elsewhere"} & set(last)
    with pytest.raises(SystemExit, match=r"after 2 steps .* --find-steps or another --seed"):
        taught(2, found=9.0)
    assert not kept


def test_batched_arms_say_what_look_closer_says(monkeypatch):
    monkeypatch.setattr(arms, "LONGEST", 6)
    loaded = untrained()
    samples = make_fine_samples(2, seed=20, **fine_split_options("fine-easy"))
    off = replace(FINDING, gain=1.0)
    asked, answers = run_fine_arms(loaded, samples, list(TOLD), off, NARROW)
    for number, sample in enumerate(samples):
        single = look_closer(*loaded, sample.image, sample.question, off, NARROW, max_new_tokens=6)
        assert [c.box for c in asked[number].crops] == single.boxes
        assert answers[FOUND].texts[number] == single.text
    assert answers[ONCE].tokens == [36] * 2 and answers[FOUND].tokens == [52] * 2
    assert answers[RANDOM].tokens == answers[FOUND].tokens == answers[TWICE].tokens
    assert answers[LARGER].tokens == [49] * 2  # 7 x 7, the nearest whole number a side
    assert all(len(answer.texts) == 2 for answer in answers.values())


def test_where_no_closer_look_is_taken_the_first_answer_stands(monkeypatch):
    monkeypatch.setattr(arms, "LONGEST", 6)
    samples = make_fine_samples(2, seed=20, **fine_split_options("fine-easy"))
    never = Zoom(**{**NARROW.settings(), "gain": 50.0})
    asked, answers = run_fine_arms(untrained(), samples, [ONCE, FOUND], FINDING, never)
    assert not any(one.zooms for one in asked)
    assert answers[FOUND].texts == answers[ONCE].texts and answers[FOUND].tokens == [36, 36]


def test_the_embedded_model_reads_only_what_it_looks_closer_at():
    samples = make_fine_samples(24, seed=TEST_SEEDS.start + 5000, **fine_split_options("fine-easy"))
    loaded = vrga.load("fine", dtype=torch.float32)
    asked, answers = run_fine_arms(loaded, samples, [ONCE, FOUND, RANDOM], FINDING, CLOSER)
    right = {
        arm: np.mean([is_right(t, s) for t, s in zip(own.texts, samples, strict=True)])
        for arm, own in answers.items()
    }
    assert right[ONCE] <= 0.2 and right[RANDOM] <= 0.3  # one of 16 letters by chance
    assert right[FOUND] >= 0.9 and np.mean([one.peak for one in asked]) >= 0.95


def test_figures_are_paired_over_all_models():
    def model(once, found, true):
        tokens = {ONCE: 36.0, FOUND: 52.0, TRUE: 52.0}
        right = {ONCE: once, FOUND: found, TRUE: true}
        flags = {"peak": "1" * 8, "held": "11111110", "zooms": "1" * 8, "two": "00001111"}
        return {"right": right, "visual_tokens": tokens, "seconds": None} | flags

    own = [model("10000000", "11111100", "11111111"), model("00000001", "11111101", "11111111")]
    found = pooled(own, [ONCE, FOUND, TRUE])
    assert found["questions"] == 16
    assert found["accuracy"][FOUND][0] == pytest.approx(13 / 16)
    assert found["less_once"][FOUND][0] == pytest.approx(11 / 16)
    assert found["of_true"] == pytest.approx(13 / 16)
    assert found["lost"] == {"questions": 3, "outside_the_crops": 1}
    assert found["two_cards"]["accuracy"][FOUND][0] == pytest.approx(5 / 8)
    assert found["verdict"] == "holds"


def test_the_command_writes_its_figures_and_keeps_models_that_were_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(arms, "LONGEST", 6)
    from vrga.demo import build

    build.save(*untrained(), tmp_path / "model")
    command = ["analyze", "closer", "--model", str(tmp_path / "model"), "--limit", "2"]
    command += ["--split", "fine-easy", "--output", str(tmp_path / "out"), "--arm", TRUE]
    worked(*command, "--timed", 1)
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(told["pooled"]["accuracy"]) == {ONCE, FOUND, TRUE}
    assert told["settings"]["zoom"]["crops"] == 2 and told["settings"]["finding"]["gain"] == 3.0
    assert told["pooled"]["seconds"]["cpu"]["closer"] > 0
    assert told["pooled"]["times_plain"]["wall"]["plain"] == 1.0
    assert (tmp_path / "out" / "closer.png").stat().st_size > 5_000
    path = tmp_path / "out" / "models" / "0.json"
    kept = json.loads(path.read_text())
    kept["found"]["right"][FOUND] = "11"
    path.write_text(json.dumps(kept))
    worked(*command, "--resume")
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    assert told["pooled"]["accuracy"][FOUND][0] == 1.0
    with pytest.raises(ValueError, match="is of a run with"):
        _known(path, kept["settings"] | {"seed": 4})


def test_arms_and_splits_that_there_are_not_are_refused(tmp_path):
    study = Study(tmp_path, split="fine-easy", limit=1, console=Console(quiet=True))
    with pytest.raises(ValueError, match="arm 'twice'"):
        analyze(study, arms=["twice"])
    study = Study(tmp_path, split="clean", limit=1, console=Console(quiet=True))
    with pytest.raises(ValueError, match="split 'clean'"):
        analyze(study)
