"""The `vrga` command."""

from __future__ import annotations

import enum
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console

from vrga.analyze_cli import Batch, Data, Model, Resume, Split, Style, analyze
from vrga.config import PRESETS

app = typer.Typer(
    help="Make a vision-language model look at the region its question is about.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(analyze, name="analyze")
console = Console()


# Configurations that have a name.
Preset = enum.Enum("Preset", {name: name for name in PRESETS}, type=str)


@app.callback()
def _commands() -> None:
    """Keep `vrga COMMAND` also where there is a single command."""


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("out"),
    questions: Annotated[int, typer.Option(min=2, help="Held-out questions per prompt.")] = 200,
    save: Annotated[Path | None, typer.Option(help="Also write the table here, as JSON.")] = None,
) -> None:
    """Answer questions about images with and without VRGA, on the model inside this package."""
    from vrga.demo.show import show

    found = show(output, questions, console)
    if save is not None:
        save.write_text(json.dumps(found, indent=1) + "\n")


@app.command()
def generate(
    image: Annotated[list[Path], typer.Option(help="An image file; may be given repeatedly.")],
    question: Annotated[str, typer.Option(help="What to ask.")],
    model: Model = None,
    preset: Annotated[Preset, typer.Option(help="Configuration to start from.")] = Preset.default,
    gain: Annotated[
        float | None, typer.Option(help="Factor on the attention to the region; 1 is off.")
    ] = None,
    vrga: Annotated[bool, typer.Option("--vrga/--no-vrga", help="Steer, or not.")] = True,
    map: Annotated[Path | None, typer.Option(help="Write a picture of the region here.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Write traces to base/ and steered/ in this folder, for `vrga report`; with "
            "--zoom to closer/, and the decision to closer.json."
        ),
    ] = None,
    zoom: Annotated[
        bool, typer.Option("--zoom", help="Crop the original where it looks, and look again there.")
    ] = False,
    zoom_option: Annotated[
        list[str] | None, typer.Option(help="field=value of Zoom, and again for more.")
    ] = None,
) -> None:
    """Answer one question about one or several images."""
    from vrga.generation import answer

    if zoom_option and not zoom:
        raise ValueError("--zoom-option is about a closer look: add --zoom")
    if zoom:
        if not vrga:
            raise ValueError("--zoom finds its place as VRGA does: leave out --no-vrga")
        config = None if (preset, gain) == (Preset.default, None) else _config(preset, gain)
        _closer(model, image, question, config, zoom_option or [], map, max_new_tokens, trace)
        return
    if not vrga and (map is not None or gain is not None or preset is not Preset.default):
        raise ValueError("--map, --gain and --preset are about VRGA: leave out --no-vrga")
    text, region, images, failed = answer(
        model,
        image,
        question,
        _config(preset, gain) if vrga else None,
        max_new_tokens=max_new_tokens,
        trace=trace,
    )
    console.print(text, markup=False, highlight=False)
    if (map, trace) != (None, None) and len(images) != len(region.grids):
        told = "the model cuts images into tiles, whose maps are shown without the images"
        console.print(told, style="dim", soft_wrap=True)
        images = [Image.new("RGB", (grid.w, grid.h), "white") for grid in region.grids]
    if map is not None:
        from vrga.plots import region_figure, save

        path = save(region_figure(images, region, title=question), map)
        console.print(f"region: {path}", style="dim", soft_wrap=True)
    if trace is not None:
        runs = [run for run in ("base", "steered") if vrga or run == "base"]
        saved = " ".join(str(trace / run) for run in runs if run not in failed)
        if saved:
            console.print(f"traces: {saved}", style="dim", soft_wrap=True)
        if failed:
            told = "; ".join(f"no trace {trace / run}: {why}" for run, why in failed.items())
            raise ValueError(told)


def _closer(model, paths, question, config, options, map, max_new_tokens, trace) -> None:
    """`vrga generate --zoom`: print the answer, the decision and the cost."""
    from vrga.demo.fine.settings import CLOSER
    from vrga.generation import answer_closer
    from vrga.zoom import Zoom, zoom_with

    zoom = zoom_with(CLOSER if model == "fine" else Zoom(), options) if options else None
    found, images, failed = answer_closer(
        model, paths, question, config, zoom, max_new_tokens=max_new_tokens, trace=trace
    )
    console.print(found.text, markup=False, highlight=False)
    cost, told = found.cost, "looked closer: " if found.zoomed else "not looked closer: "
    lines = [told + found.decision.reason]
    for crop in found.crops:
        lines.append(
            f"crop of {paths[crop.image]}: {crop.box}, shown {crop.size[0]} x {crop.size[1]}"
        )
    lines.append(
        f"{cost.prompt} tokens of prompt, then {cost.second} and {cost.reused} reused, "
        f"{cost.answer} of answer; {cost.total:.2f} s, {cost.first:.2f} s to the decision"
    )
    if map is not None:
        from vrga.closer_plots import closer_figure
        from vrga.plots import save

        path = save(closer_figure(images, found, title=question), map)
        lines.append(f"closer look: {path}")
    if trace is not None and not failed:
        lines.append(f"trace: {trace / 'closer'} {trace / 'closer.json'}")
    for line in lines:
        console.print(line, style="dim", soft_wrap=True, markup=False, highlight=False)
    if failed:
        raise ValueError("; ".join(f"no trace {trace / run}: {why}" for run, why in failed.items()))


@app.command()
def report(
    traces: Annotated[
        list[Path], typer.Argument(help="One or two trace folders; of two, the base comes first.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path(
        "report.html"
    ),
    row: Annotated[int, typer.Option(min=0, help="Row of the batch.")] = 0,
    size: Annotated[
        float, typer.Option(min=0.1, help="Most megabytes of maps; heads are left out beyond.")
    ] = 16.0,
) -> None:
    """Make a page of one or two traces: where the model looked, token by token."""
    from vrga.report import write_report

    path = write_report(traces, output, row=row, megabytes=size)
    console.print(f"report: {path}", style="dim", soft_wrap=True)


@app.command(
    name="eval",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def evaluate(context: typer.Context) -> None:
    """Evaluate on benchmarks, with and without VRGA; see vrga eval --help."""
    from vrga.evaluation.command import main

    raise typer.Exit(main(context.args, prog="vrga eval"))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of a run of vrga eval.")],
    second: Annotated[Path, typer.Argument(help="Folder of another.")],
) -> None:
    """Compare two runs of vrga eval, sample by sample."""
    from vrga.evaluation.compare import compare

    compare(first, second, console)


@app.command()
def tune(
    sweep: Annotated[
        list[str], typer.Option(help="field=value,value,... of the config; may be repeated.")
    ],
    data: Data = None,
    model: Model = None,
    output: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("out/tune"),
    preset: Annotated[Preset, typer.Option(help="Fields that are not swept.")] = Preset.default,
    prompt: Annotated[str, typer.Option(help="direct, cot or back.")] = "cot",
    style: Style = "semantic",
    split: Split = "clean",
    limit: Annotated[
        int | None, typer.Option(min=4, help="Questions in both halves; 1000 drawn ones.")
    ] = None,
    batch_size: Batch = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 2048,
    seed: Annotated[int, typer.Option(help="Of the halves of a file.")] = 0,
    resume: Resume = False,
) -> None:
    """Choose a configuration on one half of the questions, and report it on the other half."""
    from vrga.evaluation.command import guarded
    from vrga.evaluation.items import PROMPTS
    from vrga.evaluation.tuning import tune

    if prompt not in PROMPTS:
        raise ValueError(f"--prompt {prompt}: known are {', '.join(PROMPTS)}")
    if data is not None and split != "clean":
        raise ValueError("--split is for drawn questions: leave it out with a data file")
    raise typer.Exit(
        guarded(
            lambda: tune(
                data,
                model,
                output,
                base=_config(preset, None),
                sweeps=sweep,
                prompt=prompt,
                style=style,
                split=split,
                limit=limit,
                batch=batch_size,
                max_new_tokens=max_new_tokens,
                seed=seed,
                resume=resume,
                console=console,
            ),
            output,
            console,
        )
    )


@app.command()
def lookback(
    data: Data = None,
    model: Model = None,
    output: Annotated[Path, typer.Option(help="Folder for samples and results.")] = Path(
        "out/lookback"
    ),
    prompts: Annotated[str, typer.Option(help="Of direct, cot, back.")] = "direct,cot,back",
    steering: Annotated[
        str, typer.Option(help="Of off, always, back, back+relocate.")
    ] = "off,always,back,back+relocate",
    style: Style = "semantic",
    preset: Annotated[Preset, typer.Option(help="Configuration to start from.")] = Preset.default,
    gain: Annotated[float | None, typer.Option(help="Factor on attention to the region.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions; 500 drawn ones.")] = None,
    split: Split = "clean",
    batch_size: Batch = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 2048,
    resume: Resume = False,
) -> None:
    """Compare direct, cot and back prompts without VRGA, with it, and with it inside <back>."""
    from vrga.evaluation.command import guarded
    from vrga.evaluation.lookback import experiment

    if data is not None and split != "clean":
        raise ValueError("--split is for drawn questions: leave it out with a data file")
    raise typer.Exit(
        guarded(
            lambda: experiment(
                data,
                model,
                output,
                config=_config(preset, gain),
                prompts=prompts.split(","),
                steerings=steering.split(","),
                limit=limit,
                split=split,
                style=style,
                batch=batch_size,
                max_new_tokens=max_new_tokens,
                resume=resume,
                console=console,
            ),
            output,
            console,
        )
    )


def _config(preset: Preset, gain: float | None):
    from vrga.config import VRGAConfig

    return VRGAConfig.named(preset.value, gain)


def main() -> None:
    """Run the command; user errors are one line on standard error, exit status 2."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        Console(stderr=True).print(f"vrga: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
