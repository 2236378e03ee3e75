"""`vrga lookback`: does asking for <back> help without training, and what does VRGA add?"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vrga.beforehand import (
    CHAIN_SPLITS,
    OF_LOOKBACK,
    PROMPTS,
    SEEDS,
    SPLITS,
    STEERINGS,
    check_chain,
    check_known,
)
from vrga.cli import options
from vrga.cli.status import guarded
from vrga.config import VRGAConfig


def lookback(
    data: options.Data = None,
    model: options.Model = None,
    output: options.Output = Path("out/lookback"),
    prompts: Annotated[str, typer.Option(help="Of direct, cot, back.")] = "direct,cot,back",
    steering: Annotated[str, typer.Option(help=f"Of {', '.join(STEERINGS)}.")] = ",".join(
        OF_LOOKBACK
    ),
    uncertainty: Annotated[
        float | None,
        typer.Option(help="Nats from which a distribution is uncertain, if not the preset's."),
    ] = None,
    style: options.Style = None,
    preset: options.Start = None,
    gain: options.Gain = None,
    limit: options.Limit = None,
    split: options.Split = None,
    batch_size: options.Batch = 8,
    max_new_tokens: options.Longest = 2048,
    zoom_option: options.ZoomOption = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Record where the heads look.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of drawn questions.")] = 0,
    resume: options.Resume = False,
) -> None:
    """Compare direct, cot and back prompts without VRGA, with it, and with it inside <back>."""
    check_known("--prompts", prompts.split(","), PROMPTS)
    check_known("--steering", steering.split(","), STEERINGS)
    check_chain(split, model)
    if not 0 <= seed < SEEDS:
        raise ValueError(f"--seed {seed}: 0 to {SEEDS - 1}")
    if gain is not None:
        VRGAConfig(gain=gain)  # refuses what is none
    if uncertainty is not None:
        VRGAConfig(when="uncertain", uncertainty=uncertainty)
        if "uncertain" not in steering:
            raise ValueError(
                f"--uncertainty {uncertainty:g} is read by the arms uncertain and "
                f"uncertain+relocate, and --steering is {steering}: name one, or leave it out"
            )
    study = options.study_of(
        output, data, model, limit, split, (*SPLITS, *CHAIN_SPLITS), style=style,
        prompts=prompts.split(","), batch=batch_size, max_new_tokens=max_new_tokens, seed=seed,
        resume=resume,
    )  # fmt: skip
    closer = options.zoom_for(
        "chain" if model == "fine" or split in CHAIN_SPLITS else model, "zoom" in steering,
        zoom_option, when="back" if "back+zoom" in steering else "question", seek="back",
    )  # fmt: skip
    own = options.said(preset, gain, model)
    from vrga.analysis.lookback import experiment

    run = partial(
        experiment, study, config=own.config, prompts=prompts.split(","),
        steerings=steering.split(","), uncertainty=uncertainty, zoom=closer, measure=measure,
    )  # fmt: skip
    raise typer.Exit(guarded(run, output, options.console))
