"""`vrga generate`: one question about one or several images, answered with VRGA or without."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vrga.beforehand import PICTURES, check_file, check_folder, check_trace_folder
from vrga.cli.options import (
    DeviceMap,
    Dtype,
    Gain,
    Longest,
    Model,
    Preset,
    Start,
    Weights,
    ZoomOption,
    console,
    errors,
    said,
    zoom_for,
)
from vrga.config import VRGAConfig
from vrga.evaluation.json_text import whole_characters
from vrga.hf.files import check_model

if TYPE_CHECKING:
    from PIL import Image

    from vrga.method.region import Region


Images = Annotated[list[Path], typer.Option(help="An image file; may be given repeatedly.")]
Question = Annotated[str, typer.Option(help="What to ask.")]
Traces = Annotated[
    Path | None,
    typer.Option(
        help="Write traces to base/ and steered/ in this folder, for `vrga report`; with "
        "--zoom to closer/, and the decision to closer.json."
    ),
]
Closely = Annotated[
    bool, typer.Option("--zoom", help="Crop the original where it looks, and look again there.")
]
System = Annotated[str | None, typer.Option(help="The system's message, before the question.")]
MaxPixels = Annotated[
    int | None, typer.Option(min=1, help="Most pixels of an image; larger ones are shrunk.")
]


def generate(
    image: Images,
    question: Question,
    model: Model = None,
    preset: Start = None,
    gain: Gain = None,
    vrga: Annotated[bool, typer.Option("--vrga/--no-vrga", help="Steer, or not.")] = True,
    map: Annotated[Path | None, typer.Option(help="Write a picture of the region here.")] = None,
    max_new_tokens: Longest = 256,
    trace: Traces = None,
    zoom: Closely = False,
    zoom_option: ZoomOption = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print words as they come.")] = False,
    system: System = None,
    max_pixels: MaxPixels = None,
    dtype: Weights = Dtype.auto,
    device_map: DeviceMap = None,
) -> None:
    """Answer one question about one or several images."""
    # The traces that there are, by the names of their folders.
    runs = ("closer",) if zoom else ("base", "steered") if vrga else ("base",)
    _check(question, image, model, preset, gain, vrga, map, trace, runs)
    question = whole_characters(question)  # a terminal may give bytes that are no UTF-8
    if zoom and not vrga:
        raise ValueError("--zoom finds its place as VRGA does: leave out --no-vrga")
    if zoom and (stream or system or max_pixels or device_map or dtype is not Dtype.auto):
        raise ValueError(
            "--zoom does not go with --stream, --system, --max-pixels, --dtype, --device-map"
        )
    closer = zoom_for(model, zoom, zoom_option)
    if closer is not None:
        config = said(preset, gain, model).config
        _closer(model, image, question, config, closer, map, max_new_tokens, trace)
        return
    steering = said(preset, gain, model) if vrga else None
    from vrga.answers.generation import answer

    text, region, images, failed = answer(
        model,
        image,
        question,
        None if steering is None else steering.config,
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
    if (map, trace) != (None, None):
        assert region is not None  # a picture is refused without VRGA, and a trace has one
        images = _shown(images, region)
    if map is not None and region is not None:
        from vrga.plots import region_figure, save

        path = save(region_figure(images, region, title=question), map)
        console.print(f"region: {path}", style="dim", soft_wrap=True)
    if trace is not None:
        _told_traces(trace, runs, failed)


def _shown(images: list[Image.Image], region: Region) -> list[Image.Image]:
    """An image for each grid; white ones where the model cuts images into tiles."""
    if len(images) == len(region.grids):
        return images
    told = "the model cuts images into tiles, whose maps are shown without the images"
    console.print(told, style="dim", soft_wrap=True)
    from PIL import Image

    return [Image.new("RGB", (grid.w, grid.h), "white") for grid in region.grids]


def _check(
    question: str,
    images: list[Path],
    model: str | None,
    preset: Preset | None,
    gain: float | None,
    vrga: bool,
    map: Path | None,
    trace: Path | None,
    runs: tuple[str, ...],
) -> None:
    """Refuse what can be known to be wrong before a model is loaded."""
    if not question.strip():
        raise ValueError(f"--question {question!r} is empty: say what to ask about the image")
    if not vrga and (map is not None or gain is not None or preset is not None):
        raise ValueError("--map, --gain and --preset are about VRGA: leave out --no-vrga")
    if gain is not None:
        VRGAConfig(gain=gain)  # refuses what is none
    from vrga.images import read_image

    for path in images:
        read_image(path)
    check_model(model)
    if map is not None:
        check_file(map, "--map", PICTURES)
    if trace is not None:
        check_folder(trace, "--trace")
        for run in runs:
            check_trace_folder(trace / run)


def _told_traces(folder: Path, runs: tuple[str, ...], failed: Mapping[str, str]) -> None:
    """Say where traces are.

    Raises:
        ValueError: some could not be written; says why.
    """
    saved = " ".join(str(folder / run) for run in runs if run not in failed)
    if saved:
        console.print(f"traces: {saved}", style="dim", soft_wrap=True)
        console.print(f"next: vrga report {folder}", style="dim", soft_wrap=True)
    if failed:
        raise ValueError(_unwritten(folder, failed))


def _unwritten(folder: Path, failed: Mapping[str, str]) -> str:
    return "; ".join(f"no trace {folder / run}: {why}" for run, why in failed.items())


def _closer(model, paths, question, config, zoom, map, max_new_tokens, trace) -> None:
    """`vrga generate --zoom`: print the answer, the decision and the cost."""
    from vrga.answers.generation import answer_closer

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
        lines.append(f"next: vrga report {trace}")
    for line in lines:
        console.print(line, style="dim", soft_wrap=True, markup=False, highlight=False)
    if failed:
        raise ValueError(_unwritten(trace, failed))


def _speak(piece: str) -> None:
    """Print a piece of an answer at once."""
    typer.echo(piece, nl=False)
    sys.stdout.flush()


def _warn(told: str) -> None:
    errors.print(f"vrga: {told}", style="yellow", markup=False, soft_wrap=True)
