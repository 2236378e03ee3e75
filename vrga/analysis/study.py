"""What an experiment asks, of which model, in which arms, and where its results go.

Look-Back's first experiment, tuning and the analyses run on it: each says which arms there are and
what is made of their samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console

from vrga.annotations import Model, Processor
from vrga.demo.data import TEST_SEEDS
from vrga.demo.drawn import drawn_of
from vrga.evaluation.arms import Arm, run_arms
from vrga.evaluation.items import Item, read_items
from vrga.evaluation.region_attention import cells_in
from vrga.evaluation.store import ANSWERED, Store, fingerprint, write_json
from vrga.evaluation.wording import Table, say_config
from vrga.hf.checkpoints import load
from vrga.images import read_image
from vrga.intervals import Interval
from vrga.plots import save
from vrga.recording.package_versions import versions_and_device

FIRST = TEST_SEEDS.start + 100_000  # seed of the first drawn question; those before are others'
APART = 10_000  # questions drawn with another --seed start this much later
RESULTS, TABLE = "results.json", "table.md"


@dataclass(frozen=True)
class Study:
    """The options that all experiments share.

    Args:
        output: folder of results.json, table.md, the figure and, where answers are kept,
            samples.jsonl.
        data: questions, see `read_items`; None draws them for the embedded model.
        model: checkpoint folder or hub id; None is the embedded model.
        limit: questions; None is all of the file's, or the experiment's own number of drawn ones.
        split: of the drawn questions, see `drawn_of`.
        style: of the back prompt, for a file's questions.
        batch: rows per call of generate.
        max_new_tokens: longest answer; None is 128 for the embedded model, else 2048.
        seed: of the drawn questions and of random heads, or of the halves of a file.
        resume: go on with the run in `output`.
        command: what the user typed, for results.json.

    Raises:
        ValueError: a split with a data file.
    """

    output: Path
    data: Path | None = None
    model: str | None = None
    limit: int | None = None
    split: str = "clean"
    style: str = "semantic"
    batch: int = 32
    max_new_tokens: int | None = None
    seed: int = 0
    resume: bool = False
    command: str = ""
    console: Console = field(default_factory=Console)

    def __post_init__(self):
        if self.data is not None and self.split != "clean":
            raise ValueError("--split is for drawn questions: leave it out with a data file")
        if self.data is None and (self.limit or 0) > APART:
            raise ValueError(f"--limit {self.limit}: at most {APART} drawn questions")

    @property
    def longest(self) -> int:
        """Tokens of an answer at most."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return 128 if self.model is None else 2048

    @property
    def first(self) -> int:
        """Seed of the first question that an analysis draws.

        Raises:
            ValueError: more seeds are not kept apart.
        """
        seeds = (len(TEST_SEEDS) - (FIRST - TEST_SEEDS.start)) // APART
        if not 0 <= self.seed < seeds:
            raise ValueError(f"--seed {self.seed}: 0 to {seeds - 1}")
        return FIRST + APART * self.seed

    def questions(self, drawn: int, first: int) -> list[Item]:
        """The questions of the file, or drawn ones.

        Args:
            drawn: how many to draw without a limit.
            first: seed of the first drawn one.
        """
        if self.data is not None:
            return read_items(self.data, self.style)[: self.limit]
        return drawn_of(self.split, self.limit or drawn, first)

    def items(self, drawn: int, *, boxes: bool = False) -> list[Item]:
        """The questions of an analysis, their boxes checked.

        Args:
            drawn: how many to draw without a limit.
            boxes: every question must have one.

        Raises:
            ValueError: a question without a box that needs one, or a box outside its image.
            OSError: an image that cannot be read.
        """
        items = self.questions(drawn, self.first)
        for item in items if self.data is not None else ():
            if item.box is not None:
                check_box(item)
            elif boxes:
                raise ValueError(
                    f"{self.data}: question {item.id!r} has no box, and this analysis is about "
                    "attention on the box: add box: [left, top, right, bottom] in pixels"
                )
        return items

    def load(self) -> tuple[Model, Processor]:
        """The model and its processor; the embedded model in float32."""
        return load(dtype=torch.float32) if self.model is None else load(self.model)

    def settings(self, analysis: str, items: Sized, **own) -> dict:
        """What decides the samples' contents of an analysis; `own` are its options."""
        return {"analysis": analysis, "seed": self.seed, **self.common(len(items)), **own}

    def common(self, questions: int | Sequence[int]) -> dict:
        """Settings of every experiment."""
        return {
            "data": None if self.data is None else str(self.data),
            "data_hash": fingerprint(self.data),
            "model": self.model,
            "questions": questions,
            "split": self.split if self.data is None else None,
            "style": self.style,
            "max_new_tokens": self.longest,
        }

    def store(self, settings: dict, part: str = "") -> Store:
        """The samples' folder, or that of a part of the run; refuses before anything is loaded."""
        return Store(self.output / part, settings, resume=self.resume, fields=ANSWERED)

    def ask(
        self,
        loaded: tuple[Model, Processor],
        items: Sequence[Item],
        arms: Sequence[Arm],
        store: Store,
        **more,
    ) -> dict[str, list[dict]]:
        """The samples of each arm by its name; see `run_arms` for `more`."""
        model, processor = loaded
        return run_arms(
            model, processor, items, arms, store, batch=self.batch, max_new_tokens=self.longest,
            console=self.console, **more,
        )  # fmt: skip

    def run(
        self,
        items: Sequence[Item],
        arms: Sequence[Arm],
        settings: dict,
        loaded: tuple[Model, Processor] | None = None,
        **more,
    ) -> dict[str, list[dict]]:
        """As `ask`, of the arms of an analysis; says how they steer.

        Args:
            loaded: model and processor, where they are needed before; None loads them.
        """
        store = self.store(settings)
        steered = {arm.steering: arm.config for arm in arms if arm.config is not None}
        if steered:
            told = {config.name: name for name, config in reversed(steered.items())}
            say_config(self.console, "; ".join(f"{told[x]}: {x}" for x in reversed(told)))
        return self.ask(loaded or self.load(), items, arms, store, **more)

    def finish(
        self, settings: dict, found: Mapping, tables: Sequence[Table], figure: Figure | None = None
    ) -> dict:
        """Print the tables; write results.json, table.md and the figure; what results.json holds.

        Args:
            figure: of an analysis, whose name it gets.
        """
        for table in tables:
            self.console.print(table)
        results = {
            "command": self.command,
            "settings": settings,
            "versions": versions_and_device(),
            **found,
        }
        self.output.mkdir(parents=True, exist_ok=True)
        write_json(self.output / RESULTS, results)
        parts = (part for one in tables for part in (one.title, one.markdown(), one.caption))
        (self.output / TABLE).write_text("\n\n".join(map(str, filter(None, parts))) + "\n", "utf-8")
        if figure is not None:
            path = save(figure, self.output / f"{settings['analysis']}.png")
            self.console.print(f"figure: {path}", style="dim", soft_wrap=True)
        return results


def image_size(item: Item) -> tuple[int, int]:
    """Width and height of a question's first image, in pixels."""
    return read_image(item.images[0]).size


def check_box(item: Item) -> None:
    """Raise ValueError unless the box of a question that has one is a part of its first image."""
    assert item.box is not None
    if not item.images:
        raise ValueError(f"question {item.id!r} has a box and no image")
    try:
        cells_in(item.box, image_size(item), (1, 1))
    except ValueError as error:
        raise ValueError(f"question {item.id!r}: {error}") from error


def failures(samples: Mapping[str, Sequence[dict]]) -> int:
    """How many samples of all arms failed."""
    return sum(one["error"] is not None for own in samples.values() for one in own)


def paired_table(
    split: str, questions: int, columns: Sequence[str], rows: Iterable[Sequence[str]]
) -> Table:
    """Rows about one split's questions, whose differences are paired by question."""
    told = f"{split}, {questions} questions; brackets: 95 % intervals, differences paired"
    return Table(*columns, rows=rows, title=told)


def verdict(change: Interval) -> str:
    """Whether a difference that the paper finds positive is: by its interval."""
    _, low, high = change
    if math.isnan(low):
        return "cannot tell"
    return "holds" if low > 0 else "reversed" if high < 0 else "not clear"
