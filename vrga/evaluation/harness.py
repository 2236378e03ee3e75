"""lmms-eval, as it is used here: its tasks by name, its data, and its silence."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import tqdm

from vrga.evaluation import local

if TYPE_CHECKING:
    from lmms_eval.tasks import TaskManager

TASKS = "tasks"  # folder of a run, with the tasks that were made of files


def task_index(folder: Path, names: Collection[str]) -> TaskManager:
    """lmms-eval's index of tasks.

    Args:
        folder: with tasks that were made of files; they come before the packaged ones.
        names: what is wanted. Indexing lmms-eval's own tasks takes seconds, and is left out where
            none of them is.
    """
    from lmms_eval.tasks import TaskManager

    places = [str(folder.absolute()), str(local.PACKAGED)]
    theirs = set(names) - set(local.TASKS) != set()
    return TaskManager("ERROR", include_path=places, include_defaults=theirs, model_name="vrga")


def load_tasks(name: str, index: object) -> dict:
    """A task, or those of a group, with their data, by their names.

    Raises:
        ValueError: the data cannot be had.
    """
    from lmms_eval.tasks import get_task_dict

    try:
        return get_task_dict([name], index, "chat")
    except Exception as error:  # of the hub, of datasets, of the network, or of the task's code
        attempt = getattr(error, "last_attempt", None)  # it was tried several times
        cause = error if attempt is None else attempt.exception() or error
        told = (str(cause).strip() or "no reason given").splitlines()[0]
        raise ValueError(
            f"the data of task {name} cannot be loaded ({type(cause).__name__}: {told}): its "
            "questions come from the Hugging Face hub, which needs a connection and, for some, a "
            "token (HF_TOKEN); or give their files with --data"
        ) from None


def check_closer_tasks(found: Mapping) -> None:
    """Refuse tasks whose questions no closer look is taken at.

    Args:
        found: as of `load_tasks`, a group's tasks in a mapping of their own.

    Raises:
        ValueError: a task of videos, of sampled answers or of beams.
    """
    for name, task in found.items():
        if isinstance(task, Mapping):
            check_closer_tasks(task)
            continue
        given = task.config.generation_kwargs or {}
        sampled = given.get("do_sample") and given.get("temperature", 1.0) != 0
        if sampled or (given.get("num_beams") or 1) > 1:
            raise ValueError(
                f"task {name} asks for sampled answers or beams, and a closer look is taken by "
                "greedy ones alone: leave out --zoom"
            )
        messages = task.doc_to_messages(task.eval_docs[0]) if len(task.eval_docs) else []
        kinds = {part["type"] for one in messages for part in one["content"]}
        if "video" in kinds:
            raise ValueError(
                f"task {name} asks about videos, and a closer look is taken at pictures alone: "
                "leave out --zoom"
            )


def quiet() -> None:
    """Let lmms-eval and datasets speak only of what goes wrong."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    logging.getLogger("datasets").setLevel(logging.ERROR)


@contextlib.contextmanager
def silent():
    """Hold back the bars of lmms-eval, which has no option for it."""
    from lmms_eval import evaluator
    from lmms_eval.api import task

    own = tqdm.tqdm
    for module in (evaluator, task):
        module.tqdm = functools.partial(own, disable=True)
    try:
        yield
    finally:
        for module in (evaluator, task):
            module.tqdm = own
