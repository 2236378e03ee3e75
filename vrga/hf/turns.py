"""Where a chat template says that the user's turns begin and end."""

from __future__ import annotations

from dataclasses import dataclass

from vrga.annotations import Tokenizer
from vrga.text_diff import alike

FIRST, ANSWER, LAST = "qfirstq", "qanswerq", "qlastq"  # contents that no template has


@dataclass(frozen=True)
class TurnMarks:
    """The text around what a user says.

    Args:
        opening: text that stands before it, in a first turn as in later ones.
        closing: text that follows it, up to where the answer begins.
    """

    opening: str
    closing: str

    @classmethod
    def of(cls, tokenizer: Tokenizer, template: str) -> TurnMarks | None:
        """The marks of a template; None where it has none that can be told."""
        text = _rendered(tokenizer, template)
        if text is None:
            return None
        first, answer, last = (text.find(content) for content in (FIRST, ANSWER, LAST))
        if not 0 <= first < answer < last:
            return None
        before, between = text[:first], text[answer + len(ANSWER) : last]
        answered, open_end = text[first + len(FIRST) : answer], text[last + len(LAST) :]
        tail = alike(before[::-1], between[::-1])
        opening = before[len(before) - tail :].strip()
        closing = answered[: alike(answered, open_end)].strip()
        return cls(opening, closing) if closing else None

    def question(self, text: str) -> tuple[int, int] | None:
        """Where the last question stands in a prompt, as (first, end) of its characters.

        A last turn that is not closed goes on to the end of the text. None where the text has
        none of the marks, because it was not made by this template.
        """
        end = text.rfind(self.closing)
        start = text.rfind(self.opening) if self.opening else -1
        if start > end:  # open, as a few-shot prompt's last turn
            return start + len(self.opening), len(text)
        if end < 0:
            return None
        start = text.rfind(self.opening, 0, end) if self.opening else -1
        return (start + len(self.opening) if start >= 0 else 0), end


def _rendered(tokenizer: Tokenizer, template: str) -> str | None:
    """A conversation of two turns up to where an answer begins; contents as parts, or as plain
    text where a template wants."""
    for content in (lambda text: [{"type": "text", "text": text}], lambda text: text):
        messages = [
            {"role": "user", "content": content(FIRST)},
            {"role": "assistant", "content": content(ANSWER)},
            {"role": "user", "content": content(LAST)},
        ]
        try:
            text = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except Exception:  # a template is somebody's program: it may raise anything
            continue
        if all(text.count(mark) == 1 for mark in (FIRST, ANSWER, LAST)):
            return text
    return None
