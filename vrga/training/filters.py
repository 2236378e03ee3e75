"""Which answers become chains, and which chains with a span become rows: a gate for each reason."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from vrga.evaluation.items import Item
from vrga.lookback import PLAIN, VALID, parse, spans_of
from vrga.training.questions import Questions

# What falls where: of the model's answers, and of what the teacher returned.
ANSWER_GATES = {
    "failed": "the answer failed",
    "difficulty": "its question is too hard or too easy",
    "wrong": "wrong",
    "form": "right, but not <think> ... </think> and a box",
    "more": "its question has enough chains",
}
TEACHER_GATES = {
    "teacher": "the teacher failed or took too long",
    "empty": "an empty span",
    "form": "not <think>, span, <think> and a box",
    "answer": "the answer was changed",
    "words": "the chain's own words were changed",
}


@dataclass(frozen=True)
class Chain:
    """A right answer of the model's own."""

    key: str
    id: str
    text: str


def mixed(answers: Sequence[dict], difficulty: tuple[float, float]) -> list[str]:
    """Questions whose share of right answers is within `difficulty`, both ends included.

    Args:
        answers: of `read_rollouts`; those that failed do not count.

    Raises:
        ValueError: bounds that are no shares, or no question between them.
    """
    low, high = difficulty
    if not 0 <= low <= high <= 1:
        raise ValueError(f"--difficulty {low},{high}: two shares from 0 to 1, the lower one first")
    right: dict[str, list[float]] = {}
    for one in answers:
        if one["error"] is None:
            right.setdefault(one["id"], []).append(one["score"])
    shares = {id: sum(own) / len(own) for id, own in right.items()}
    found = [id for id, share in shares.items() if low <= share <= high]
    if not found:
        never = sum(share < low for share in shares.values())
        always = sum(share > high for share in shares.values())
        raise ValueError(
            f"no question of mixed success: of {len(shares)}, {never} are answered rightly less "
            f"often than in {low:g} and {always} more often than in {high:g} of their answers: "
            "widen --difficulty, or ask other questions or more --samples of each"
        )
    return found


def select(
    questions: Questions, answers: Sequence[dict], kept: Sequence[str], chains: int, seed: int
) -> tuple[list[Chain], Counter]:
    """Right plain chains of the questions that were kept, in random order, and what fell where.

    Args:
        kept: ids of `mixed`.
        chains: of a question at most, chosen at random.
    """
    fell: Counter = Counter()
    wanted = set(kept)
    by_id: dict[str, list[Chain]] = {}
    for one in answers:
        if one["error"] is not None:
            fell["failed"] += 1
        elif one["id"] not in wanted:
            fell["difficulty"] += 1
        elif not one["score"]:
            fell["wrong"] += 1
        elif one["reward"] != PLAIN or spans_of(questions.tag).search(one["text"]):
            fell["form"] += 1
        else:
            by_id.setdefault(one["id"], []).append(Chain(one["key"], one["id"], one["text"]))
    rng, found = random.Random(seed), []
    for own in by_id.values():
        fell["more"] += max(len(own) - chains, 0)
        found += rng.sample(own, min(chains, len(own)))
    rng.shuffle(found)
    return found, fell


def verdict(questions: Questions, item: Item, chain: str, replied: str, style: str) -> str | None:
    """The gate at which a teacher's reply falls, a key of `TEACHER_GATES`; None if it passes."""
    tag = questions.tag
    said = parse(replied, tag)
    if said.hacked:
        return "empty"
    if questions.reward(replied) != VALID:
        return "form"
    if said.answer != parse(chain, tag).answer or not questions.is_right(item, replied):
        return "answer"
    return None if keeps_words(chain, replied, style, tag) else "words"


def keeps_words(chain: str, replied: str, style: str, tag: str) -> bool:
    """Whether a chain's own words stand in a reply, all of them, in order and no other.

    Tags and spaces may change. A reply in the style "solution" may go on behind its first span.
    """
    own = _words(chain)
    if style == "solution":
        return _words(spans_of(tag).split(replied, maxsplit=1)[0]) == own
    return _words(spans_of(tag).sub(" ", replied)) == own


def mixture(spans: int, chains: int, rate: float, size: int | None = None) -> tuple[int, int]:
    """How many rows get a span and how many stay plain, at exactly this rate; as many as can be.

    Args:
        spans: chains that could have a span, at most; chains: all, each of which may be plain.
        size: of both together at most.

    Raises:
        ValueError: a rate outside [0, 1], or no number of rows that meets it.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"--reflection {rate}: a share of the rows, from 0 to 1")
    share = Fraction(str(rate))
    most = chains if size is None else min(size, chains)
    if share:
        most = min(most, int(spans / share))
    rows = most - most % share.denominator
    if not rows:
        raise ValueError(
            f"--reflection {rate}: of {chains} chains, {spans} with a span, no number of rows has "
            f"exactly this share (it takes {share.denominator} or a multiple): ask more questions, "
            "or give another rate or teacher"
        )
    return int(rows * share), rows - int(rows * share)


def _words(text: str) -> list[str]:
    return re.sub(r"</?think>", " ", text).split()
