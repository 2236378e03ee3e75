"""The embedded model, its task, and the demo's table."""

import itertools

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import vrga
from vrga import VRGAConfig
from vrga.cli import app
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
from vrga.demo.show import run_arm


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
    done = CliRunner().invoke(app, ["demo", "--output", str(tmp_path), "--questions", "6"])
    assert done.exit_code == 0, done.output
    for name in ("demo.png", "closer.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    for words in ("without VRGA", "with VRGA", "accuracy", "RRAR", "direct", "cot", "true cell",
                  "asked once", "looked closer", "true box", "fine-hard"):  # fmt: skip
        assert words in done.output
