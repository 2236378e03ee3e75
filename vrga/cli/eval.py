"""`vrga eval`: benchmarks with and without VRGA."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from vrga.beforehand import SPLITS, STYLES, check_folder, check_readable, check_split
from vrga.cli.options import (
    DeviceMap,
    Dtype,
    Gain,
    Model,
    Preset,
    Resume,
    Seed,
    Weights,
    ZoomOption,
    console,
    zoom_for,
)
from vrga.cli.status import guarded
from vrga.config import VRGAConfig
from vrga.hf.chosen_config import Chosen, chosen_for
from vrga.hf.files import check_model

# What each flag evaluates: arms of one run.
ARMS: Mapping[str, tuple[str, ...]] = {
    "--vrga": ("vrga",),
    "--no-vrga": ("base",),
    "--compare": ("base", "vrga"),
}

LOCAL, SERVER = "transformers", "http://127.0.0.1:8000"  # the second as `vrga serve` listens


Tasks = Annotated[str, typer.Option(help="Comma-separated: pope, mmstar, MathVista, grid, ...")]
Files = Annotated[
    Path | None, typer.Option(help="Folder with the tasks' files, instead of the hub.")
]
Steered = Annotated[
    Preset | None,
    typer.Option(help="Of the steered arm; the checkpoint's own, else paper, if absent."),
]
Config = Annotated[
    Path | None, typer.Option(help="A configuration as JSON, such as vrga tune writes.")
]
Prompt = Annotated[
    str,
    typer.Option(help="task (its own), direct, cot, back, solution, or a text with {question}."),
]
Longest = Annotated[int | None, typer.Option(min=1, help="Longest answer, over the tasks' own.")]
Backend = Annotated[
    str | None, typer.Option(help="sdpa, flash_attention_2, ...; the same for both arms.")
]
Engine = Annotated[
    str,
    typer.Option(
        help="transformers; vllm: a server as vrga serve starts it, on its own port; or the "
        "address of one."
    ),
]
Closely = Annotated[
    bool,
    typer.Option("--zoom", help="One more arm: steered, and the original cropped where it looks."),
]


def evaluate(
    tasks: Tasks,
    output: Annotated[Path, typer.Option(help="Folder of the run.")],
    model: Model = None,
    data: Files = None,
    vrga: Annotated[bool, typer.Option("--vrga", help="The steered model.")] = False,
    no_vrga: Annotated[bool, typer.Option("--no-vrga", help="The unpatched model.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Both, paired.")] = False,
    preset: Steered = None,
    gain: Gain = None,
    config: Config = None,
    prompt: Prompt = "task",
    split: Annotated[str, typer.Option(help=f"Of the grid task: {', '.join(SPLITS)}.")] = "clean",
    limit: Annotated[int | None, typer.Option(min=1, help="Samples of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per call of generate.")] = 1,
    max_new_tokens: Longest = None,
    min_pixels: Annotated[int | None, typer.Option(min=1, help="Fewest of an image.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Most of an image.")] = None,
    dtype: Weights = Dtype.auto,
    attn_implementation: Backend = None,
    device_map: DeviceMap = None,
    engine: Engine = LOCAL,
    seed: Seed = 0,
    zoom: Closely = False,
    zoom_option: ZoomOption = None,
    resume: Resume = False,
) -> None:
    """Evaluate on benchmarks, with and without VRGA: the same samples, the same backend.

    One of --vrga, --no-vrga and --compare says which arms; --zoom adds one, or
    is the only one. Tasks are those of lmms-eval and of this package.

    Exit status: 0 all samples answered; 2 wrong options; 3 stopped by a full
    disk; 4 some samples failed (they count as wrong; see samples.jsonl); 130
    interrupted; 1 anything else. After all but 2 the same command with --resume
    goes on where it was.
    """
    flags = dict(zip(ARMS, (vrga, no_vrga, compare), strict=True))
    arms = _arms([flag for flag, given in flags.items() if given], zoom)
    closer = zoom_for(model, zoom, zoom_option)
    _check_steering(arms, {"--preset": preset, "--gain": gain, "--config": config})
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if not names:
        raise ValueError("--tasks names no task")
    check_split(split)
    check_readable(data, "--data", folder=True)
    check_folder(output, "--output")
    _check_prompt(prompt)
    if min_pixels and max_pixels and min_pixels > max_pixels:
        raise ValueError(f"pixels: at least {min_pixels} and at most {max_pixels}")
    check_model(model)
    own = (model, attn_implementation, device_map, min_pixels, max_pixels, zoom or None)
    engine = _engine(engine, arms, config or preset, own, dtype)
    steering = _steering(config, preset, gain, model)
    evaluation = _evaluation()
    chosen = evaluation.Evaluation(
        model=model, tasks=names, arms=arms, config=steering.config, told=str(steering),
        zoom=closer, data=data, prompt=prompt, split=split, limit=limit,
        max_new_tokens=max_new_tokens, min_pixels=min_pixels, max_pixels=max_pixels,
        seed=seed, dtype=dtype.value,
        attn_implementation=attn_implementation, batch=batch_size, device_map=device_map,
        engine=engine,
    )  # fmt: skip

    def run() -> dict | None:
        return evaluation.evaluate(chosen, output, resume=resume, console=console)

    raise typer.Exit(guarded(run, output, console))


def _evaluation() -> ModuleType:
    """`vrga.evaluation.run`.

    Raises:
        ImportError: a package that it needs is missing.
    """
    try:
        return importlib.import_module("vrga.evaluation.run")
    except ModuleNotFoundError as error:
        raise ImportError(
            f'vrga eval needs {error.name}: pip install "vrga[eval]" and, without its own '
            "requirements, lmms-eval (docs/evaluation.md)"
        ) from error


def _arms(given: list[str], zoom: bool) -> tuple[str, ...]:
    if zoom and not given:
        return ("zoom",)
    if len(given) != 1:
        raise ValueError(
            f"give one of {', '.join(ARMS)}, which says what is evaluated; given: "
            f"{', '.join(given) or 'none of them'}"
        )
    return (*ARMS[given[0]], *(["zoom"] if zoom else []))


def _check_steering(arms: tuple[str, ...], given: Mapping[str, object]) -> None:
    named = [name for name, value in given.items() if value is not None]
    if arms == ("base",) and named:
        raise ValueError(f"{', '.join(named)}: about steering, and --no-vrga does not steer")
    if "--config" in named and len(named) > 1:
        raise ValueError("--config is a whole configuration: leave out --preset and --gain")


SERVERS_OWN = ("--model", "--attn-implementation", "--device-map", "--min-pixels", "--max-pixels",
               "--zoom")  # fmt: skip


def _engine(
    name: str,
    arms: tuple[str, ...],
    steering: object | None,
    given: tuple[object, ...],
    dtype: Dtype,
) -> str:
    """What answers: "transformers", or a server's address.

    Args:
        steering: what says how the arm "vrga" is steered, or None.
        given: values of `SERVERS_OWN`, which a server decides itself.
    """
    if name == LOCAL:
        return name
    if name != "vllm" and not name.startswith(("http://", "https://")):
        raise ValueError(f"--engine {name}: {LOCAL}, vllm, or the address of a server, http://...")
    named = [own for own, value in zip(SERVERS_OWN, given, strict=True) if value is not None]
    named += [] if dtype is Dtype.auto else ["--dtype"]
    if named:
        raise ValueError(f"{', '.join(named)}: with --engine the server's own, given as it starts")
    if "vrga" in arms and steering is None:
        raise ValueError(
            "--engine: what the server's checkpoint brings is not known here; say how to steer "
            "with --preset or --config"
        )
    return SERVER if name == "vllm" else name.rstrip("/")


def _check_prompt(prompt: str) -> None:
    if prompt not in ("task", "back", *STYLES) and "{question}" not in prompt:
        raise ValueError(
            f"--prompt {prompt}: task, back, {', '.join(STYLES)}, or a text with {{question}}"
        )


def _steering(
    config: Path | None, preset: Preset | None, gain: float | None, model: str | None
) -> Chosen:
    if config is not None:
        return Chosen(VRGAConfig.from_pretrained(config), str(config))
    return chosen_for(model, preset and preset.value, gain)
