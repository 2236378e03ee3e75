"""The answer that a prompt ends amid: what the model is to go on with."""

from __future__ import annotations

from collections.abc import Collection

from vrga.annotations import Tokenizer
from vrga.hf.question_ends import TEXT_READ
from vrga.hf.turns import TurnMarks
from vrga.method.prompt import Prompt


def begun_answers(
    prompt: Prompt, ends: Collection[int], marks: TurnMarks | None, tokenizer: Tokenizer
) -> list[list[int]]:
    """The tokens of each row's answer so far; none where no answer has begun, or where the chat
    template tells of none.

    Args:
        ends: ids that end a turn.
        marks: of the chat template; None: none are known.
    """
    if marks is None or prompt.ids is None:
        return [[] for _ in prompt.grids]
    text = prompt.visible & ~prompt.image
    return [
        _begun(ids[seen].tolist()[-TEXT_READ:], set(ends), marks, tokenizer)
        for ids, seen in zip(prompt.ids, text, strict=True)
    ]


def _begun(tokens: list[int], ends: set[int], marks: TurnMarks, tokenizer: Tokenizer) -> list[int]:
    """What stands behind the last turn that is closed, where no other turn has opened."""
    last = max((place for place, token in enumerate(tokens) if token in ends), default=0)
    tail = tokens[last:]

    def decode(count: int) -> str:
        return tokenizer.decode(tail[:count], skip_special_tokens=False)

    text = decode(len(tail))
    place = text.rfind(marks.closing)
    length = place + len(marks.closing)
    if place < 0 or (marks.opening and marks.opening in text[length:]):
        return []
    low, high = 0, len(tail)  # the shortest beginning that has the marks
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(decode(middle)) >= length else (middle, high)
    return tail[high:]
