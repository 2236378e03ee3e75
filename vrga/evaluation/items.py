"""Questions with known answers, from a file or drawn for the embedded model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase

from PIL import Image

from vrga import lookback
from vrga.demo import data
from vrga.evaluation import scoring
from vrga.evaluation.asking import Request, request

PROMPTS = tuple(data.PROMPTS)  # direct, cot, back
FIELDS = "id, image or images, question, answer, choices, box"


@dataclass(frozen=True)
class Item:
    """One question.

    Args:
        images: PIL images or paths.
        answer: what is right.
        choices: for multiple choice, the options in order: A, B, ...
        box: what the question is about, in pixels of the first image (left, top, right, bottom),
            or None.
        boxed: prompts after which the answer must stand in \\boxed{}.
        texts: the user's text for each of `PROMPTS`; the question stands in all of them.
    """

    id: str
    question: str
    answer: str
    images: tuple[Image.Image | Path, ...]
    texts: dict[str, str] = field(repr=False)
    choices: tuple[str, ...] = ()
    box: tuple[float, float, float, float] | None = None
    boxed: tuple[str, ...] = ("cot", "back")

    def request(self, prompt: str, key: str, **options) -> Request:
        """The request that asks it."""
        return request(
            key, self.texts[prompt], self.images, self.question, box=self.box, options=options
        )

    def is_right(self, text: str, prompt: str) -> bool:
        """Whether a text gives the answer; prompts that ask for a box count the box alone."""
        box = prompt in self.boxed
        if self.choices:
            letters = dict(zip(ascii_uppercase, self.choices, strict=False))
            target = scoring.choice(self.answer, letters)
            return target is not None and scoring.choice(text, letters, box=box) == target
        if self.answer.strip().lower() in ("yes", "no"):
            return scoring.yes_no(text, box=box) == (self.answer.strip().lower() == "yes")
        return scoring.same_math(scoring.answer(text, box=box), self.answer)


def read_items(path: Path, style: str = "semantic") -> list[Item]:
    """Questions from a file of JSON lines; image paths count from the file's folder.

    Args:
        style: of `lookback.prompt`, for the "back" prompt.

    Raises:
        ValueError: a line that is no question; the message names it.
        OSError: no such file.
    """
    items: dict[str, Item] = {}
    for number, line in enumerate(Path(path).read_text("utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = _item(json.loads(line), str(number), Path(path).parent, style)
        except (ValueError, KeyError, TypeError) as error:
            told = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}, line {number}: {told}; its fields are {FIELDS}") from error
        if item.id in items:
            raise ValueError(f"{path}, line {number}: the id {item.id!r} stands twice")
        items[item.id] = item
    if not items:
        raise ValueError(f"{path} holds no question")
    return list(items.values())


def _item(row: dict, number: str, folder: Path, style: str) -> Item:
    images = row["images"] if "images" in row else [row["image"]] if row.get("image") else []
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        given = {name: row[name] for name in ("image", "images") if name in row}
        raise ValueError(f"{given}: image is one path, images a list of paths")
    question, choices = str(row["question"]), tuple(map(str, row.get("choices") or ()))
    asked = question
    if choices:
        options = (f"{a}. {choice}" for a, choice in zip(ascii_uppercase, choices, strict=False))
        asked = "\n".join([question, *options])
    if len(choices) > len(ascii_uppercase):
        raise ValueError(f"{len(choices)} choices; at most {len(ascii_uppercase)}")
    if choices and scoring.choice(str(row["answer"]), choices) is None:
        raise ValueError(f"the answer {row['answer']!r} is none of the choices {choices}")
    box = row.get("box")
    if box is not None and (not isinstance(box, (list, tuple)) or len(box) != 4):
        raise ValueError(f"box {box!r} is not [left, top, right, bottom]")
    texts = {
        prompt: lookback.prompt(asked, style if prompt == "back" else prompt)[0]["content"][-1][
            "text"
        ]
        for prompt in PROMPTS
    }
    return Item(
        id=str(row.get("id", number)),
        question=question,
        answer=str(row["answer"]),
        images=tuple(folder / image for image in images),
        texts=texts,
        choices=choices,
        boxed=tuple(p for p, text in texts.items() if p != "direct" and "\\boxed" in text),
        box=None if box is None else tuple(map(float, box)),
    )


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
