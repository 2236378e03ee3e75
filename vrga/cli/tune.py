"""`vrga tune`: choose a configuration on some questions, and report it on others."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vrga.analysis.sweeps import swept
from vrga.beforehand import PROMPTS, check_known
from vrga.cli import options
from vrga.cli.status import guarded
from vrga.evaluation.wording import say_config
from vrga.hf.chosen_config import chosen_for


def tune(
    sweep: Annotated[
        list[str], typer.Option(help="field=value,value,... of the config; may be repeated.")
    ],
    data: options.Data = None,
    model: options.Model = None,
    output: options.Output = Path("out/tune"),
    preset: Annotated[
        options.Preset | None,
        typer.Option(
            help="Fields that are not swept; the checkpoint's own, else paper, if absent."
        ),
    ] = None,
    prompt: options.Prompt = "cot",
    style: options.Style = None,
    split: options.Split = None,
    limit: Annotated[
        int | None, typer.Option(min=4, help="Questions in both halves; 1000 drawn ones.")
    ] = None,
    batch_size: options.Batch = 8,
    max_new_tokens: options.Longest = 2048,
    seed: Annotated[int, typer.Option(help="Of the halves of a file.")] = 0,
    resume: options.Resume = False,
) -> None:
    """Choose a configuration on one half of the questions, and report it on the other half."""
    check_known("--prompt", [prompt], PROMPTS)
    if seed and data is None:
        raise ValueError(f"--seed {seed}: of the halves of a file, and none is given: leave it out")
    base = chosen_for(model, preset and preset.value)
    configs = swept(base.config, sweep)
    study = options.study_of(
        output, data, model, limit, split, style=style, prompts=[prompt], batch=batch_size,
        max_new_tokens=max_new_tokens, seed=seed, resume=resume,
    )  # fmt: skip
    say_config(options.errors, base)
    from vrga.analysis.tuning import tune

    run = partial(tune, study, configs, prompt=prompt)
    raise typer.Exit(guarded(run, output, options.console))
