"""The embedded model, its task, and the demo's table."""

import itertools
import json
import math
import shlex

import numpy as np
import pytest
import torch
from command import worked

import vrga
from vrga import VRGAConfig
from vrga.beforehand import SPLITS as KNOWN_SPLITS
from vrga.beforehand import drawn_split
from vrga.demo.data import (
    CELL,
    COLORS,
    PROMPTS,
    SPLITS,
    TEST_SEEDS,
    TRAIN_SEEDS,
    VALIDATION_SEEDS,
    answer,
    make_samples,
    messages,
    parse_answer,
    prepare,
    split_options,
)
from vrga.demo.fine.show import picked
from vrga.demo.show import headline, next_commands, run_arm, sure


@pytest.fixture(scope="module")
def embedded():
    return vrga.load(dtype=torch.float32)


@pytest.fixture(scope="module")
def arms(embedded):
    """Both prompts, without and with VRGA, on the same held-out questions."""
    samples = make_samples(120, seed=TEST_SEEDS.start + 1000)
    return samples, {
        (prompt, gain): run_arm(
            *embedded, samples, prompt, VRGAConfig.published(gain=gain), batch=60
        )
        for prompt in PROMPTS
        for gain in (1.0, 1.5)
    }


@pytest.mark.parametrize("split", SPLITS)
def test_samples_are_reproducible_and_the_splits_apart(split):
    first, again = (make_samples(n, seed=5, **split_options(split)) for n in (3, 5))
    for a, b in zip(first, again, strict=False):
        assert a.objects == b.objects and a.question == b.question
        assert np.array_equal(np.asarray(a.image), np.asarray(b.image))
    splits = (TRAIN_SEEDS, VALIDATION_SEEDS, TEST_SEEDS)
    assert all(a.stop <= b.start for a, b in itertools.pairwise(splits))


def test_a_question_has_one_true_region():
    for sample in make_samples(50, seed=TEST_SEEDS.start):
        letters = [letter for letter, _, _ in sample.objects]
        assert letters.count(sample.letter) == 1 and sample.letter in sample.question
        assert sample.region.sum() == 1 and sample.region[sample.cell]
        left, top, right, bottom = sample.box
        assert (right - left, bottom - top) == (CELL, CELL)
        ink = np.asarray(sample.image)[top:bottom, left:right].reshape(-1, 3)
        assert (ink == COLORS[sample.color]).all(1).any()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_target_answers_parse(prompt):
    for sample in make_samples(20, seed=0):
        assert parse_answer(answer(sample, prompt)) == sample.color
        assert sample.question in messages(sample, prompt)[0]["content"][1]["text"]


@pytest.mark.parametrize("text", ["", "K", "the sky is blue", "K purplish.", "K red"[:3]])
def test_no_colour_is_no_answer(text):
    assert parse_answer(text) is None


@pytest.mark.parametrize(
    "change, said",
    [((0.04, 0.01, 0.07), "rises"), ((-0.04, -0.07, -0.01), "falls"),
     ((0.01, -0.02, 0.03), "no clear change"), ((-0.01, -0.03, 0.0), "no clear change"),
     ((0.0, math.nan, math.nan), "cannot tell, too few questions")],
    ids=["up", "down", "around 0", "up to 0", "no interval"],
)  # fmt: skip
def test_the_headline_says_of_a_change_what_its_interval_does(change, said):
    assert sure(change) == said
    measured = {"off": (0.025, 0.02, 0.03), "on": (0.061, 0.05, 0.07), "difference": change}
    lines = headline({"cot": {"first": measured, "rrar": measured, "accuracy": measured}})
    assert [line.endswith(said) for line in lines] == [True] * 3
    assert "2.5 % -> 6.1 %" in lines[0] and "0.025 -> 0.061" in lines[1]
    assert max(map(len, lines)) < 100


@pytest.mark.parametrize(
    "once, closer, place, why",
    [([1, 0, 0], [1, 1, 1], 1, "picked: the first that is wrong at first, then right; 2 of 3 are "),
     ([1, 0, 0], [0, 0, 1], 2, "1 of 3 are like this, 1 the other way round"),
     ([1, 0], [1, 0], 0, "the first question, as a closer look mends none: 0 of 2 are")],
    ids=["mended", "mended and lost", "none mended"],
)  # fmt: skip
def test_the_demo_opens_with_what_changes_and_says_how_it_was_picked(once, closer, place, why):
    found, told = picked(once, closer)
    assert found == place and why in told


def test_questions_are_drawn_where_the_model_may_be_wrong(tmp_path):
    assert drawn_split(None, None) == "similar" and drawn_split("clean", None) == "clean"
    assert drawn_split(None, tmp_path / "questions.jsonl") == "clean"  # a file has no split
    assert tuple(SPLITS) == KNOWN_SPLITS


def test_the_commands_at_the_end_can_be_typed(tmp_path):
    image = tmp_path / "a b" / "question.png"
    ask, show, serve = (shlex.split(x, comments=True) for x in next_commands(
        image, "what's the K?", image.parent
    ))  # fmt: skip
    assert ask[1:] == ["generate", "--image", str(image), "--question", "what's the K?",
                       "--trace", str(image.parent / "traces")]  # fmt: skip
    assert show[1:] == ["report", ask[-1], "-o", str(image.parent / "report.html")]
    assert serve[1] == "app"


@pytest.mark.slow
def test_direct_accuracy_on_held_out_images(arms):
    _, found = arms
    assert found["direct", 1.0].right.mean() >= 0.95


@pytest.mark.slow
def test_the_unsteered_arm_is_the_unpatched_model(embedded, arms):
    model, processor = embedded
    samples, found = arms
    texts = run_arm(model, processor, samples[:60], "direct", None).texts
    assert found["direct", 1.0].texts[:60] == texts


@pytest.mark.slow
def test_steering_raises_attention_to_a_region_that_holds_the_cell(arms):
    _, found = arms
    on, off = found["direct", 1.5], found["direct", 1.0]
    for name in ("hit", "coverage"):
        assert np.array_equal(on.look(name), off.look(name))
    hit = on.look("hit").astype(bool)
    # better than a region of this size at random
    assert hit.mean() > on.look("coverage").mean() + 0.1
    same = [a == b for a, b in zip(on.texts, off.texts, strict=True)]
    gained = (on.look("rrar") - off.look("rrar"))[hit & np.array(same)]
    assert gained.mean() > 0


def test_the_query_is_the_questions_end_not_the_instructions(embedded):
    model, processor = embedded
    sample = make_samples(1, seed=TEST_SEEDS.start)[0]
    inputs = prepare(processor, [sample], "cot")
    with vrga.patch(model, query=sample.question, tokenizer=processor.tokenizer) as patch:
        model.generate(**inputs, max_new_tokens=2)
        asked = patch.region[0].query
        patch.query = "user_end"
        model.generate(**inputs, max_new_tokens=2)
        instructed = patch.region[0].query
    text = processor.tokenizer.decode(inputs["input_ids"][0, : asked + 1])
    assert text.endswith(sample.question) and asked < instructed


@pytest.mark.slow
def test_the_demo_prints_its_table_and_writes_its_picture(tmp_path):
    saved = tmp_path / "x" / "demo.json"
    command = ["demo", "--output", str(tmp_path), "--questions", "6", "--save", str(saved)]
    done = worked(*command)
    for name in ("demo.png", "closer.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    for words in ("without VRGA", "with VRGA", "right answers", "RRAR", "direct", "true cell",
                  "asked once", "looked closer", "true box", "fine-hard",
                  "picked: the first", "What steering changes", "What next"):  # fmt: skip
        assert words in done.output
    found = json.loads(saved.read_text())
    direct = found["prompts"]["direct"]
    assert found["split"] == "similar" and direct["accuracy"]["off"][0] < 1
    assert direct["first"]["difference"][1] > 0  # the interval leaves out 0
    typed = [
        shlex.split(line, comments=True)
        for line in done.output.split("What next\n")[1].splitlines()
    ]
    for _, *arguments in typed[:2]:  # the third one serves until it is stopped
        worked(*arguments)
    assert typed[2][1] == "app" and (tmp_path / "report.html").stat().st_size > 10_000
