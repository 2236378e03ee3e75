"""What several commands share: their options, and what is said and refused before the work."""

from __future__ import annotations

import enum
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from vrga.beforehand import (
    HARD,
    SPLITS,
    check_folder,
    check_readable,
    check_split,
    check_style,
    drawn_split,
)
from vrga.evaluation.wording import say_config
from vrga.hf.chosen_config import Chosen, chosen_for
from vrga.hf.files import check_model, embedded, read_config
from vrga.presets import PRESETS

if TYPE_CHECKING:
    from vrga.analysis.study import Study
    from vrga.closer.zoom import Zoom

console = Console()
errors = Console(stderr=True)


class Dtype(str, enum.Enum):
    """Of the weights; auto is the checkpoint's own."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


# mypy would have the presets written out here once more.
Preset = enum.Enum("Preset", {name: name for name in PRESETS}, type=str)  # type: ignore[misc]

Data = Annotated[
    Path | None,
    typer.Argument(
        help="Questions as JSON lines (image, question, answer, choices, box); drawn ones if "
        "absent."
    ),
]
Model = Annotated[
    str | None, typer.Option(help="Checkpoint folder or hub id; the embedded model if absent.")
]
Start = Annotated[
    Preset | None, typer.Option(help="Configuration; the checkpoint's own, else paper, if absent.")
]
Gain = Annotated[
    float | None, typer.Option(help="Factor on the attention to the region; 1 is off.")
]
Output = Annotated[Path, typer.Option(help="Folder for results.json, table.md and the figure.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Questions; 500 drawn ones.")]
Split = Annotated[
    str | None, typer.Option(help=f"Of drawn questions: {', '.join(SPLITS)}; {HARD} if absent.")
]
Style = Annotated[
    str | None,
    typer.Option(
        help="The back prompt for a file's questions: semantic (if absent), solution, or a text "
        "with {question}."
    ),
]
Prompt = Annotated[str, typer.Option(help="direct, cot or back.")]
Batch = Annotated[int, typer.Option(min=1, help="Rows per call of generate.")]
Longest = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Weights = Annotated[Dtype, typer.Option(help="Of the weights; auto is the checkpoint's own.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of sampling.")]
ZoomOption = Annotated[
    list[str] | None, typer.Option(help="field=value of Zoom, and again for more.")
]
DeviceMap = Annotated[
    str | None, typer.Option(help="auto: a model larger than one GPU; cpu, cuda:1, ...")
]
Validation = Annotated[
    bool, typer.Option("--validation", help="On the questions that numbers are chosen on.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run there.")]


def study_of(
    output: Path,
    data: Path | None,
    model: str | None,
    limit: int | None,
    split: str | None,
    splits: Sequence[str] = SPLITS,
    *,
    style: str | None = None,
    prompts: Sequence[str] = (),
    **more,
) -> Study:
    """The study that the options mean; refuses what can be known to be wrong before imports.

    Args:
        splits: those of drawn questions that are known; more: of `Study`.
        prompts: that are asked; of them back reads the style.
    """
    split = drawn_split(split, data)
    if data is not None and split != "clean":
        raise ValueError("--split is for drawn questions: leave it out with a data file")
    check_split(split, splits)
    check_style(style or "semantic")
    if style is not None and (data is None or "back" not in prompts):
        raise ValueError(
            f"--style {style}: of the prompt back with a file's questions (drawn ones have their "
            "own words): leave it out, or ask that"
        )
    check_readable(data, "questions")
    check_model(model)
    check_folder(output, "--output")
    from vrga.analysis.study import Study

    typed = shlex.join(["vrga", *sys.argv[1:]])
    more |= {"style": style or "semantic", "command": typed, "console": console}
    return Study(output, data, model, limit, split, **more)


def zoom_for(
    model: str | None, zoom: bool, given: Sequence[str] | None, **arms: Any
) -> Zoom | None:
    """How a command looks closer: as chosen for the models inside this package that can, else as
    `Zoom()` says, with fields given as "field=value" over it; None where it does not.

    Args:
        arms: fields that the arms of the command decide; they cannot be given.

    Raises:
        OSError, ValueError: fields without `zoom`, or as of `zoom_with`; a checkpoint that cannot
            look closer, by its config alone, as of `read_config` and `check_kind`.
    """
    if not zoom:
        if given:
            raise ValueError(
                "--zoom-option is about a closer look, and none is asked for: add --zoom (of vrga "
                "lookback: --steering zoom)"
            )
        return None
    from vrga.closer.zoom import Zoom, zoom_with
    from vrga.demo.fine.settings import AT_BACK, CLOSER
    from vrga.hf.second_look import check_kind

    for text in given or []:
        if text.partition("=")[0] in arms:
            raise ValueError(
                f"--zoom-option {text}: the arms of --steering decide that; leave it out"
            )
    own = {"fine": CLOSER, "chain": AT_BACK}
    found = replace(own[model] if model in own else Zoom(), **arms)
    found = zoom_with(found, given or [])
    check_kind(read_config(embedded() if model is None else check_model(model))["model_type"])
    return found


def said(preset: Preset | None, gain: float | None, model: str | None) -> Chosen:
    """How a command steers, said on standard error, away from what it answers."""
    found = chosen_for(model, preset and preset.value, gain)
    say_config(errors, found)
    return found
