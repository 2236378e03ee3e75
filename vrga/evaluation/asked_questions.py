"""What the samples of a run were asked, found again in the run's data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vrga.evaluation.harness import TASKS, load_tasks, quiet, task_index
from vrga.images import read_image


@dataclass(frozen=True)
class AskedQuestion:
    """What one sample was asked, as far as it can still be had.

    Args:
        text: the task's text for it; None where it is not found.
        right: what is right; None where it is not known.
        images: what was shown.
        missing: why there is no text or no image; None where nothing is missing.
    """

    text: str | None = None
    right: str | None = None
    images: tuple[Image.Image, ...] = ()
    missing: str | None = None


class AskedQuestions:
    """The questions of a run's samples, read from its data when they are asked for.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder) / TASKS
        # lmms-eval's task and its rows, or why they cannot be had.
        self._tasks: dict[str, tuple[Any, Sequence[dict]] | str] = {}

    def of(self, task: str, number: int) -> AskedQuestion:
        """The question of a sample; never raises for what is gone, but says so.

        Args:
            task: the sample's task; number: its "id", a row of the task's data.
        """
        if task not in self._tasks:
            self._tasks[task] = self._loaded(task)
        found = self._tasks[task]
        if isinstance(found, str):
            return AskedQuestion(missing=found)
        (task_of, rows), text, right = found, None, None
        try:
            row = rows[number]
            text, right = str(task_of.doc_to_text(row)), _words(task_of.doc_to_target(row))
            images = tuple(read_image(one) for one in task_of.doc_to_visual(row) or ())
        except Exception as error:  # whatever a task's code, or a damaged file, may raise
            return AskedQuestion(text, right, missing=str(error) or type(error).__name__)
        return AskedQuestion(text, right, images)

    def _loaded(self, task: str) -> tuple[Any, Sequence[dict]] | str:
        try:
            quiet()
            found = load_tasks(task, task_index(self.folder, [task]))[task]
            return found, found.eval_docs
        except ImportError:
            return "lmms-eval, which reads the data of tasks, is not installed here"
        except (ValueError, KeyError) as error:
            return str(error).partition(": its questions come")[0]


def _words(target: object) -> str | None:
    """What is right, as text; a list is one of several answers."""
    if isinstance(target, (list, tuple)):
        target = " / ".join(map(str, target))
    return None if target is None or not str(target).strip() else str(target)
