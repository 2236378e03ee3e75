"""What a page says of two answers: which words go together, where it opens, and its verdict."""

import json
import re
from dataclasses import replace

import pytest
import torch
from traces import filled_trace

from vrga.report import render
from vrga.report.comparison import NONE, opening, question_of, region_shares, side_by_side, verdict


def words(text):
    return re.findall(r"\S+\s*", text)


@pytest.mark.parametrize(
    "first, second, partners, differs",
    [
        ("a b c", "a b c", ([0, 1, 2], [0, 1, 2]), ([], [])),
        ("a b c", "a x c", ([0, 1, 2], [0, 1, 2]), ([1], [1])),
        ("a c", "a b c", ([0, NONE], [0, NONE, NONE]), ([1], [1, 2])),
        ("a c .", "a b c .", ([0, 2, 3], [0, NONE, 1, 2]), ([], [1])),
        ("a", "b c", ([0], [0, NONE]), ([0], [0, 1])),
        ("", "a", ([], [NONE]), ([], [0])),
    ],
    ids=["same", "one word", "the last is other", "one more", "all other", "nothing"],
)
def test_tokens_go_together_where_the_answers_do(first, second, partners, differs):
    # The last word of a text has no space behind it, and so is another token than in the middle.
    found = side_by_side([words(first), words(second)])
    if first == "a c":
        partners, differs = ([0, 2], [0, NONE, 1]), ([], [1])
    assert [pairs for pairs, _ in found] == list(partners)
    assert [other for _, other in found] == list(differs)


def test_one_answer_has_no_partners():
    assert side_by_side([["a", "b"]]) == [([NONE, NONE], [])]


def test_the_page_opens_where_the_region_gains_or_loses_most():
    base, steered = filled_trace(1.0), filled_trace(3.0)
    heads = base.regions[0].visual[base.layers]
    for trace, shares in ((base, [0.1, 0.5, 0.2, 0.3]), (steered, [0.2, 0.1, 0.3, 0.5])):
        trace.region[:, :, 0] = torch.tensor(shares)[:, None, None]
        trace.texts[0] = list("abcde")
    assert heads.any()
    pairs = side_by_side([trace.texts[0] for trace in (base, steered)])
    assert opening([base, steered], 0, pairs) == 1
    assert opening([steered], 0, side_by_side([steered.texts[0]])) == 3
    assert list(region_shares(base, 0).values()) == pytest.approx([0.1, 0.5, 0.2, 0.3])
    told = verdict([base, steered], 0, pairs, ["off", "on"], 1)
    assert told[0] == "Both answers are the same."
    assert "27.5\u00a0% (off) and 27.5\u00a0% (on)" in told[1]
    assert "opens at token 2" in told[2] and "50.0\u00a0% to 10.0\u00a0%" in told[2]
    text = render([base, steered])
    assert json.loads(re.search(r'id="page">(.*?)</script>', text)[1])["opening"] == 1
    assert all(sentence in text for sentence in told[2:])


def test_tokens_that_only_one_answer_has_are_no_place_to_open():
    base, steered = filled_trace(1.0), filled_trace(3.0)
    base.texts[0], steered.texts[0] = list("abcde"), list("xabcd")
    base.region[:, :, 0] = 0.1
    steered.region[:, :, 0] = torch.tensor([0.9, 0.1, 0.4, 0.1])[:, None, None]
    pairs = side_by_side([base.texts[0], steered.texts[0]])
    assert opening([base, steered], 0, pairs) == 2


def test_without_an_image_there_is_no_region_to_tell_of():
    trace = filled_trace(counts=(0, 1))
    pairs = side_by_side([trace.texts[0]])
    told = verdict([trace], 0, pairs, ["on"], opening([trace], 0, pairs))
    assert told == ["There is no image, and so no region to steer to."]


@pytest.mark.parametrize(
    "asked, question",
    [
        ("user\nwhat is it?\nassistant", "what is it?"),
        ("system\nYou are kind.\nuser\nwhat is it?\nassistant\n", "what is it?"),
        ("USER:  \nwhat is it? ASSISTANT:", "what is it?"),
        ("user\n\n\n\nwhat\nis it?assistant\n\n", "what\nis it?"),
        ("what is the user of it?", "what is the user of it?"),
        ("user\nwho is the assistant\nassistant", "who is the assistant"),
        ("user\nhi\nassistant\nhello\nuser\nwhat is it?\nassistant", "what is it?"),
        ("", ""),
    ],
    ids=["qwen", "system", "llava", "llama", "bare", "role in it", "turns", "unknown"],
)
def test_the_title_is_the_question_without_the_roles(asked, question):
    trace = filled_trace()
    trace.regions[0] = replace(trace.regions[0], question=None)
    assert question_of([trace], 0, asked) == question
    trace.asked[0] = asked
    title = re.search(r"<h1>(.*?)</h1>", render([trace]), re.DOTALL)[1]
    assert title == (question or "Where the model looked")


def test_the_title_is_what_steering_took_for_the_question_where_it_is_known():
    trace = filled_trace()
    assert trace.regions[0].question
    assert question_of([trace], 0, "user\nmore than that\nassistant") == trace.regions[0].question
