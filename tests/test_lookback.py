"""Look-Back's prompts, and what its outputs say."""

import math

import pytest

from vrga import lookback

GOOD = "<think>a car</think> <back>it is red</back> <think>so red</think> \\boxed{red}"
COT = "<think>a car</think> It is \\boxed{blue}."


@pytest.mark.parametrize("style", list(lookback.STYLES))
def test_prompts_hold_image_question_and_the_tags_of_their_style(style):
    (message,) = lookback.prompt("Where is {it}?", style, images=2)
    kinds = [part["type"] for part in message["content"]]
    text = message["content"][-1]["text"]
    assert message["role"] == "user" and kinds == ["image", "image", "text"]
    assert text.startswith("Where is {it}?\n") and "\\boxed{}" in text
    assert ("<back>" in text) == (style in ("semantic", "solution"))
    assert ("<think>" in text) == (style != "direct")


def test_a_template_of_ones_own():
    (message,) = lookback.prompt("why?", "Look, then answer in \\boxed{}: {question}")
    assert message["content"][-1]["text"] == "Look, then answer in \\boxed{}: why?"
    with pytest.raises(ValueError, match="style='romantic' is neither.*'semantic'.*{question}"):
        lookback.prompt("why?", "romantic")


def test_parsing():
    parsed = lookback.parse(GOOD)
    assert parsed.think == ["a car", "so red"] and parsed.back == ["it is red"]
    assert parsed.answer == "red" and not parsed.hacked


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {x}", "x"),
        ("no box", None),
        ("\\boxed{never closed", None),
        ("\\boxed{1} and \\boxed{open", "1"),
        ("\\boxed{yes} <back>\\boxed{no}</back>", "yes"),
        ("<back>\\boxed{only here}</back>", None),
        ("\\boxed{yes} <back> \\boxed{no}", "yes"),
        ("\\boxed{}", ""),
        ("The answer is None", None),
    ],
)
def test_the_answer_is_the_last_box_outside_of_back(text, answer):
    assert lookback.parse(text).answer == answer


@pytest.mark.parametrize(
    ("text", "spans", "hacked"),
    [
        ("<back>a</back><back>b</back>", ["a", "b"], False),
        ("<back>a <back> b</back> c</back>", ["a <back> b"], False),
        ("x</back><back>open", ["open"], False),
        ("<back></back>", [""], True),
        ("<back> \n </back> <back>a</back>", [" \n ", "a"], True),
        ("nothing", [], False),
    ],
)
def test_spans_nested_unclosed_empty_repeated(text, spans, hacked):
    parsed = lookback.parse(text)
    assert parsed.back == spans and parsed.hacked == hacked


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (GOOD, 1.0),
        ("<think>a</think> first 3 <back>b</back><think>c</think> so \\boxed{3}", 1.0),
        ("<think>a</think><back>b</back><think>c</think><back>d</back><think>e</think>\\boxed{3}",
         1.0),
        (COT, 0.667),
        (GOOD.replace("it is red", ""), 0.0),
        (GOOD.replace("it is red", " "), 0.0),
        (GOOD.replace("\\boxed{red}", "red"), 0.0),
        (GOOD.replace("\\boxed{red}", "\\boxed{}"), 0.0),
        ("<back>b</back> \\boxed{3}", 0.0),
        ("<think>a</think><back>b</back> \\boxed{3}", 0.0),
        ("<think>a</think><think>b</think> \\boxed{3}", 0.0),
        ("<think>a <back>b</back></think> \\boxed{3}", 0.0),
        (GOOD + "</back>", 0.0),
        ("\\boxed{3} <think>a</think>", 0.0),
        ("\\boxed{3}", 0.0),
        ("", 0.0),
    ],
)  # fmt: skip
def test_format_reward(text, reward):
    assert lookback.reward(text) == reward


def test_statistics():
    found = lookback.stats([GOOD, COT, "ab<back></back>", "<back>open"])
    assert found.trigger_rate == 0.75 and found.reflection_rate == 0.25
    assert found.empty_rate == 0.25
    assert found.length == (len("it is red") + 0 + len("open")) / 3
    assert found.position == pytest.approx((GOOD.index("<back>") / len(GOOD) + 2 / 15 + 0) / 3)
    none = lookback.stats([COT])
    assert none.trigger_rate == 0 and math.isnan(none.length) and math.isnan(none.position)


def test_another_word_than_back_is_asked_for_parsed_and_rewarded():
    other = GOOD.replace("back>", "recheck>")
    assert lookback.parse(other, "recheck") == lookback.parse(GOOD)
    assert lookback.reward(other, "recheck") == 1.0 and lookback.reward(GOOD, "recheck") == 0.0
    assert lookback.stats([other, COT], "recheck").trigger_rate == 0.5
    assert lookback.parse(other).back == [] and lookback.stats([other]).trigger_rate == 0
    (message,) = lookback.prompt("why <back>?", "semantic", tag="recheck")
    text = message["content"][-1]["text"]
    assert text.startswith("why <back>?") and "<recheck> and </recheck>" in text


@pytest.mark.parametrize("tag", ["", "<back>", "two words", "think", "a.*", None])
def test_what_is_no_word_is_no_tag(tag):
    for use in (lookback.parse, lookback.reward):
        with pytest.raises(ValueError, match="a word without brackets"):
            use(GOOD, tag)
