"""The split `chain`: its questions, its training batches, its arms, and its teacher."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from saying_chain import saying
from untrained import NARROW, untrained

from vrga import Zoom, look_closer, lookback
from vrga.beforehand import check_chain
from vrga.demo import build, learning
from vrga.demo.chain.arms import BACK, BEFORE, INSIDE, OFF, TOLD, TRUE, ChainArms
from vrga.demo.chain.batches import GUESSED, READ, SHOWN, ChainBatches
from vrga.demo.chain.data import (
    ACROSS,
    CHAIN_SPLITS,
    NAMED,
    PATCH,
    PROMPTS,
    chain_split_options,
    first_color,
    make_chain_samples,
    sentences,
    small_cells,
    spoken,
)
from vrga.demo.chain.train import with_words
from vrga.demo.data import CELL
from vrga.demo.drawn import chain_items, drawn_of
from vrga.demo.fine.cards import CARDS
from vrga.demo.fine.data import sentences as fine_sentences
from vrga.demo.fine.grounds import SIDE
from vrga.demo.fine.settings import FINDING
from vrga.steering.patching import patch_of
from vrga.training.filters import verdict
from vrga.training.questions import Questions
from vrga.training.teachers import grid, one_look


@functools.cache
def samples(split="chain"):
    return make_chain_samples(4, seed=3, **chain_split_options(split))


@pytest.mark.parametrize("split", CHAIN_SPLITS)
def test_the_second_card_is_the_one_that_the_first_names(split):
    repeated = make_chain_samples(2, seed=3, **chain_split_options(split))
    for sample, again in zip(samples(split), repeated, strict=False):
        assert np.array_equal(np.asarray(sample.image), np.asarray(again.image))
    for sample in samples(split):
        colors = [card.color for card in sample.picture.cards if card.color is not None]
        assert sample.second.color == NAMED[sample.first.letter] != sample.first.color
        assert colors.count(sample.first.color) == colors.count(sample.second.color) == 1
        assert first_color(sample.question) == sample.first.color
        assert sample.image.size == ((ACROSS * PATCH,) * 2 if sample.small else (SIDE, SIDE))
    with pytest.raises(ValueError, match="no card names another"):
        make_chain_samples(1, seed=0, cards=(2, 2), two=1.0)
    with pytest.raises(ValueError, match="known are chain, chain-small"):
        chain_split_options("chains")


def test_a_small_picture_shows_every_card_in_one_of_its_fields():
    for sample in samples("chain-small"):
        boxes = small_cells(sample.picture, seed=3)
        assert len(boxes) == ACROSS**2
        for card in sample.picture.cards[: ACROSS**2]:
            x, y = card.center
            assert any(b[0] <= x < b[2] and b[1] <= y < b[3] for b in boxes)
            assert all(edge % CELL == 0 for b in boxes for edge in b)


def test_targets_have_the_forms_that_training_pays_for():
    (sample, *_) = samples()
    direct, plain, back = (spoken(sample, prompt) for prompt in PROMPTS)
    assert lookback.reward(plain) == 0.667 and lookback.reward(back) == 1.0
    assert {lookback.last_box(text) for text in (direct, plain, back)} == {sample.answer}
    # A letter is told in a span before it is told outside of it.
    for card in sample.asked:
        assert back.index(f"see {card.color} {card.letter}") < back.index(f"it is {card.letter}")


@pytest.mark.parametrize("style", ["semantic", "solution"])
def test_the_teacher_puts_looks_into_the_models_own_chain(style):
    (item, *_), (sample, *_) = chain_items(samples()), samples()
    chain = spoken(sample, "cot")
    told = grid(item, chain, style, "back")
    asked = Questions(split="chain-small", limit=1)
    assert verdict(asked, item, chain, told, style) is None
    assert len(lookback.parse(told).back) == (2 if style == "semantic" else 1)
    once = one_look(item, chain, style, "back")
    assert verdict(asked, item, chain, once, style) is None
    assert lookback.parse(once).back == [lookback.parse(told).back[-1]]
    other = "<think> something else </think> \\boxed{K}"
    assert grid(item, other, style, "back") == other  # falls at the filter
    assert verdict(asked, item, other, other, style) == "form"


def test_questions_are_drawn_by_the_name_of_their_split():
    (item,) = Questions(split="chain-small", limit=1).items()
    assert (
        first_color(item.question)
        and item.box is None
        and "think step by step" in item.texts["cot"]
    )
    (large,) = drawn_of("chain", 1, 7)
    assert large.box is not None and large.is_right(
        f"<think> a </think> \\boxed{{{large.answer}}}", "cot"
    )
    assert drawn_of("similar", 1, 7)[0].question.startswith("what color")
    turns = drawn_of("similar+chain-small", 3, 7)
    assert [one.id for one in turns] == ["0", "1", "2"]
    expected = (drawn_of("similar", 2, 7)[0], drawn_of("chain-small", 1, 7)[0],
                drawn_of("similar", 2, 7)[1])  # fmt: skip
    assert [one.question for one in turns] == [one.question for one in expected]
    assert [one.images for one in turns] == [one.images for one in expected]
    with pytest.raises(ValueError, match="--split similar.chain-small: the embedded model"):
        check_chain("similar+chain-small", None)
    for refused in (lambda: Questions(split="fine-easy"), lambda: drawn_of("fine-easy", 1, 0)):
        with pytest.raises(ValueError, match="known are clean, .*chain, chain-small"):
            refused()


# --- training ---


@pytest.fixture(scope="module")
def batches():
    tokenizer = build.build_tokenizer(fine_sentences() + sentences())
    return ChainBatches(build.build_processor(tokenizer, 36), 6, 0)


def test_a_batch_teaches_to_look_at_the_card_that_is_spoken_of(batches):
    batch, tokens = batches.batch(), batches.processor.tokenizer
    ids = batch.inputs["input_ids"]
    assert sum(SHOWN.values()) == pytest.approx(1)
    for row, query, key, count in batch.looks.tolist():
        assert ids[row, key] == batches.ids["<|image_pad|>"] and key < query and count >= 1
    reads = set()
    for row, query, key, _ in batch.looks.tolist():
        place = int((ids[row, :key] == batches.ids["<|image_pad|>"]).sum())
        word = tokens.decode(ids[row, query]).strip()
        if word in ("?", ">", "find"):
            assert place < 36  # in the picture, before it is looked at closer
        reads |= {place >= 36} if word in ("is", *CARDS) else set()
    assert reads == {True, False}
    words = {tokens.decode(ids[row, query]).strip() for row, query, *_ in batch.looks.tolist()}
    assert "?" in words and not {"answer", "."} & words
    told = {float(x) for x in batch.weights.unique()}
    assert told <= {1.0, READ, GUESSED} and READ in told
    assert bool((batch.weights[batch.read] == READ).all())
    letters = {tokens.decode(x).strip() for x in ids[batch.read]}
    assert letters and all(len(x) == 1 and x.isupper() for x in letters)


def test_words_that_a_model_knows_keep_their_embeddings(batches):
    model, processor = untrained()
    tokenizer = batches.processor.tokenizer
    made = with_words(model, processor.tokenizer, tokenizer)
    old, new = (x.get_input_embeddings().weight for x in (model, made))
    for word in (" red", " K", "<|image_pad|>", "?"):
        ids = [own.encode(word)[0] for own in (processor.tokenizer, tokenizer)]
        assert torch.equal(old[ids[0]], new[ids[1]]), word
    layer = "model.language_model.layers.2.mlp.up_proj.weight"
    assert torch.equal(model.state_dict()[layer], made.state_dict()[layer])
    assert learning.untrained(tokenizer).get_input_embeddings().weight.shape == new.shape


# --- arms ---


def test_a_batch_is_asked_as_each_question_alone_would_be():
    """Rows look at different times, and one does not at all; what follows a <back> is chosen with
    the crop in the prompt."""
    answers = ("a <back>* c", "<back>* a </back> b <back>* c", "a b")
    zoom = Zoom(**{**NARROW.settings(), "when": "back"})
    drawn = {sample.question: sample for sample in make_chain_samples(9, seed=3)}
    told = dict(zip(drawn, answers, strict=False))
    drawn = [drawn[question] for question in told]
    with saying(told):
        texts, rows = ChainArms(untrained(), drawn, FINDING, NARROW, "direct").ask(BACK)
        inside = replace(FINDING, when="back")
        for text, row, sample in zip(texts, rows, drawn, strict=True):
            alone = look_closer(*untrained(), sample.image, sample.question, inside, zoom)
            assert text == alone.text and "*" not in text
            assert [crop.box for look in row.looks for crop in look] == alone.boxes
            assert len(row.looks) == len(alone.looks) == text.count("<back>")


def test_arms_ask_about_what_they_say():
    drawn = samples()[:1]
    for arm, crops in {OFF: 0, INSIDE: 0, BEFORE: 1, TRUE: 2}.items():
        with saying({drawn[0].question: "a"}):
            texts, (row,) = ChainArms(untrained(), drawn, FINDING, NARROW, "cot").ask(arm)
        assert arm in TOLD and texts == ["a"] and len(row.crops) == crops
    x, y = drawn[0].second.center
    box = row.crops[1].box
    assert box[0] <= x < box[2] and box[1] <= y < box[3]
    assert patch_of(untrained()[0]) is None
