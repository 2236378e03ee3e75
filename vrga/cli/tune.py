"""`vrga tune`: choose a configuration on some questions, and report it on others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vrga.analysis.sweeps import swept
from vrga.beforehand import PROMPTS, check_known
from vrga.cli.options import (
    Batch,
    Data,
    Longest,
    Model,
    Output,
    Preset,
    Prompt,
    Resume,
    Split,
    Style,
    check_questions,
    console,
    errors,
    typed,
)
from vrga.cli.status import guarded
from vrga.evaluation.wording import say_config
from vrga.hf.brought import chosen_for


def tune(
    sweep: Annotated[
        list[str], typer.Option(help="field=value,value,... of the config; may be repeated.")
    ],
    data: Data = None,
    model: Model = None,
    output: Output = Path("out/tune"),
    preset: Annotated[
        Preset | None,
        typer.Option(
            help="Fields that are not swept; the checkpoint's own, else paper, if absent."
        ),
    ] = None,
    prompt: Prompt = "cot",
    style: Style = "semantic",
    split: Split = "clean",
    limit: Annotated[
        int | None, typer.Option(min=4, help="Questions in both halves; 1000 drawn ones.")
    ] = None,
    batch_size: Batch = 8,
    max_new_tokens: Longest = 2048,
    seed: Annotated[int, typer.Option(help="Of the halves of a file.")] = 0,
    resume: Resume = False,
) -> None:
    """Choose a configuration on one half of the questions, and report it on the other half."""
    check_known("--prompt", [prompt], PROMPTS)
    check_questions(data, split, style, model, output)
    base = chosen_for(model, preset and preset.value)
    configs = swept(base.config, sweep)
    say_config(errors, base)
    from vrga.analysis.study import Study
    from vrga.analysis.tuning import tune

    study = Study(
        output, data, model, limit, split, style=style, batch=batch_size,
        max_new_tokens=max_new_tokens, seed=seed, resume=resume, command=typed(), console=console,
    )  # fmt: skip
    raise typer.Exit(guarded(lambda: tune(study, configs, prompt=prompt), output, console))
