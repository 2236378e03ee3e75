"""`vrga analyze`: the paper's analyses, each a command."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vrga.beforehand import (
    FINE_SPLITS,
    PROMPTS,
    SEEDS,
    SELECTIONS,
    SPLITS,
    check_folder,
    check_known,
    check_readable,
    check_split,
    check_style,
    drawn_split,
)
from vrga.config import VRGAConfig
from vrga.hf.files import check_model

analyze = typer.Typer(
    help="Measure on a model what the paper measured: heads, ablation, RRAR, dispersion, recovery; "
    "and what a closer look wins.",
    no_args_is_help=True,
)

Data = Annotated[
    Path | None,
    typer.Argument(
        help="Questions as JSON lines (image, question, answer, choices, box); drawn ones if "
        "absent."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(help="Checkpoint folder or hub id; the embedded model if absent."),
]
Output = Annotated[Path, typer.Option(help="Folder for results.json and the figure.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Questions; 500 drawn ones.")]
Split = Annotated[
    str | None,
    typer.Option(
        help="Of drawn questions: clean, noise, similar, crowded, large, long, vast; similar if "
        "absent."
    ),
]
Style = Annotated[
    str, typer.Option(help="The back prompt: semantic, solution, or a text with {question}.")
]
Batch = Annotated[int, typer.Option(min=1, help="Rows per call of generate.")]
Longest = Annotated[
    int | None,
    typer.Option(min=1, help="Longest answer; 128 tokens of the embedded model, else 2048."),
]
Prompt = Annotated[str, typer.Option(help="direct, cot or back.")]
Seed = Annotated[int, typer.Option(help="Of drawn questions and of random heads.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run there.")]


@analyze.command()
def heads(
    data: Data = None,
    model: Model = None,
    output: Output = Path("out/analyze/heads"),
    limit: Limit = None,
    split: Split = None,
    batch_size: Batch = 32,
    seed: Seed = 0,
) -> None:
    """R against H_img over heads, and how stable the visual heads are; prefill alone."""
    study = _study(output, data, model, limit, split, batch=batch_size, seed=seed)
    from vrga.analysis.heads import analyze

    analyze(study)


@analyze.command()
def ablate(
    data: Data = None,
    model: Model = None,
    output: Output = Path("out/analyze/ablate"),
    prompt: Prompt = "cot",
    selection: Annotated[
        str, typer.Option(help="step: anew per layer and step; prefill: H_v of phase 1.")
    ] = "step,prefill",
    heads: Annotated[
        int | None, typer.Option(help="Of a layer, for step; 5 of 16 or more.")
    ] = None,
    first_layer: Annotated[
        int | None, typer.Option(help="For step; 6, or a quarter of the layers.")
    ] = None,
    style: Style = "semantic",
    limit: Annotated[int | None, typer.Option(min=1, help="Questions; 300 drawn ones.")] = None,
    split: Split = None,
    batch_size: Batch = 32,
    max_new_tokens: Longest = None,
    seed: Seed = 0,
    resume: Resume = False,
) -> None:
    """Accuracy without the image in visual, random and low-focus heads."""
    selections = selection.split(",")
    check_known("--selection", selections, SELECTIONS)
    check_known("--prompt", [prompt], PROMPTS)
    study = _study(
        output, data, model, limit, split, style=style, batch=batch_size,
        max_new_tokens=max_new_tokens, seed=seed, resume=resume,
    )  # fmt: skip
    from vrga.analysis.ablate import analyze

    analyze(study, prompt=prompt, selections=selections, heads=heads, first_layer=first_layer)


@analyze.command()
def rrar(
    data: Data = None,
    model: Model = None,
    output: Output = Path("out/analyze/rrar"),
    prompts: Annotated[
        str, typer.Option(help="Of direct, cot, guided (the prompt names the place), back.")
    ] = "cot,direct,guided,back",
    style: Style = "semantic",
    limit: Limit = None,
    split: Split = None,
    batch_size: Batch = 32,
    max_new_tokens: Longest = None,
    seed: Seed = 0,
    resume: Resume = False,
) -> None:
    """Attention on the box over attention on the image, by prompt and by right and wrong."""
    check_known("--prompts", prompts.split(","), (*PROMPTS, "guided"))
    study = _study(
        output, data, model, limit, split, style=style, batch=batch_size,
        max_new_tokens=max_new_tokens, seed=seed, resume=resume,
    )  # fmt: skip
    from vrga.analysis.rrar import analyze

    analyze(study, prompts=prompts.split(","))


@analyze.command()
def dispersion(
    data: Data = None,
    model: Model = None,
    output: Output = Path("out/analyze/dispersion"),
    prompt: Prompt = "cot",
    gain: Annotated[float, typer.Option(help="Factor on attention to the region.")] = 1.5,
    bins: Annotated[int, typer.Option(help="Equal parts of an answer.")] = 10,
    style: Style = "semantic",
    limit: Limit = None,
    split: Split = None,
    batch_size: Batch = 32,
    max_new_tokens: Longest = None,
    seed: Seed = 0,
    resume: Resume = False,
) -> None:
    """Attention on image and box, and its spread, over the answer; without VRGA and with it."""
    VRGAConfig(gain=gain)  # refuses what is none
    check_known("--prompt", [prompt], PROMPTS)
    study = _study(
        output, data, model, limit, split, style=style, batch=batch_size,
        max_new_tokens=max_new_tokens, seed=seed, resume=resume,
    )  # fmt: skip
    from vrga.analysis.dispersion import analyze

    analyze(study, prompt=prompt, gain=gain, bins=bins)


@analyze.command()
def recovery(
    data: Data = None,
    model: Model = None,
    output: Output = Path("out/analyze/recovery"),
    prompt: Prompt = "cot",
    style: Style = "semantic",
    limit: Annotated[int | None, typer.Option(min=1, help="Questions; 200 drawn ones.")] = None,
    split: Split = None,
    config: Annotated[
        list[str] | None,
        typer.Option(help="One of those compared, or default, and again for more; all compared."),
    ] = None,
    batch_size: Batch = 100,
    max_new_tokens: Longest = None,
    seed: Seed = 0,
    resume: Resume = False,
) -> None:
    """Accuracy that steering wins, over gates and gains, beside the true region's upper bound."""
    check_known("--prompt", [prompt], PROMPTS)
    study = _study(
        output, data, model, limit, split, style=style, batch=batch_size,
        max_new_tokens=max_new_tokens, seed=seed, resume=resume,
    )  # fmt: skip
    from vrga.analysis.recovery import analyze, named

    analyze(study, prompt=prompt, configs=named(config, model))


def check_questions(
    data: Path | None,
    split: str,
    style: str,
    model: str | None,
    output: Path,
    splits: Sequence[str] = SPLITS,
) -> None:
    """Refuse what can be known to be wrong of the options that ask questions, before imports."""
    if data is not None and split != "clean":
        raise ValueError("--split is for drawn questions: leave it out with a data file")
    check_split(split, splits)
    check_style(style)
    check_readable(data, "questions")
    check_model(model)
    check_folder(output, "--output")


@analyze.command()
def closer(
    model: Annotated[
        list[str] | None,
        typer.Option(help="Checkpoint folder, and again for more; the embedded model if absent."),
    ] = None,
    output: Output = Path("out/analyze/closer"),
    split: Annotated[str, typer.Option(help="fine-easy, fine-hard or fine-photos.")] = "fine-hard",
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each model; 250.")] = None,
    arm: Annotated[
        list[str] | None, typer.Option(help="One of those compared, and again for more; all.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="How the place is found, if not as chosen for this model.")
    ] = None,
    zoom: Annotated[
        list[str] | None, typer.Option(help="field=value of Zoom, and again for more.")
    ] = None,
    timed: Annotated[int, typer.Option(min=0, help="Questions asked one by one as well.")] = 0,
    validation: Annotated[
        bool, typer.Option("--validation", help="On the questions that numbers are chosen on.")
    ] = False,
    batch_size: Batch = 50,
    seed: Seed = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the models that were asked already.")
    ] = False,
) -> None:
    """What finding a place and zooming wins, beside the true box and one larger picture."""
    from vrga.analysis.closer import TOLD, analyze
    from vrga.closer.zoom import zoom_with
    from vrga.config import VRGAConfig
    from vrga.demo.fine.settings import CLOSER, FINDING

    for one in model or ():
        check_model(one)
    study = _study(
        output,
        None,
        None,
        limit,
        split,
        batch=batch_size,
        seed=seed,
        resume=resume,
        splits=FINE_SPLITS,
    )
    analyze(
        study, models=model or ["fine"], arms=arm or list(TOLD),
        config=FINDING if preset is None else VRGAConfig.named(preset),
        zoom=zoom_with(CLOSER, zoom or []), timed=timed, validation=validation,
    )  # fmt: skip


def _study(output, data, model, limit, split, splits=SPLITS, **more):
    if not 0 <= more["seed"] < SEEDS:
        raise ValueError(f"--seed {more['seed']}: 0 to {SEEDS - 1}")
    split = drawn_split(split, data)
    check_questions(data, split, more.get("style", "semantic"), model, output, splits)
    from vrga.analysis.study import Study

    typed = shlex.join(["vrga", *sys.argv[1:]])
    return Study(output, data, model, limit, split, command=typed, **more)
