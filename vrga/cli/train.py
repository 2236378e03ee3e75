"""`vrga train`: from a question file to a model that looks back, a command for each step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vrga.beforehand import HARD, check_chain, check_file, check_folder, check_readable
from vrga.cli.options import Model, Resume, console
from vrga.cli.status import guarded
from vrga.cli.train_options import (
    Ablation,
    Asked,
    Config,
    Folder,
    Lora,
    Output,
    Parallel,
    Seed,
    Set,
    bounds,
    given_for,
    say,
    stage_options,
)
from vrga.hf.files import check_model

train = typer.Typer(
    help="Train a model to look back: rollouts, data, sft, rl, evaluate, report, in this order.",
    no_args_is_help=True,
)
HACKED = 5  # exit status of a run that was stopped


@train.command()
def rollouts(
    data: Asked = None,
    model: Model = None,
    output: Annotated[Path, typer.Option(help="Folder of the training.")] = Path("out/train"),
    samples: Annotated[int, typer.Option(help="Answers to each question.")] = 12,
    temperature: Annotated[float, typer.Option(help="Of sampling.")] = 1.0,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer; 128 of drawn questions, else 2048.")
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="cot, or a text with {question} and \\boxed{}.")
    ] = "cot",
    tag: Annotated[
        str, typer.Option(help="The word to look back with: <back> ... </back>.")
    ] = "back",
    server: Annotated[
        str | None, typer.Option(help="Ask this OpenAI-compatible server: http://host:8000/v1.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds for a reply of the server; 600 if absent.")
    ] = None,
    parallel: Parallel = None,
    split: Annotated[
        str | None,
        typer.Option(help=f"Of drawn questions: similar, noise+long, ...; {HARD} if absent."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions; 500 drawn ones.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of what is drawn at random; 0.")] = None,
    resume: Resume = False,
) -> None:
    """Answer every question several times, and score the answers."""
    check_readable(data, "questions")
    check_folder(output, "--output")
    given_for("drawn questions", data is None, split=split)
    check_chain(split, model)
    given_for("drawn questions or a loaded model", data is None or server is None, seed=seed)
    waiting = given_for("--server", server is not None, timeout=timeout, parallel=parallel)
    if server is None:
        check_model(model)
    elif model is None:
        raise ValueError("--server needs --model: the name by which the server knows its model")
    from vrga.training.questions import Questions
    from vrga.training.rollouts import ask
    from vrga.training.server import Server

    asked = Questions(
        None if data is None else str(data.resolve()), prompt=prompt, tag=tag,
        split=split or HARD, seed=seed or 0, limit=limit,
    )  # fmt: skip
    there = None if server is None else Server(server, **waiting)
    raise typer.Exit(
        guarded(
            lambda: ask(
                asked, model, output / "rollouts", samples=samples, temperature=temperature,
                max_new_tokens=max_new_tokens, server=there, resume=resume, console=console,
            ),
            output,
            console,
        )
    )  # fmt: skip


@train.command()
def data(
    folder: Folder,
    style: Annotated[
        str, typer.Option(help="semantic: amid the reasoning; solution: after a first answer.")
    ] = "semantic",
    reflection: Annotated[float, typer.Option(help="Share of the rows with a span.")] = 0.4,
    difficulty: Annotated[
        str, typer.Option(help="Least and greatest share of right answers of a question.")
    ] = ".05,.95",
    chains: Annotated[int, typer.Option(help="Of a question, at most.")] = 1,
    size: Annotated[int | None, typer.Option(min=1, help="Rows, at most.")] = None,
    teacher: Annotated[
        str, typer.Option(help="grid (drawn questions), a server's address, or module:function.")
    ] = "grid",
    teacher_model: Annotated[
        str | None, typer.Option(help="The name of the server's model.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds for a reply of the teacher; 120 if absent.")
    ] = None,
    parallel: Parallel = None,
    seed: Seed = 0,
    resume: Resume = False,
) -> None:
    """Choose right chains, have looks at the image put into some, and write the rows."""
    check_readable(folder, "training", folder=True)
    low, high = bounds(difficulty)
    from vrga.training.data import make
    from vrga.training.teachers import is_address

    waiting = given_for("a teacher that is no grid", teacher != "grid", timeout=timeout)
    waiting |= given_for("a teacher on a server", is_address(teacher), parallel=parallel)

    def run() -> None:
        make(
            folder, style=style, reflection=reflection, difficulty=(low, high), chains=chains,
            size=size, teacher=teacher, teacher_model=teacher_model, seed=seed, resume=resume,
            console=console, **waiting,
        )  # fmt: skip

    raise typer.Exit(guarded(run, folder / "data", console))


@train.command()
def sft(
    folder: Folder,
    config: Config = None,
    set_: Set = None,
    lora: Lora = None,
    output: Output = None,
    resume: Resume = False,
) -> None:
    """Train on the rows: the cold start."""
    options = stage_options("SFT", folder, output, config, set_ or [], lora=lora)
    from vrga.training.sft import sft

    def run() -> None:
        model = sft(folder, options, output=output, resume=resume, console=console)
        say(f"model: {model}")

    raise typer.Exit(guarded(run, output or folder / "sft", console))


@train.command()
def rl(
    folder: Folder,
    weight: Annotated[
        float | None, typer.Option("--lambda", help="What the form counts beside the answer's 1.")
    ] = None,
    scale_rewards: Annotated[
        str | None, typer.Option(help="Advantages over the spread of: group, batch, none.")
    ] = None,
    from_base: Annotated[bool, typer.Option("--from-base", help="Begin without SFT.")] = False,
    base: Annotated[
        Path | None, typer.Option(help="Begin with this checkpoint; sft/model if absent.")
    ] = None,
    stop_on_hacking: Annotated[
        bool,
        typer.Option("--stop-on-hacking", help="End when reward rises with empty or copied spans."),
    ] = False,
    config: Config = None,
    set_: Set = None,
    lora: Lora = None,
    output: Output = None,
    resume: Resume = False,
) -> None:
    """Reward answers: GRPO on the questions of mixed success; status 5 if hacked and stopped."""
    options = stage_options(
        "RL", folder, output, config, set_ or [], lora=lora, weight=weight,
        scale_rewards=scale_rewards,
    )  # fmt: skip
    from vrga.training.rl import rl

    told: list[str] = []

    def run() -> None:
        model, stopped = rl(
            folder, options, base=base, from_base=from_base, stop_on_hacking=stop_on_hacking,
            output=output, resume=resume, console=console,
        )  # fmt: skip
        told.extend([stopped] if stopped else [])
        say(f"model: {model}")

    status = guarded(run, output or folder / "rl", console)
    if told and not status:
        console.print(told[0], style="red", soft_wrap=True)
        status = HACKED
    raise typer.Exit(status)


@train.command()
def config(
    name: Annotated[
        str, typer.Argument(help="embedded, chain, paper-7b; zero3 for accelerate launch.")
    ],
) -> None:
    """Print a settings file of this package, to change a copy of it."""
    from vrga.training.settings import shipped

    typer.echo(shipped(name).read_text("utf-8"), nl=False)


@train.command()
def evaluate(
    folder: Folder,
    data: Annotated[
        Path | None, typer.Argument(help="Held-out questions; drawn ones if absent.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Answers to each question.")] = 4,
    limit: Annotated[int, typer.Option(min=1, help="Questions.")] = 500,
    split: Annotated[
        str | None, typer.Option(help="Of drawn questions; that of training if absent.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of sampling.")] = 1.0,
    resume: Resume = False,
) -> None:
    """Ask held-out questions before SFT, after it and after RL."""
    check_readable(folder, "training", folder=True)
    check_readable(data, "questions")
    from vrga.training.evaluate import evaluate

    def run() -> None:
        evaluate(
            folder, data, samples=samples, limit=limit, split=split, temperature=temperature,
            resume=resume, console=console,
        )  # fmt: skip

    raise typer.Exit(guarded(run, folder / "evaluation", console))


@train.command()
def report(
    folder: Folder,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page; report.html if absent.")
    ] = None,
) -> None:
    """Write the page of a training; says where a reward rises that is not earned."""
    check_readable(folder, "training", folder=True)
    if output is not None:
        check_file(output, "--output")
    from vrga.training.report import write_report

    path, told = write_report(folder, output)
    if told is not None:
        console.print(told, style="red", soft_wrap=True)
    say(f"report: {path}")


@train.command()
def ablate(
    ablation: Ablation,
    output: Annotated[Path, typer.Option(help="Folder that ablations share.")] = Path("out/ablate"),
    seeds: Annotated[int, typer.Option(help="Trainings of each arm.")] = 4,
    questions: Annotated[int, typer.Option(min=1, help="Of rollouts.")] = 300,
    samples: Annotated[int, typer.Option(help="Answers to each of them.")] = 8,
    rows: Annotated[int, typer.Option(min=1, help="Rows of SFT in each arm.")] = 80,
    limit: Annotated[int, typer.Option(min=1, help="Held-out questions.")] = 500,
    answers: Annotated[
        int | None, typer.Option(help="Answers to each of them, but of zoom; 4 if absent.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of drawn questions.")] = HARD,
    model: Model = None,
    config: Config = None,
) -> None:
    """An ablation, the paper's or our own, on a small model; goes on with what is in the folder."""
    own = given_for("ablations that sample, not by zoom,", ablation != "zoom", answers=answers)
    check_folder(output, "--output")
    check_chain("chain" if ablation == "zoom" else split, model)
    check_model(model)
    from vrga.training.stage import check_trl

    check_trl()
    from vrga.training.ablate import ablate

    def run() -> None:
        ablate(
            ablation, output, seeds=seeds, questions=questions, samples=samples, rows=rows,
            limit=limit, split=split, config=config, model=model, console=console, **own,
        )  # fmt: skip

    raise typer.Exit(guarded(run, output, console, again="the same command"))
