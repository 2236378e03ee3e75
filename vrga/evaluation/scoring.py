"""What a model's text answers, and whether that is right.

**The rule.** The answer is the content of the last closed \\boxed{} outside <think> and <back>
spans. Without one there is none, unless `box=False` says that the prompt did not ask for a box:
then it is the plain text outside these spans. A missing answer is wrong; it is never the text
"None".
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence

from vrga.evaluation.letters import picked
from vrga.evaluation.math_check import CHECKER
from vrga.evaluation.plain_text import bare, same
from vrga.lookback import SPAN, last_box

BOX = "VRGA_BOX"  # environment variable: 1, only a box counts; 0, plain text counts too
_THINK = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_SAID = re.compile(r"\banswer\s*(?:is|:)\s*:?", re.IGNORECASE)
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
).split()
_COUNT = re.compile(r"(?<![\w./])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w%/]|\.\d)")
_PLAIN_WORDS = re.compile(r"[A-Za-z]{2,}(?: [A-Za-z]+)*")


def asks_for_box(prompt: str) -> bool:
    """Whether only a box counts after this prompt.

    Args:
        prompt: a style by its name ("direct" and "guided" do not; "cot", "semantic", "solution",
            "reason" and "back" do), or a template with {question}, which does if it names \\boxed.
    """
    return "\\boxed" in prompt if "{question}" in prompt else prompt not in ("direct", "guided")


def only_box(default: bool) -> bool:
    """Whether only a box counts now: as the environment variable VRGA_BOX says, or by default.

    lmms-eval gives the scoring functions of a task no prompt, so who sets the prompt sets this.
    """
    return {"1": True, "0": False}.get(os.environ.get(BOX, ""), default)


def final_answer(text: str) -> str | None:
    """Content of the last \\boxed{} outside <think> and <back> spans, or None for none."""
    return last_box(_outside(text))


def answer(text: str, *, box: bool = False) -> str | None:
    """The answer by the rule above; None for none, also where it is empty.

    Args:
        text: the model's output.
        box: whether only a box counts.
    """
    boxed = final_answer(text)
    found = boxed if boxed is not None or box else _outside(text).strip()
    return found or None


Options = Sequence[str] | Mapping[str, str]


def choice(text: str, options: Options, *, box: bool = False) -> str | None:
    """The letter of the option that the answer names, by letter or by its exact text; see `picked`.

    Args:
        text: the model's output.
        options: texts of the options A, B, ... in order, or letter to text.
        box: whether only a box counts.

    Returns:
        An uppercase letter of `options`, or None; None also for two different letters. A letter
        wins over an option whose text is that letter.
    """
    found = answer(text, box=box)
    if found is None:
        return None
    return picked(found, _by_letter(options))


def is_option(text: str, letter: str, options: Options, *, box: bool = False) -> bool:
    """Whether the answer is this option, by its letter, its text or its value.

    Args:
        text: the model's output.
        letter: of the right option; options, box: as for `choice`.
    """
    said, right = choice(text, options, box=box), _by_letter(options)[letter]
    if said is not None:
        return said == letter
    return bool(right) and same_math(answer(text, box=box), right)  # "45" for the option "45°"


def _by_letter(options: Options) -> Mapping[str, str]:
    if isinstance(options, Mapping):
        return options
    return {chr(ord("A") + i): text for i, text in enumerate(options)}


def yes_no(text: str, *, box: bool = False) -> bool | None:
    """Whether the answer is yes; None for neither and for both.

    A text that starts with yes or no is read up to the end of its first sentence.
    """
    found = answer(text, box=box)
    if found is None:
        return None
    said = _said(found)
    if re.match(r"(?:yes|no)\b", said, re.IGNORECASE):
        said = re.split(r"[.!?\n]", said)[0]
    words = set(re.findall(r"\b(?:yes|no)\b", said.lower()))
    return words == {"yes"} if len(words) == 1 else None


def number(text: str, *, box: bool = False) -> float | None:
    """The one number in the answer, in digits or as a word from zero to twenty.

    None for no number and for several different ones. Digits win over words: "the one on the
    left has 3" is 3.
    """
    found = answer(text, box=box)
    if found is None:
        return None
    said = _said(found)
    values = {float(digits.replace(",", "")) for digits in _COUNT.findall(said)}
    if not re.search(r"\d", said):
        values = {
            float(_WORDS.index(w)) for w in re.findall(r"[a-z]+", said.lower()) if w in _WORDS
        }
    return values.pop() if len(values) == 1 else None


def same_math(answer: str | None, target: str) -> bool:
    """Whether an answer equals the target: as text, else as mathematics by math-verify.

    Fractions, decimals, units, intervals and sets count; plain words are compared as text alone,
    for math-verify would read "red" as a product of three symbols.

    Args:
        answer: what `answer` returned; None is wrong.
        target: the expected value, plain or LaTeX.
    """
    if not answer:
        return False
    answer, target = bare(answer), bare(target)
    if same(answer, target):
        return True
    if _PLAIN_WORDS.fullmatch(target) or _PLAIN_WORDS.fullmatch(answer):
        return False
    return CHECKER.equal(answer, target)


def _outside(text: str) -> str:
    """What is neither in <back> nor in <think>; spans that never close go to the end."""
    text = _THINK.sub(" ", SPAN.sub(" ", text))
    # A prompt may end in <think>, so that the text holds the closing tag alone.
    return text.rpartition("</think>")[2]


def _said(text: str) -> str:
    """The line behind the last "the answer is", else the whole text; bare."""
    rest = _SAID.split(text)[-1].strip()
    return bare(rest.split("\n")[0] if rest and rest != text.strip() else text)


def sample_score(metrics: dict) -> float | None:
    """One number for a sample: the first of its task's metrics that is one, or holds a "score".

    None where there is none, as for answers that only a judge can score.
    """
    for value in metrics.values():
        if isinstance(value, dict):
            value = value.get("score")
        if isinstance(value, (bool, int, float)) and not math.isnan(value):
            return float(value)
    return None
