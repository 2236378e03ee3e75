"""What a model's text answers, and whether that is right."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrga.evaluation import math_check
from vrga.evaluation.scoring import (
    answer,
    asks_for_box,
    choice,
    final_answer,
    number,
    only_box,
    same_math,
    yes_no,
)

COLOURS = ["blue", "red", "light green"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think> it is red </think> \\boxed{red}", "red"),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{\\sqrt{2}}}", "\\frac{1}{\\sqrt{2}}"),
        ("\\boxed{1} and \\boxed{never closed", "1"),
        ("no box", None),
        ("The answer is None", None),
        ("", None),
        ("\\boxed{yes} <back> \\boxed{no} </back>", "yes"),
        ("<back> \\boxed{no} </back>", None),
        ("\\boxed{yes} <back> \\boxed{no}", "yes"),
        ("<think> \\boxed{first} </think>", None),
        ("<think> \\boxed{cut off", None),
        ("<think> \\boxed{cut off}", None),
        ("<think> a <back> b </back> \\boxed{c} </think> \\boxed{d}", "d"),
        ("so \\boxed{thought} </think> \\boxed{said}", "said"),
        ("so \\boxed{thought} </think> said", None),
    ],
)
def test_the_answer_is_the_last_box_outside_think_and_back(text, expected):
    assert final_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "boxed", "plain"),
    [
        ("red", None, "red"),
        ("<think> blue </think> red", None, "red"),
        ("<back> blue </back>", None, None),
        ("\\boxed{red} or so", "red", "red"),
        ("\\boxed{} red", None, None),
        ("None", None, "None"),
        ("  ", None, None),
    ],
)
def test_plain_text_counts_where_no_box_was_asked_for(text, boxed, plain):
    assert answer(text, box=True) == boxed
    assert answer(text, box=False) == plain


@pytest.mark.parametrize(
    ("prompt", "asks"),
    [
        ("direct", False),
        ("cot", True),
        ("reason", True),
        ("back", True),
        ("semantic", True),
        ("solution", True),
        ("{question} Box it: \\boxed{}.", True),
        ("{question} Say a letter.", False),
    ],
)
def test_every_prompt_but_the_direct_one_asks_for_a_box(prompt, asks):
    assert asks_for_box(prompt) is asks


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("0", False), (None, "default")])
def test_the_environment_says_whether_only_a_box_counts(monkeypatch, value, expected):
    monkeypatch.delenv("VRGA_BOX", raising=False)
    if value is not None:
        monkeypatch.setenv("VRGA_BOX", value)
    for default in (True, False):
        assert only_box(default) is (default if expected == "default" else expected)


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "(B)",
        "B.",
        "B)",
        "b",
        "(b)",
        "[B]",
        "B) red",
        "B. red",
        "B: red",
        "B red",
        "(B) red",
        "red",
        "Red.",
        "\\text{B}",
        "\\text{(B)}",
        "\\textbf{B}",
        "$\\mathrm{B}$",
        "\\(B\\)",
        "**B**",
        '"B"',
        "\\boxed{B}",
        "\\boxed{\\text{red}}",
        "The answer is B.",
        "The answer is (B).",
        "the correct answer is option B",
        "Answer: B",
        "The answer is red.",
        "The answer is B because A is blue.",
        "The answer is B, not A.",
        "Option B",
        "I choose (B).",
        "B, because it is red",
        "The answer is A. No, the answer is B",
        "<think> A or B? A </think> B",
        "<back> (A) </back> B",
    ],
)
def test_a_choice_by_letter_or_by_the_options_text(text):
    assert choice(text, COLOURS) == "B"
    assert choice(f"<think> A </think> \\boxed{{{answer(text)}}}", COLOURS, box=True) == "B"


@pytest.mark.parametrize(
    "text",
    [
        "Apple",
        "Answer",
        "A red car",
        "Because of the car",
        "Cars",
        "CAB",
        "D",
        "(D)",
        "A and B",
        "A, B",
        "(A) or (B)",
        "A/B",
        "None",
        "",
        "green",
        "I see (A) and (B)",
        "<back> B </back>",
        "<think> B </think>",
    ],
)
def test_no_choice_in_words_in_several_letters_or_in_spans(text):
    assert choice(text, COLOURS) is None


def test_a_choice_without_its_box_is_none_where_a_box_was_asked_for():
    assert choice("B", COLOURS, box=True) is None
    assert choice("\\boxed{A} The answer is B.", COLOURS) == "A"


def test_options_by_letter_and_options_that_are_letters():
    assert choice("red", {"A": "blue", "D": "red"}) == "D"
    assert choice("B", {"A": "blue", "D": "red"}) is None
    assert choice("A", ["B", "A"]) == "A"  # the letter, not the text of B
    assert choice("red", ["red", "red"]) is None


@given(st.text(st.sampled_from("ABCDEabcde"), min_size=2, max_size=8))
def test_no_word_is_a_choice(word):
    assert choice(word, ["one", "two", "three", "four"]) is None


@given(st.sampled_from("ABCD"), st.text(st.sampled_from("xyz (){}\n"), max_size=20))
def test_what_is_inside_back_never_changes_the_choice(letter, inside):
    options = ["one", "two", "three", "four"]
    text = f"<back>{inside} \\boxed{{A}}</back> \\boxed{{{letter}}} <back> \\boxed{{B}}"
    assert choice(text, options, box=True) == letter


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", True),
        ("yes,", True),
        ("YES", True),
        ("No, there isn't", False),
        ("**No**", False),
        ("\\boxed{yes}", True),
        ("\\text{No}", False),
        ("\\boxed{\\text{No}.}", False),
        ("Yes, there is.", True),
        ("Yes. There is no second one.", True),
        ("The answer is no.", False),
        ("So, yes", True),
        ("<think> no </think> yes", True),
        ("yes <back> no </back>", True),
        ("\\boxed{no} yes", False),
        ("Yes and no.", None),
        ("yes or no", None),
        ("maybe", None),
        ("Nothing", None),
        ("eyes", None),
        ("None", None),
        ("", None),
        ("<back> yes </back>", None),
    ],
)
def test_yes_no_or_neither(text, expected):
    assert yes_no(text) is expected


def test_yes_without_its_box_is_none_where_a_box_was_asked_for():
    assert yes_no("yes", box=True) is None
    assert yes_no("\\boxed{Yes.}", box=True) is True


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", 3),
        ("three", 3),
        ("Three.", 3),
        ("Twenty", 20),
        ("zero", 0),
        ("\\boxed{3}", 3),
        ("\\boxed{3\\text{ dogs}}", 3),
        ("3 dogs", 3),
        ("3.0", 3),
        ("1,000", 1000),
        ("There are 3 dogs.", 3),
        ("The answer is 3. There were 4 before.", None),
        ("2 cats. The answer is 3", 3),
        ("the one on the left has 3", 3),
        ("3 and 4", None),
        ("2/3", None),
        ("50%", None),
        ("1.5x", None),
        ("many", None),
        ("None", None),
        ("", None),
        ("<think> 3 </think>", None),
    ],
)
def test_one_number_in_digits_or_words(text, expected):
    assert number(text) == expected


@given(st.integers(0, 10**6))
def test_every_count_is_read(n):
    assert number(f"\\boxed{{{n}}}", box=True) == n == number(f"There are {n:,} of them.")
    assert number(str(n), box=True) is None


@pytest.mark.parametrize(
    ("said", "target"),
    [
        ("\\frac{1}{2}", "0.5"),
        ("1/2", "\\frac12"),
        ("2\\sqrt{2}", "\\sqrt{8}"),
        ("12 cm", "12"),
        ("12\\text{ cm}", "12"),
        ("$12$", "12.0"),
        ("45°", "45"),
        ("45^\\circ", "45°"),
        ("x=3", "3"),
        ("(1,2)", "(1, 2)"),
        ("\\{2,1\\}", "\\{1,2\\}"),
        ("50\\%", "0.5"),
        ("1,000", "1000"),
        ("\\text{Red}.", "red"),
        ("AB", "AB"),
    ],
)
def test_equal_mathematics(said, target):
    assert same_math(said, target)


@pytest.mark.parametrize(
    ("said", "target"),
    [
        (None, "5"),
        (None, "None"),
        ("", "5"),
        ("", ""),
        ("None", "5"),
        ("5", "6"),
        ("[1,2)", "(1,2)"),
        ("der", "red"),  # equal as products of symbols
        ("on", "no"),
        ("\\frac{1}{", "0.5"),
        ("}{", "0"),
    ],
)
def test_unequal_or_missing_mathematics(said, target):
    assert not same_math(said, target)


def test_mathematics_in_many_threads():
    pairs = [(f"\\frac{{{2 * n}}}{{2}}", str(n + n % 2)) for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda pair: same_math(*pair), pairs)) == [True, False] * 100


@pytest.mark.slow
def test_arithmetic_without_end_is_wrong_and_the_next_answer_is_scored():
    checker = math_check.Checker()
    try:
        assert checker.equal("1/2", "0.5")
        first = checker._process.pid
        assert not checker.equal("9^{9^{9^9}}", "5", timeout=0.5)
        assert checker.equal("1/4", "0.25")
        assert checker._process.pid != first
        checker._process.kill()  # as the system does when memory runs out
        checker._process.wait()
        assert checker.equal("1/8", "0.125")
    finally:
        checker.close()


def test_without_math_verify_the_error_says_so(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('no module of that name')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ImportError, match="math-verify does not start: .*no module of that name"):
        math_check.Checker().equal("1/2", "0.5")
