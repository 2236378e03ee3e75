"""Which questions a training asks: those of a file, or drawn ones for the embedded model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from vrga.demo.data import TEST_SEEDS, TRAIN_SEEDS
from vrga.demo.drawn import check_drawn, drawn_of
from vrga.evaluation.items import Item, read_items
from vrga.evaluation.store import fingerprint
from vrga.lookback import TAG, check_tag, reward, spans_of

# Drawn questions: far behind those that the embedded model was trained on, and apart by seed.
FIRST = {"train": TRAIN_SEEDS.start + 60_000_000, "test": TEST_SEEDS.start + 500_000}
APART, SEEDS, DRAWN = 10_000, 40, 500


@dataclass(frozen=True)
class Questions:
    """The questions of one run and how they are asked, from its settings alone.

    Args:
        data: a file, see `read_items`; None draws questions for the embedded model.
        hash: what the file holds; None reads it when the questions are, or drawn ones.
        prompt: "cot", or a text with {question} and \\boxed{}.
        tag: the word between whose tags the model looks back.
        split, seed, part: of drawn questions; "train" and "test" never meet.
        limit: the first so many; None is all of a file, and `DRAWN` drawn ones.

    Raises:
        ValueError: a prompt, tag, split or seed that cannot be.
    """

    data: str | None = None
    hash: str | None = None
    prompt: str = "cot"
    tag: str = TAG
    split: str = "similar"
    seed: int = 0
    part: str = "train"
    limit: int | None = None

    def __post_init__(self):
        check_tag(self.tag)
        if self.prompt != "cot" and not ("{question}" in self.prompt and "\\boxed" in self.prompt):
            raise ValueError(
                f"--prompt {self.prompt!r}: cot, or a text with {{question}} that asks for the "
                "answer in \\boxed{}"
            )
        if self.data is None:
            check_drawn(self.split)
            if self.prompt != "cot":
                raise ValueError("--prompt is for a question file: drawn questions have their own")
            if not 0 <= self.seed < SEEDS:
                raise ValueError(f"--seed {self.seed}: 0 to {SEEDS - 1} for drawn questions")
            if self.limit is not None and self.limit > APART:
                raise ValueError(f"--limit {self.limit}: at most {APART} drawn questions")

    @property
    def style(self) -> str:
        """The name of the prompt among an item's texts."""
        return "cot" if self.prompt == "cot" else "back"

    def items(self) -> list[Item]:
        """The questions with a known answer, in order.

        Raises:
            ValueError: none has an answer, or the file is another one than it was.
            OSError: no such file.
        """
        if self.data is None:
            seed = FIRST[self.part] + APART * self.seed
            return drawn_of(self.split, self.limit or DRAWN, seed)
        path = Path(self.data)
        if self.hash is not None and fingerprint(path) != self.hash:
            raise ValueError(
                f"{path} is not the file that this run asked: it has changed since; bring it back, "
                "or begin again with another --output"
            )
        style = "semantic" if self.prompt == "cot" else self.prompt
        items = read_items(path, style)[: self.limit]
        known = [item for item in items if item.answer is not None]
        if not known:
            raise ValueError(
                f"{path}: no question has an answer, and without one nothing can be rewarded: give "
                "each line an answer"
            )
        return known

    def without_answer(self) -> int:
        """How many questions of a file are left out, for nobody knows their answer."""
        if self.data is None:
            return 0
        items = read_items(Path(self.data))[: self.limit]
        return sum(item.answer is None for item in items)

    def is_right(self, item: Item, text: str) -> bool:
        """Whether a text gives the answer, outside the spans of the tag."""
        return bool(item.is_right(spans_of(self.tag).sub(" ", text), self.style))

    def reward(self, text: str) -> float:
        """The format reward of a text."""
        return reward(text, self.tag)

    def text(self, item: Item) -> str:
        """What the user says."""
        return item.texts[self.style]

    def settings(self) -> dict:
        """JSON values from which `of` makes the same again."""
        held = asdict(self)
        return held | {"hash": None if self.data is None else fingerprint(Path(self.data))}

    @classmethod
    def of(cls, settings: Mapping) -> Questions:
        """The questions that a run's settings name."""
        return cls(**{name: settings[name] for name in cls.__dataclass_fields__})
