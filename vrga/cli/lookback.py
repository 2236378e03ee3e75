"""`vrga lookback`: does asking for <back> help without training, and what does VRGA add?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vrga.beforehand import PROMPTS, STEERINGS, check_known
from vrga.cli.options import (
    Batch,
    Data,
    Gain,
    Limit,
    Longest,
    Model,
    Output,
    Resume,
    Split,
    Start,
    Style,
    check_questions,
    console,
    said,
    typed,
)
from vrga.cli.status import guarded
from vrga.config import VRGAConfig


def lookback(
    data: Data = None,
    model: Model = None,
    output: Output = Path("out/lookback"),
    prompts: Annotated[str, typer.Option(help="Of direct, cot, back.")] = "direct,cot,back",
    steering: Annotated[
        str, typer.Option(help="Of off, always, back, back+relocate.")
    ] = "off,always,back,back+relocate",
    style: Style = "semantic",
    preset: Start = None,
    gain: Gain = None,
    limit: Limit = None,
    split: Split = "clean",
    batch_size: Batch = 8,
    max_new_tokens: Longest = 2048,
    resume: Resume = False,
) -> None:
    """Compare direct, cot and back prompts without VRGA, with it, and with it inside <back>."""
    check_known("--prompts", prompts.split(","), PROMPTS)
    check_known("--steering", steering.split(","), STEERINGS)
    if gain is not None:
        VRGAConfig(gain=gain)  # refuses what is none
    check_questions(data, split, style, model, output)
    own = said(preset, gain, model)
    from vrga.analysis.lookback import experiment
    from vrga.analysis.study import Study

    study = Study(
        output, data, model, limit, split, style=style, batch=batch_size,
        max_new_tokens=max_new_tokens, resume=resume, command=typed(), console=console,
    )  # fmt: skip
    chosen = {"prompts": prompts.split(","), "steerings": steering.split(",")}
    raise typer.Exit(
        guarded(lambda: experiment(study, config=own.config, **chosen), output, console)
    )
