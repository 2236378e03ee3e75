"""`vrga analyze`: the paper's analyses, each a command."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vrga.beforehand import FINE_SPLITS, PROMPTS, SEEDS, SELECTIONS, SPLITS, check_known
from vrga.cli import options
from vrga.cli.status import guarded, whole
from vrga.config import VRGAConfig
from vrga.hf.files import check_model

analyze = typer.Typer(
    help="Measure on a model what the paper measured: heads, ablation, RRAR, dispersion, recovery; "
    "what a closer look wins, and what finds the place.",
    no_args_is_help=True,
)

Longest = Annotated[
    int | None,
    typer.Option(min=1, help="Longest answer; 128 tokens of the embedded model, else 2048."),
]
Seed = Annotated[int, typer.Option(help="Of drawn questions and of random heads.")]


@analyze.command()
def heads(
    data: options.Data = None,
    model: options.Model = None,
    output: options.Output = Path("out/analyze/heads"),
    limit: options.Limit = None,
    split: options.Split = None,
    batch_size: options.Batch = 32,
    seed: Seed = 0,
) -> None:
    """R against H_img over heads, and how stable the visual heads are; prefill alone."""
    study = _study(output, data, model, limit, split, batch=batch_size, seed=seed)
    from vrga.analysis.heads import analyze

    raise typer.Exit(whole(analyze(study), output, options.console))


@analyze.command()
def ablate(
    data: options.Data = None,
    model: options.Model = None,
    output: options.Output = Path("out/analyze/ablate"),
    prompt: options.Prompt = "cot",
    selection: Annotated[
        str, typer.Option(help="step: anew per layer and step; prefill: H_v of phase 1.")
    ] = "step,prefill",
    heads: Annotated[
        int | None, typer.Option(help="Of a layer, for step; 5 of 16 or more.")
    ] = None,
    first_layer: Annotated[
        int | None, typer.Option(help="For step; 6, or a quarter of the layers.")
    ] = None,
    style: options.Style = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions; 300 drawn ones.")] = None,
    split: options.Split = None,
    batch_size: options.Batch = 32,
    max_new_tokens: Longest = None,
    seed: Seed = 0,
    resume: options.Resume = False,
) -> None:
    """Accuracy without the image in visual, random and low-focus heads."""
    selections = selection.split(",")
    check_known("--selection", selections, SELECTIONS)
    check_known("--prompt", [prompt], PROMPTS)
    study = _study(
        output, data, model, limit, split, style=style, prompts=[prompt],
        batch=batch_size, max_new_tokens=max_new_tokens, seed=seed, resume=resume,
    )  # fmt: skip
    from vrga.analysis.ablate import analyze

    run = partial(
        analyze, study, prompt=prompt, selections=selections, heads=heads, first_layer=first_layer
    )
    raise typer.Exit(guarded(run, output, options.console))


@analyze.command()
def rrar(
    data: options.Data = None,
    model: options.Model = None,
    output: options.Output = Path("out/analyze/rrar"),
    prompts: Annotated[
        str, typer.Option(help="Of direct, cot, guided (the prompt names the place), back.")
    ] = "cot,direct,guided,back",
    style: options.Style = None,
    limit: options.Limit = None,
    split: options.Split = None,
    batch_size: options.Batch = 32,
    max_new_tokens: Longest = None,
    seed: Seed = 0,
    resume: options.Resume = False,
) -> None:
    """Attention on the box over attention on the image, by prompt and by right and wrong."""
    check_known("--prompts", prompts.split(","), (*PROMPTS, "guided"))
    study = _study(
        output, data, model, limit, split, style=style, prompts=prompts.split(","),
        batch=batch_size, max_new_tokens=max_new_tokens, seed=seed, resume=resume,
    )  # fmt: skip
    from vrga.analysis.rrar import analyze

    run = partial(analyze, study, prompts=prompts.split(","))
    raise typer.Exit(guarded(run, output, options.console))


@analyze.command()
def dispersion(
    data: options.Data = None,
    model: options.Model = None,
    output: options.Output = Path("out/analyze/dispersion"),
    prompt: options.Prompt = "cot",
    gain: Annotated[float, typer.Option(help="Factor on attention to the region.")] = 1.5,
    bins: Annotated[int, typer.Option(help="Equal parts of an answer.")] = 10,
    style: options.Style = None,
    limit: options.Limit = None,
    split: options.Split = None,
    batch_size: options.Batch = 32,
    max_new_tokens: Longest = None,
    seed: Seed = 0,
    resume: options.Resume = False,
) -> None:
    """Attention on image and box, and its spread, over the answer; without VRGA and with it."""
    VRGAConfig(gain=gain)  # refuses what is none
    check_known("--prompt", [prompt], PROMPTS)
    study = _study(
        output, data, model, limit, split, style=style, prompts=[prompt],
        batch=batch_size, max_new_tokens=max_new_tokens, seed=seed, resume=resume,
    )  # fmt: skip
    from vrga.analysis.dispersion import analyze

    run = partial(analyze, study, prompt=prompt, gain=gain, bins=bins)
    raise typer.Exit(guarded(run, output, options.console))


@analyze.command()
def recovery(
    data: options.Data = None,
    model: options.Model = None,
    output: options.Output = Path("out/analyze/recovery"),
    prompt: options.Prompt = "cot",
    style: options.Style = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions; 200 drawn ones.")] = None,
    split: options.Split = None,
    config: Annotated[
        list[str] | None,
        typer.Option(help="One of those compared, or default, and again for more; all compared."),
    ] = None,
    batch_size: options.Batch = 100,
    max_new_tokens: Longest = None,
    seed: Seed = 0,
    resume: options.Resume = False,
) -> None:
    """Accuracy that steering wins, over gates and gains, beside the true region's upper bound."""
    check_known("--prompt", [prompt], PROMPTS)
    study = _study(
        output, data, model, limit, split, style=style, prompts=[prompt],
        batch=batch_size, max_new_tokens=max_new_tokens, seed=seed, resume=resume,
    )  # fmt: skip
    from vrga.analysis.recovery import analyze, named

    run = partial(analyze, study, prompt=prompt, configs=named(config, model))
    raise typer.Exit(guarded(run, output, options.console))


@analyze.command()
def closer(
    model: Annotated[
        list[str] | None,
        typer.Option(help="Checkpoint folder, and again for more; the embedded model if absent."),
    ] = None,
    output: options.Output = Path("out/analyze/closer"),
    split: Annotated[str, typer.Option(help="fine-easy, -hard, -photos or -stamps.")] = "fine-hard",
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each model; 250.")] = None,
    arm: Annotated[
        list[str] | None, typer.Option(help="One of those compared, and again for more; all.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="How the place is found, if not as chosen for this model.")
    ] = None,
    zoom: options.ZoomOption = None,
    timed: Annotated[int, typer.Option(min=0, help="Questions asked one by one as well.")] = 0,
    validation: options.Validation = False,
    batch_size: options.Batch = 50,
    seed: Seed = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the models that were asked already.")
    ] = False,
) -> None:
    """What finding a place and zooming wins, beside the true box and one larger picture."""
    for one in model or ():
        check_model(one)
    study = _study(
        output, None, None, limit, split, FINE_SPLITS, batch=batch_size, seed=seed, resume=resume
    )
    from vrga.analysis.closer import TOLD, analyze
    from vrga.closer.zoom import zoom_with
    from vrga.demo.fine.settings import CLOSER, FINDING

    run = partial(
        analyze, study, models=model or ["fine"], arms=arm or list(TOLD),
        config=FINDING if preset is None else VRGAConfig.named(preset),
        zoom=zoom_with(CLOSER, zoom or []), timed=timed, validation=validation,
    )  # fmt: skip
    raise typer.Exit(guarded(run, output, options.console))


@analyze.command()
def finding(
    model: options.Model = None,
    output: options.Output = Path("out/analyze/finding"),
    split: Annotated[
        str, typer.Option(help="Of the drawn questions, or fine-easy, fine-hard, fine-photos.")
    ] = "noise",
    limit: Annotated[int | None, typer.Option(min=1, help="Questions; 500.")] = None,
    prompt: options.Prompt = "cot",
    preset: Annotated[
        str | None, typer.Option(help="How heads are chosen, if not as chosen for this model.")
    ] = None,
    answers: Annotated[
        bool, typer.Option("--answers", help="Ask as well; what would abstaining change?")
    ] = False,
    validation: options.Validation = False,
    batch_size: options.Batch = 25,
    max_new_tokens: Longest = None,
    seed: Seed = 0,
    resume: options.Resume = False,
) -> None:
    """From which words the place is found best, and how to tell that it is not."""
    check_known("--prompt", [prompt], PROMPTS)
    study = _study(
        output, None, model, limit, split, (*SPLITS, *FINE_SPLITS), batch=batch_size,
        max_new_tokens=max_new_tokens, seed=seed, resume=resume,
    )  # fmt: skip
    from vrga.analysis.finding import analyze
    from vrga.demo.fine.settings import FINDING
    from vrga.hf.chosen_config import chosen_for

    own = FINDING if split in FINE_SPLITS else chosen_for(model).config
    run = partial(
        analyze, study, config=own if preset is None else VRGAConfig.named(preset), prompt=prompt,
        validation=validation, answers=answers,
    )  # fmt: skip
    raise typer.Exit(guarded(run, output, options.console))


def _study(*given, seed: int, **more):
    """As `study_of`, with a seed of drawn questions."""
    if not 0 <= seed < SEEDS:
        raise ValueError(f"--seed {seed}: 0 to {SEEDS - 1}")
    return options.study_of(*given, seed=seed, **more)
