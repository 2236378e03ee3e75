"""Where the question of a prompt ends: by its tokens, its chat template, or its text."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vrga.annotations import Tokenizer
from vrga.hf.turns import TurnMarks
from vrga.method.prompt import Prompt

TEXT_READ = 8192  # text tokens at the end of a prompt in which the last turn is looked for
# A callable's ids are None where the model was given embeddings.
Query = str | int | Tensor | Sequence | Callable[[Any, Tensor], Tensor]


def user_end(
    prompt: Prompt,
    end_tokens: set[int],
    vision_tokens: set[int],
    *,
    header: int = 8,
    unlisted: int = 0,
) -> Tensor:
    """Default query without a chat template: the last text token of each row's last user turn.

    The turn is taken to end at the row's last end-of-turn token. It is open, and goes on to the
    end of the row, where that token has an image behind it, no text before it, or more than
    `header` tokens behind it. A question that stands before its image cannot see it: then it is
    the last token of the turn.

    Args:
        header: most tokens that a template puts between a closed turn and the answer.
        unlisted: so many tokens at the end of a row without an end-of-turn token close its turn
            and begin the answer.

    Returns:
        int64 [B]; 0 where a row has neither text nor image.

    Raises:
        ValueError: no token ids, or an image without any text.
    """
    if prompt.ids is None:
        raise ValueError(
            "the question cannot be found: the model was given inputs_embeds, not input_ids; set "
            "patch.query to the position of each row's last question token"
        )
    length = prompt.ids.shape[1]
    ends = torch.isin(prompt.ids, torch.tensor(sorted(end_tokens), dtype=torch.int64))
    ends &= prompt.visible
    marks = torch.isin(prompt.ids, torch.tensor(sorted(vision_tokens), dtype=torch.int64))
    words = prompt.visible & ~prompt.image & ~ends
    found = torch.zeros(len(prompt.ids), dtype=torch.int64)
    for row in range(len(prompt.ids)):
        end = _last(ends[row], length)
        if end is None:
            closed, image = length - unlisted, _last(prompt.image[row], length)
            last = _last(words[row] & ~marks[row], closed)
            told = last is not None and (image is None or last > image)
            end = closed if told else length
        elif (
            prompt.image[row, end:].any()
            or not words[row, :end].any()
            or int(prompt.visible[row, end + 1 :].sum()) > header
        ):
            end = length
        image, last = _last(prompt.image[row], end), _last(words[row] & ~marks[row], end)
        if last is not None and image is not None and last < image:
            last = _last(words[row], end)
        if last is None and prompt.grids[row]:
            raise ValueError(
                f"row {row} has an image but no text token before the end of its turn: set "
                "patch.query to the position of the question's last token"
            )
        found[row] = 0 if last is None else last
    return found


def _last(where: Tensor, end: int) -> int | None:
    """The last place before `end` where a mask [S] is true; None for none."""
    places = where[:end].nonzero().flatten()
    return int(places[-1]) if len(places) else None


def template_end(prompt: Prompt, decode: Callable, marks: TurnMarks, row: int) -> int | None:
    """The last token of a row's question, as the chat template's marks tell it; None for none.

    Args:
        decode: token ids (list of int) -> text, special tokens included.
    """
    assert prompt.ids is not None  # `user_end` has refused a prompt without
    place = (prompt.visible[row] & ~prompt.image[row]).nonzero().flatten()[-TEXT_READ:]
    tokens = prompt.ids[row, place].tolist()
    text = decode(tokens)
    found = marks.question(text)
    if found is None:
        return None
    start, end = found
    said = len(text[:end].rstrip())
    if said <= start:
        return None  # the turn says nothing
    wanted = text[:said]  # compared, not counted: a part of a character decodes to something else
    return int(place[_shortest(len(tokens), lambda n: decode(tokens[:n])[:said] == wanted) - 1])


def question_end(prompt: Prompt, questions: Sequence[str], decode: Callable) -> Tensor:
    """The position of the token that completes the last occurrence of each row's question.

    Args:
        questions: one text per row.
        decode: token ids (list of int) -> text, special tokens included.

    Returns:
        int64 [B].

    Raises:
        ValueError: a question that its row does not contain.
    """
    if prompt.ids is None:
        raise ValueError("query as text needs input_ids; the model was given inputs_embeds")
    positions = []
    for row, (ids, visible, question) in enumerate(
        zip(prompt.ids, prompt.visible, questions, strict=True)
    ):
        # Image placeholders are left out of the text: they are many and hold no words.
        place = (visible & ~prompt.image[row]).nonzero().flatten()
        tokens = ids[place].tolist()
        said = unicodedata.normalize("NFC", question)  # which tokenizers do to what they read
        total = decode(tokens).count(said)
        if not question or not total:
            raise ValueError(
                f"query={question!r} does not occur in the prompt of row {row}: give the question "
                "as it stands there, or its last token's position"
            )
        # The count of occurrences grows with the prefix, so the last one ends at the first
        # prefix that has them all.
        end = _shortest(len(tokens), lambda n: decode(tokens[:n]).count(said) >= total)  # noqa: B023
        positions.append(int(place[end - 1]))
    return torch.tensor(positions)


def content_tokens(
    prompt: Prompt,
    question: Tensor,
    query: Tensor,
    tokenizer: Tokenizer | None,
    marks: TurnMarks | None,
) -> list[list[int]]:
    """The positions of each row's content tokens, ascending, its query position as the last.

    Args:
        question: the text that they are among, bool [B, S].
        query: int64 [B].
        marks: of the chat template, whose openings are left out; None: none are known.

    Raises:
        ValueError: no ids, or no tokenizer to tell words from other tokens.
    """
    if prompt.ids is None or tokenizer is None:
        raise ValueError(
            "question='whole' needs input_ids, and a tokenizer to tell which of them are words: "
            "vrga.patch(model, config, tokenizer=processor); or set question='last'"
        )
    found = []
    for ids, mask, last in zip(prompt.ids, question, query.tolist(), strict=True):
        place = mask.nonzero().flatten()
        tokens = ids[place].tolist()
        start = 0 if marks is None else _behind(tokens, marks.opening, tokenizer)
        words = [
            at
            for at, token in zip(place[start:].tolist(), tokens[start:], strict=True)
            if at < last and tokenizer.decode([token], skip_special_tokens=True).strip()
        ]
        found.append([*words, last])
    return found


def _behind(tokens: list[int], opening: str, tokenizer: Tokenizer) -> int:
    """How many tokens it takes to have all of the openings that stand in them; 0 for none."""

    def count(number: int) -> int:
        return tokenizer.decode(tokens[:number], skip_special_tokens=False).count(opening)

    if not opening or not (total := count(len(tokens))):
        return 0
    return _shortest(len(tokens), lambda number: count(number) == total)


def _shortest(length: int, holds: Callable[[int], bool]) -> int:
    """How long the shortest beginning of `length` tokens is of which something holds that holds of
    the whole, and of every beginning behind the first of which it does."""
    return bisect_left(range(length), True, lo=1, key=holds)
