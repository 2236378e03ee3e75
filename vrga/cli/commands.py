"""The `vrga` command."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vrga import __version__
from vrga.app.command import app as app_command
from vrga.beforehand import (
    PICTURES,
    PROMPTS,
    STEERINGS,
    check_file,
    check_folder,
    check_known,
    check_readable,
    check_split,
    check_trace_folder,
    drawn_split,
)
from vrga.cli.analyze import Batch, Data, Model, Resume, Split, Style, analyze, check_questions
from vrga.config import PRESETS, VRGAConfig
from vrga.evaluation.command import DTYPES, chosen
from vrga.evaluation.json_text import whole_characters
from vrga.evaluation.sweeps import swept
from vrga.evaluation.wording import say_config
from vrga.hf.brought import Chosen
from vrga.hf.files import check_model

app = typer.Typer(
    help="Make a vision-language model look at the region its question is about.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
app.add_typer(analyze, name="analyze")
app.command("app")(app_command)
console = Console()


# Configurations that have a name.
Dtype = enum.Enum("Dtype", {name: name for name in DTYPES}, type=str)
Preset = enum.Enum("Preset", {name: name for name in PRESETS}, type=str)
Start = Annotated[
    Preset | None,
    typer.Option(help="Configuration; the checkpoint's own, else paper, if absent."),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vrga {__version__}")
        raise typer.Exit


@app.callback()
def _commands(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Say the version and leave.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Make a vision-language model look at the region its question is about."""


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("out"),
    questions: Annotated[int, typer.Option(min=2, help="Held-out questions per prompt.")] = 200,
    split: Split = None,
    save: Annotated[Path | None, typer.Option(help="Also write the table here, as JSON.")] = None,
) -> None:
    """Answer questions about images with and without VRGA, on the model inside this package."""
    split = drawn_split(split, None)
    check_split(split)
    check_folder(output, "--output")
    if save is not None:
        check_file(save, "--save")
    from vrga.demo.show import show
    from vrga.evaluation.store import write_json

    found = show(output, questions, console, split)
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        write_json(save, found)


@app.command()
def generate(
    image: Annotated[list[Path], typer.Option(help="An image file; may be given repeatedly.")],
    question: Annotated[str, typer.Option(help="What to ask.")],
    model: Model = None,
    preset: Start = None,
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
    stream: Annotated[bool, typer.Option("--stream", help="Print words as they come.")] = False,
    system: Annotated[
        str | None, typer.Option(help="The system's message, before the question.")
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Most pixels of an image; larger ones are shrunk.")
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Of the weights; auto is the checkpoint's own.")
    ] = Dtype.auto,
    device_map: Annotated[
        str | None, typer.Option(help="auto: a model larger than one GPU; cpu, cuda:1, ...")
    ] = None,
) -> None:
    """Answer one question about one or several images."""
    if not question.strip():
        raise ValueError(f"--question {question!r} is empty: say what to ask about the image")
    if not vrga and (map is not None or gain is not None or preset is not None):
        raise ValueError("--map, --gain and --preset are about VRGA: leave out --no-vrga")
    question = whole_characters(question)  # a terminal may give bytes that are no UTF-8
    if gain is not None:
        VRGAConfig(gain=gain)  # refuses what is none
    from vrga.images import read_image

    for path in image:
        read_image(path)
    check_model(model)
    if map is not None:
        check_file(map, "--map", PICTURES)
    if trace is not None:
        check_folder(trace, "--trace")
        for run in ("base", "steered") if vrga else ("base",):
            check_trace_folder(trace / run)
    if zoom_option and not zoom:
        raise ValueError("--zoom-option is about a closer look: add --zoom")
    if zoom:
        if not vrga:
            raise ValueError("--zoom finds its place as VRGA does: leave out --no-vrga")
        if stream or system or max_pixels or device_map or dtype is not Dtype.auto:
            raise ValueError(
                "--zoom does not go with --stream, --system, --max-pixels, --dtype, --device-map"
            )
        config = None
        if (preset, gain) != (None, None):
            config = VRGAConfig.named("paper" if preset is None else preset.value, gain)
        _closer(model, image, question, config, zoom_option or [], map, max_new_tokens, trace)
        return
    steering = _chosen(preset, gain, model) if vrga else None
    from vrga.answers.generation import answer

    text, region, images, failed = answer(
        model,
        image,
        question,
        steering and steering.config,
        max_new_tokens=max_new_tokens,
        trace=trace,
        system=system,
        max_pixels=max_pixels,
        dtype=dtype.value,
        device_map=device_map,
        stream=_speak if stream else None,
        warn=_warn,
    )
    console.print("" if stream else text, markup=False, highlight=False, soft_wrap=True)
    if (map, trace) != (None, None) and len(images) != len(region.grids):
        told = "the model cuts images into tiles, whose maps are shown without the images"
        console.print(told, style="dim", soft_wrap=True)
        from PIL import Image

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
    from vrga.answers.generation import answer_closer
    from vrga.closer.zoom import Zoom, zoom_with
    from vrga.demo.fine.settings import CLOSER

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
        from vrga.closer.plots import closer_figure
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
def doctor(
    model: Annotated[
        str | None, typer.Option(help="Checkpoint to examine; a tiny random model if absent.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Of the tiny model: qwen2_5_vl, llava, ...")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
) -> None:
    """Check that VRGA does on this installation what it says; status 1 where it does not."""
    from vrga.checkup.run import doctor

    found = doctor(model, family=family, device=device)
    console.print(found)
    raise typer.Exit(0 if found.ok else 1)


@app.command()
def report(
    traces: Annotated[
        list[Path],
        typer.Argument(
            help="One or two trace folders, of two the base first; or the folder of base/ and "
            "steered/."
        ),
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
    if len(traces) == 1 and not (traces[0] / "trace.json").is_file():  # as generate --trace writes
        parts = [traces[0] / name for name in ("base", "steered")]
        traces = [part for part in parts if (part / "trace.json").is_file()] or traces
    if len(traces) > 2:
        raise ValueError(f"a report shows one or two traces; {len(traces)} given")
    for trace in traces:
        if not (trace / "trace.json").is_file():
            raise FileNotFoundError(
                f"no trace at {trace}: trace.save writes a folder with trace.json, and "
                "vrga generate --trace one with base/ and steered/ in it"
            )
    check_file(output, "--output")
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
    most: Annotated[
        int, typer.Option(min=0, help="Samples listed that became right, and that became wrong.")
    ] = 10,
) -> None:
    """Compare two runs of vrga eval, sample by sample."""
    check_readable(first, "run", folder=True)
    check_readable(second, "run", folder=True)
    from vrga.evaluation.compare import compare

    compare(first, second, console, most=most)


@app.command()
def tune(
    sweep: Annotated[
        list[str], typer.Option(help="field=value,value,... of the config; may be repeated.")
    ],
    data: Data = None,
    model: Model = None,
    output: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("out/tune"),
    preset: Annotated[
        Preset | None,
        typer.Option(
            help="Fields that are not swept; the checkpoint's own, else paper, if absent."
        ),
    ] = None,
    prompt: Annotated[str, typer.Option(help="direct, cot or back.")] = "cot",
    style: Style = "semantic",
    split: Split = None,
    limit: Annotated[
        int | None, typer.Option(min=4, help="Questions in both halves; 1000 drawn ones.")
    ] = None,
    batch_size: Batch = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 2048,
    seed: Annotated[int, typer.Option(help="Of the halves of a file.")] = 0,
    resume: Resume = False,
) -> None:
    """Choose a configuration on one half of the questions, and report it on the other half."""
    check_known("--prompt", [prompt], PROMPTS)
    split = drawn_split(split, data)
    check_questions(data, split, style, model, output)
    base = chosen(preset and preset.value, None, model)
    swept(base.config, sweep)  # refuses fields and values
    say_config(Console(stderr=True), base)
    from vrga.evaluation.command import guarded
    from vrga.evaluation.tuning import tune

    raise typer.Exit(
        guarded(
            lambda: tune(
                data,
                model,
                output,
                base=base.config,
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
    preset: Start = None,
    gain: Annotated[float | None, typer.Option(help="Factor on attention to the region.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions; 500 drawn ones.")] = None,
    split: Split = None,
    batch_size: Batch = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 2048,
    resume: Resume = False,
) -> None:
    """Compare direct, cot and back prompts without VRGA, with it, and with it inside <back>."""
    check_known("--prompts", prompts.split(","), PROMPTS)
    check_known("--steering", steering.split(","), STEERINGS)
    if gain is not None:
        VRGAConfig(gain=gain)  # refuses what is none
    split = drawn_split(split, data)
    check_questions(data, split, style, model, output)
    own = _chosen(preset, gain, model)
    from vrga.evaluation.command import guarded
    from vrga.evaluation.lookback import experiment

    raise typer.Exit(
        guarded(
            lambda: experiment(
                data,
                model,
                output,
                config=own.config,
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


def _speak(piece: str) -> None:
    """Print a piece of an answer at once."""
    typer.echo(piece, nl=False)
    sys.stdout.flush()


def _warn(told: str) -> None:
    Console(stderr=True).print(f"vrga: {told}", style="yellow", markup=False, soft_wrap=True)


def _chosen(preset: Preset | None, gain: float | None, model: str | None) -> Chosen:
    """How a command steers, said on standard error, away from what it answers."""
    found = chosen(preset and preset.value, gain, model)
    say_config(Console(stderr=True), found)
    return found


def main() -> None:
    """Run the command; user errors are one line on standard error, exit status 2."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        told = str(error)
        if isinstance(error, OSError) and error.strerror and not error.filename:
            told = error.strerror  # without the number
        Console(stderr=True).print(f"vrga: {told}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
