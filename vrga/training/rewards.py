"""What GRPO pays for: the right answer, and the form; and what is told of answers beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vrga.evaluation.items import Item
from vrga.lookback import TAG, reward, spans_of
from vrga.training.filters import VALID
from vrga.training.questions import Questions

Reward = Callable[..., list[float]]
KEPT = 4  # answers of a step that the report can show


@dataclass(frozen=True)
class Said:
    """What is told of one answer, without its question.

    Args:
        trigger: whether it looks back at all.
        valid: whether it does in the valid form.
        empty: whether a span of it is empty.
        copied: whether a span only repeats words that stand before it in the answer.
    """

    trigger: bool
    valid: bool
    empty: bool
    copied: bool


def told(text: str, tag: str = TAG) -> Said:
    """What is told of an answer."""
    spans = list(spans_of(tag).finditer(text))
    return Said(
        trigger=bool(spans),
        valid=reward(text, tag) == VALID,
        empty=any(not span[1].strip() for span in spans),
        copied=any(_stands_in(span[1], text[: span.start()]) for span in spans),
    )


def any_span(text: str, tag: str = TAG) -> float:
    """A form reward that does not look inside: 1.0 for any span; else as `lookback.reward`."""
    return 1.0 if spans_of(tag).search(text) else reward(text, tag)


def rewards(
    questions: Questions,
    items: Mapping[str, Item],
    form: str,
    keep: Callable[[list[dict]], None] = lambda answers: None,
) -> list[Reward]:
    """The two reward functions of TRL's kind: of the right answer, and of the form.

    Args:
        items: the questions by their ids, which TRL hands on as `id`.
        form: "strict" or "any", see `settings.RL`.
        keep: is given some answers of each step with what each was paid.
    """
    pays = reward if form == "strict" else any_span
    right: list[float] = []  # of the newest answers; TRL asks for both rewards in this order

    def accuracy(completions: Sequence, id: Sequence[str], **more) -> list[float]:
        texts = map(text_of, completions)
        right[:] = [
            float(questions.is_right(items[one], text)) for one, text in zip(id, texts, strict=True)
        ]
        return list(right)

    def format(completions: Sequence, id: Sequence[str], log_metric, **more) -> list[float]:
        texts = [text_of(one) for one in completions]
        found = [told(text, questions.tag) for text in texts]
        for name in Said.__dataclass_fields__:
            log_metric(name, sum(getattr(one, name) for one in found) / len(found))
        paid = [pays(text, questions.tag) for text in texts]
        kept = zip(id, texts, right, paid, strict=True)
        names = ("id", "text", "right", "form")
        keep([dict(zip(names, one, strict=True)) for one in list(kept)[:KEPT]])
        return paid

    return [accuracy, format]


def text_of(completion: Sequence[Mapping] | str) -> str:
    """The text of a completion as TRL hands it on."""
    return completion if isinstance(completion, str) else completion[0]["content"]


def _stands_in(span: str, before: str) -> bool:
    """Whether the words of a span stand in this order, one after the other, in a text."""
    words, text = span.split(), re.sub(r"</?\w[\w-]*>", " ", before).split()
    return bool(words) and any(
        text[i : i + len(words)] == words for i in range(len(text) - len(words) + 1)
    )
