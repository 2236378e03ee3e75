"""Questions with known answers, from a file or drawn for the embedded model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vrga import lookback
from vrga.demo import data
from vrga.evaluation import scoring
from vrga.evaluation.json_text import parsed, read_text
from vrga.evaluation.options import letter_of_key, read_options
from vrga.evaluation.request import Request, request
from vrga.images import located

PROMPTS = tuple(data.PROMPTS)  # direct, cot, back
FIELDS = "id, image or images, question, answer, choices, box"
LINE = "line"
LARGEST = 1e9  # pixels of an image's side


@dataclass(frozen=True)
class Item:
    """One question.

    Args:
        images: of Pillow, paths, or what `read_image` reads.
        answer: what is right; None where it is not known, and nothing is scored.
        choices: for multiple choice, the options in order: A, B, ...; or letter -> option.
        box: what the question is about, in pixels of the first image (left, top, right, bottom),
            or None.
        boxed: prompts after which the answer must stand in \\boxed{}.
        texts: the user's text for each of `PROMPTS`; the question stands in all of them.
    """

    id: str
    question: str
    answer: str | None
    images: tuple[Image.Image | Path | str, ...]
    texts: dict[str, str] = field(repr=False)
    choices: Sequence[str] | Mapping[str, str] = ()
    box: tuple[float, float, float, float] | None = None
    boxed: tuple[str, ...] = ("cot", "back")

    def request(self, prompt: str, key: str, **options) -> Request:
        """The request that asks it."""
        return request(
            key, self.texts[prompt], self.images, self.question, box=self.box, options=options
        )

    def is_right(self, text: str, prompt: str) -> bool | None:
        """Whether a text gives the answer; prompts that ask for a box count the box alone.

        None where the answer is not known.
        """
        if self.answer is None:
            return None
        box = prompt in self.boxed
        if self.choices:
            target = scoring.choice(self.answer, self.choices)
            return target is not None and scoring.is_option(text, target, self.choices, box=box)
        if self.answer.strip().lower() in ("yes", "no"):
            return scoring.yes_no(text, box=box) == (self.answer.strip().lower() == "yes")
        return scoring.same_math(scoring.answer(text, box=box), self.answer)


def read_items(path: Path, style: str = "semantic") -> list[Item]:
    """Questions from a file of JSON lines, or of one JSON list of them.

    Image paths count from the file's folder; an image may also stand in the file, in base64. A
    field that is null counts as absent, but an answer that is null is one that is not known: such
    a question is asked and not scored. Half a surrogate pair in a text becomes U+FFFD.

    Args:
        style: of `lookback.prompt`, for the "back" prompt.

    Raises:
        ValueError: a line that is no question; the message names it.
        OSError: no such file.
    """
    items: dict[str, Item] = {}
    for place, number, row in _rows(Path(path)):
        try:
            item = _item(
                parsed(row) if place == LINE else row, str(number), Path(path).parent, style
            )
        except (ValueError, KeyError, TypeError) as error:
            told = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"{path}, {place} {number}: {told}; its fields are {FIELDS}"
            ) from error
        if item.id in items:
            raise ValueError(f"{path}, {place} {number}: the id {item.id!r} stands twice")
        items[item.id] = item
    if not items:
        raise ValueError(f"{path} holds no question")
    return list(items.values())


def _rows(path: Path) -> Iterator[tuple[str, int, Any]]:
    """What a row is called, its number from 1, and the row, of which a line is not parsed yet."""
    try:
        text = read_text(path)
    except UnicodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    if text.lstrip().startswith("["):
        try:
            listed: Any = parsed(text)
        except ValueError as error:
            raise ValueError(f"{path} is no JSON list: {error}") from error
        for number, row in enumerate(listed, 1):
            yield "question", number, row
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield LINE, number, line


def _item(row: object, number: str, folder: Path, style: str) -> Item:
    if not isinstance(row, dict):
        raise ValueError(f"{row!r:.80} is no object")
    unknown = "answer" in row and row["answer"] is None
    row = {name: value for name, value in row.items() if value is not None}
    given = {name: row[name] for name in ("image", "images") if name in row}
    images = given["images"] if "images" in given else list(given.values())
    listed = isinstance(images, list) and all(isinstance(x, str) and x.strip() for x in images)
    if not listed or len(given) > 1:
        raise ValueError(
            f"{given!r:.200}: image is one path, images a list of paths; give one of them, or "
            "neither where a question has no image"
        )
    question = _words(row, "question")
    choices = read_options(row.get("choices"))
    answer = None if unknown else letter_of_key(row.get("choices"), _words(row, "answer"))
    asked = question
    if choices:
        asked = "\n".join([question, *(f"{a}. {choice}" for a, choice in choices.items())])
        if answer is not None and scoring.choice(answer, choices) is None:
            raise ValueError(
                f"the answer {answer!r} is none of the choices {tuple(choices.values())}"
            )
    texts = {
        prompt: lookback.prompt(asked, style if prompt == "back" else prompt)[0]["content"][-1][
            "text"
        ]
        for prompt in PROMPTS
    }
    id = row.get("id", number)
    if isinstance(id, bool) or not isinstance(id, (str, int)):
        raise ValueError(f"id {id!r} is no text and no whole number")
    return Item(
        id=str(id),
        question=question,
        answer=answer,
        images=tuple(located(image, folder) for image in images),
        texts=texts,
        choices=choices,
        boxed=tuple(p for p, text in texts.items() if p != "direct" and "\\boxed" in text),
        box=_box(row.get("box")),
    )


def _words(row: dict, name: str) -> str:
    """A field that must say something."""
    value = row[name]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}: write a text or a number")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{name} {value!r:.80} is no text: write one text or number")
    if not str(value).strip():
        raise ValueError(f"{name} is empty")
    return str(value)


def _box(box: object) -> tuple[float, float, float, float] | None:
    if box is None:
        return None
    if not (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in box)
        and all(abs(x) <= LARGEST for x in box)
    ):
        raise ValueError(f"box {box!r:.80} is not [left, top, right, bottom] in pixels")
    left, top, right, bottom = map(float, box)
    if not (0 <= left < right and 0 <= top < bottom):
        raise ValueError(f"box {box!r} is empty: left < right and top < bottom, from 0 on")
    return left, top, right, bottom


def drawn_items(samples: Sequence[data.Sample]) -> list[Item]:
    """The embedded model's questions, in the words it was trained with."""
    return [
        Item(
            id=str(number),
            question=sample.question,
            answer=sample.color,
            images=(sample.image,),
            texts={
                prompt: text.format(question=sample.question)
                for prompt, text in data.PROMPTS.items()
            },
            box=sample.box,
        )
        for number, sample in enumerate(samples)
    ]
