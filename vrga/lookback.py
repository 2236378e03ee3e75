"""Look-Back (arXiv 2507.03019): prompts for its checkpoints, and reading what they say.

The model reasons in <think>, looks at the image again in <back>, and boxes its answer:

    <think> ... </think> <back> ... </back> <think> ... </think> \\boxed{...}

A span of <back> is what the regular expression SPAN finds: it opens at the first <back> outside a
span and closes at the next </back>, or at the end of the text. A model may be trained to another
word in place of back: then it is the `tag` of these functions.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

ALIASES = {
    "semantic-back-7b": "ShuoY/Semantic-back-7B",
    "solution-back-7b": "ShuoY/Solution-back-7B",
}
TAG = "back"
PLAIN, VALID = 0.667, 1.0  # what the format reward pays for the two forms
_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,23}")

_BOX = "put the final answer in \\boxed{}."
STYLES = {
    "direct": "{question}\nAnswer with the final answer alone, and " + _BOX,
    "cot": (
        "{question}\nReason step by step between <think> and </think>; after </think>, " + _BOX
    ),
    "semantic": (
        "{question}\nReason step by step between <think> and </think>. Whenever a detail of the "
        "image matters, close the reasoning, look at the image again between <back> and </back> "
        "and say what you see there, and go on in a new <think> ... </think>. At the end, " + _BOX
    ),
    "solution": (
        "{question}\nReason step by step between <think> and </think> and give a first answer. "
        "Then check it against the image between <back> and </back>, and reason again between "
        "<think> and </think>. At the end, " + _BOX
    ),
}


def check_tag(tag: str) -> str:
    """The word of a tag, if it can be one.

    Raises:
        ValueError: more or other than a word of 24 characters, or "think".
    """
    if not isinstance(tag, str) or not _WORD.fullmatch(tag) or tag == "think":
        raise ValueError(
            f"tag={tag!r}: a word without brackets of at most 24 characters, such as back or "
            "recheck, and not think"
        )
    return tag


@functools.cache
def spans_of(tag: str = TAG) -> re.Pattern[str]:
    """What finds the spans of a tag; group 1 is the content, group 2 "" where it never closes.

    Raises:
        ValueError: no word that can be a tag.
    """
    return re.compile(rf"<{check_tag(tag)}>(.*?)(</{tag}>|\Z)", re.DOTALL)


SPAN = spans_of()


@functools.cache
def _form(tag: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What finds a whole segment, and what finds any tag."""
    return (
        re.compile(rf"<(think|{check_tag(tag)})>(.*?)</\1>", re.DOTALL),
        re.compile(rf"</?(?:think|{tag})>"),
    )


def prompt(
    question: str, style: str = "semantic", images: int = 1, *, tag: str = TAG
) -> list[dict]:
    """Chat messages that ask a question about images in the form the checkpoints know.

    Args:
        question: the user's question.
        style: "semantic" (look back amid the reasoning), "solution" (after a first answer), "cot",
            "direct", or a template of your own that contains {question}, such as the exact prompt
            of a training run.
        images: image placeholders before the text.
        tag: the word in place of back in the styles that ask for it.

    Returns:
        Messages for `processor.apply_chat_template`.

    Raises:
        ValueError: a style that is neither known nor a template, or no tag.
    """
    template = STYLES.get(style, style)
    if style in STYLES:
        template = re.sub(rf"(</?){TAG}>", rf"\g<1>{check_tag(tag)}>", template)
    if "{question}" not in template:
        raise ValueError(
            f"style={style!r} is neither one of {', '.join(map(repr, STYLES))} nor a template that "
            "contains {question}"
        )
    # Not str.format: templates hold braces, as in \boxed{}.
    text = template.replace("{question}", question)
    content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


@dataclass(frozen=True)
class Parsed:
    """What a text says.

    Args:
        think, back: contents of the <think> and <back> spans, in order.
        answer: content of the last \\boxed{} outside <back> spans, or None.
        hacked: whether a <back> span is empty, the known sign of reward hacking.
    """

    think: list[str]
    back: list[str]
    answer: str | None
    hacked: bool


def parse(text: str, tag: str = TAG) -> Parsed:
    """Read a Look-Back output, whose spans stand between <tag> and </tag>."""
    back = [found[1] for found in spans_of(tag).finditer(text)]
    outside = spans_of(tag).sub(" ", text)
    return Parsed(
        think=[found[1] for found in _THINK.finditer(outside)],
        back=back,
        answer=last_box(outside),
        hacked=any(not span.strip() for span in back),
    )


def last_box(text: str) -> str | None:
    """Content of the last \\boxed{...} whose braces close, or None for none."""
    for start in reversed([found.end() for found in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                return text[start:place].strip()
    return None


def reward(text: str, tag: str = TAG) -> float:
    """The format reward: 1.0 with a valid <back> form, 0.667 for plain chain of thought, else 0.0.

    Valid: <think> spans with one <back> span between any two of them, none of them empty or
    nested, no other tag, and a box with an answer behind the last one. A form with an empty <back>
    earns nothing.

    Args:
        tag: the word in place of back.
    """
    segment, any_tag = _form(tag)
    kinds, end = [], 0
    for found in segment.finditer(text):
        if any_tag.search(text[end : found.start()]) or any_tag.search(found[2]):
            return 0.0  # a stray or nested tag
        if not found[2].strip():
            return 0.0
        kinds.append(found[1])
        end = found.end()
    if any_tag.search(text[end:]) or not last_box(text[end:]):
        return 0.0
    if kinds == ["think"]:
        return PLAIN
    alternating = ["think", tag] * (len(kinds) // 2) + ["think"]
    return VALID if kinds == alternating and len(kinds) >= 3 else 0.0


@dataclass(frozen=True)
class Stats:
    """Figures of many outputs; NaN where there is nothing to average.

    Args:
        trigger_rate: share of texts with a <back>.
        reflection_rate: share with a <back> span that is closed and not empty.
        empty_rate: share with an empty <back> span.
        position: mean start of the spans, as a share of the text's length.
        length: mean length of the spans' contents in characters.
    """

    trigger_rate: float
    reflection_rate: float
    empty_rate: float
    position: float
    length: float


def stats(texts: Sequence[str], tag: str = TAG) -> Stats:
    """How often, where and how long texts look back."""
    found = [(text, list(spans_of(tag).finditer(text))) for text in texts]
    spans = [(text, span) for text, spans in found for span in spans]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else float("nan")

    return Stats(
        trigger_rate=mean([bool(spans) for _, spans in found]),
        reflection_rate=mean(
            [any(span[1].strip() and span[2] for span in spans) for _, spans in found]
        ),
        empty_rate=mean([any(not span[1].strip() for span in spans) for _, spans in found]),
        position=mean([span.start() / len(text) for text, span in spans]),
        length=mean([len(span[1]) for _, span in spans]),
    )
