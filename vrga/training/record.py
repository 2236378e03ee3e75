"""What is kept of each step of a training, and what is done as it is logged or saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from transformers import TrainerCallback

from vrga.evaluation.store import parts, read_samples, read_settings
from vrga.training.checkpoints import check_room, complete, mark_whole, step_of
from vrga.training.hacking import hacking
from vrga.training.ranks import rank, together

if TYPE_CHECKING:
    from vrga.training.stage import Stage

STEP = {"step": (int,)}  # what a line holds at least
# Our names of what TRL logs; others have "_" for "/".
NAMES = {
    "rewards/accuracy/mean": "accuracy",
    "rewards/format/mean": "form",
    "completions/mean_length": "length",
}
SHOWN = ("loss", "reward", "accuracy", "trigger", "valid", "empty", "copied", "length")


class Record(TrainerCallback):
    """Keeps what is logged of each step, completes checkpoints, and stops a hacked run.

    Args:
        stage: whose steps these are.
        stop: whether a run that is hacked ends.

    Attributes:
        answers: some of the step under way, with what they were paid.
        stopped: why the run was ended early, or None.
    """

    def __init__(self, stage: Stage, processor, stop: bool = False, console: Console | None = None):
        self.stage, self.processor, self.stop = stage, processor, stop
        self.console = console if rank() == 0 else None
        self.answers: list[dict] = []
        self.stopped: str | None = None
        self.steps: list[dict] = []  # every process has all of them
        if stage.checkpoint is not None:
            begun = step_of(stage.checkpoint)
            self.steps = [one for one in read_steps(stage.folder) if one["step"] <= begun]
            self.stopped = hacking(self.steps) if stop else None

    def keep(self, answers: list[dict]) -> None:
        """Take some answers of the step under way."""
        self.answers = answers

    def on_log(self, args, state, control, logs=None, **more):
        if logs is None or "train_runtime" in logs:
            return
        line = {"key": f"step-{state.global_step:06d}", "step": state.global_step, **named(logs)}
        self.steps.append(line)
        if self.stage.store is not None:
            self.stage.store.add([line | {"answers": self.answers}])
        if self.console is not None:
            self.console.print(_told(line, state.max_steps), style="dim", soft_wrap=True)
        check_finite(line)  # before a checkpoint is made of it
        if self.stop and self.stopped is None and "reward" in line:
            # Every process sees the same averages, and so ends at the same step.
            self.stopped = hacking(self.steps)
            if self.stopped is not None:
                control.should_training_stop = control.should_save = True

    def on_step_end(self, args, state, control, model=None, **more):
        if control.should_save and rank() == 0:
            check_room(self.stage.folder, model)

    def on_save(self, args, state, control, **more):
        together()  # others may still be writing their part
        if rank() == 0:
            where = self.stage.folder / f"checkpoint-{state.global_step}"
            complete(where, self.processor, self.stage.base)
            mark_whole(where)


def check_finite(line: Mapping) -> None:
    """Refuse to go on with weights that a step has spoilt.

    Raises:
        ValueError: a loss or a gradient that is no finite number.
    """
    for name in ("loss", "grad_norm"):  # the Trainer logs no loss that is NaN, but its gradient
        if not math.isfinite(line.get(name, 0.0)):
            raise ValueError(
                f"step {line['step']}: {name} is {line[name]}, and the weights are lost; "
                "checkpoints before it are whole: begin again with a lower learning_rate (--set), "
                "in another --output"
            )


def read_steps(folder: Path) -> list[dict]:
    """The record of a stage in the order of its steps.

    Raises:
        ValueError: no run there, or a damaged one.
    """
    held = read_settings(folder)
    found: dict[int, dict] = {}
    for path in parts(folder):
        for one in read_samples(path, held["hash"], STEP)[0]:
            found[one["step"]] = one  # those that were trained again come later
    return [found[step] for step in sorted(found)]


def named(logs: Mapping[str, float]) -> dict[str, float]:
    """What TRL logs, under our names."""
    return {NAMES.get(name, name.replace("/", "_")): value for name, value in logs.items()}


def _told(line: Mapping, steps: int) -> str:
    figures = [f"{name} {line[name]:.3f}" for name in SHOWN if line.get(name) is not None]
    return f"step {line['step']} of {steps}: {', '.join(figures)}"
