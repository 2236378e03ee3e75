"""The options of `vrga eval`, which is also `python benchmarks/evaluate.py`."""

from __future__ import annotations

import argparse
import errno
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from vrga.beforehand import STYLES, check_folder, check_readable, check_split
from vrga.config import PRESETS, VRGAConfig
from vrga.hf.brought import Chosen, choose
from vrga.hf.files import check_model, embedded

WRONG, STOPPED, FAILED, INTERRUPTED = 2, 3, 4, 130  # exit statuses; 0 is a whole run
DTYPES = ("auto", "float32", "bfloat16", "float16")
EPILOG = """\
exit status: 0 all samples answered; 2 wrong options; 3 stopped by a full disk; 4 some samples
failed (they count as wrong; see samples.jsonl); 130 interrupted; 1 anything else. After all but 2
the same command with --resume goes on where it was.
"""


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog=prog,
        description="Evaluate a model on lmms-eval's and this package's tasks, with and without "
        "VRGA, on the same samples and the same attention backend.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--model", help="hub id, folder, or short name; the embedded model if absent")
    add("--tasks", required=True, help="comma-separated: pope, mmstar, ..., MathVista, grid")
    add("--data", type=Path, help="folder with the tasks' files, instead of the hub")
    arm = made.add_mutually_exclusive_group(required=True)
    arm.add_argument("--vrga", action="store_const", dest="arms", const=("vrga",), help="steered")
    arm.add_argument("--no-vrga", action="store_const", dest="arms", const=("base",),
                     help="the unpatched model")  # fmt: skip
    arm.add_argument("--compare", action="store_const", dest="arms", const=("base", "vrga"),
                     help="both, paired")  # fmt: skip
    add("--preset", choices=PRESETS, help="configuration of the steered arm; the "
        "checkpoint's own, else paper, if absent")  # fmt: skip
    add("--gain", type=float, help="factor on attention to the region, over the preset's")
    add("--config", type=Path, help="a config as JSON, such as vrga tune writes")
    add("--prompt", default="task", help="task (its own), direct, cot, back, solution, or a text "
        "with {question}")  # fmt: skip
    add("--split", default="clean", help="of the grid task: clean, noise, similar, crowded, large, "
        "long, vast")  # fmt: skip
    add("--limit", type=_positive, help="samples of each task")
    add("--batch-size", type=_positive, default=1)
    add("--max-new-tokens", type=_positive, help="over the tasks' own")
    add("--min-pixels", type=_positive)
    add("--max-pixels", type=_positive)
    add("--dtype", default="auto", choices=DTYPES)
    add("--attn-implementation", help="sdpa, flash_attention_2, ...; the same for both arms")
    add("--device-map", help="auto: a model larger than one GPU")
    add("--seed", type=int, default=0, help="of sampling")
    add("--output", type=Path, required=True, help="folder of the run")
    add("--resume", action="store_true", help="go on with the run in --output")
    return made


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run `vrga eval`; returns the exit status.

    Raises:
        ValueError: options that do not fit together, or not the run that is resumed.
    """
    given = parser(prog).parse_args(arguments)
    _check_steering(given)
    _check(given)
    steering = _config(given)
    console = Console()
    from vrga.evaluation.run import Evaluation, evaluate  # imports torch

    chosen = Evaluation(
        model=given.model,
        tasks=tuple(name.strip() for name in given.tasks.split(",") if name.strip()),
        arms=given.arms,
        config=steering.config,
        told=str(steering),
        data=given.data,
        prompt=given.prompt,
        split=given.split,
        limit=given.limit,
        max_new_tokens=given.max_new_tokens,
        min_pixels=given.min_pixels,
        max_pixels=given.max_pixels,
        seed=given.seed,
        dtype=given.dtype,
        attn_implementation=given.attn_implementation,
        batch=given.batch_size,
        device_map=given.device_map,
    )
    return guarded(
        lambda: evaluate(chosen, given.output, resume=given.resume, console=console),
        given.output,
        console,
    )


def _check(given: argparse.Namespace) -> None:
    """Refuse what can be known to be wrong before anything is imported."""
    if not [name for name in given.tasks.split(",") if name.strip()]:
        raise ValueError("--tasks names no task")
    check_split(given.split)
    check_readable(given.data, "--data", folder=True)
    check_folder(given.output, "--output")
    if given.prompt not in ("task", "back", *STYLES) and "{question}" not in given.prompt:
        raise ValueError(
            f"--prompt {given.prompt}: task, back, {', '.join(STYLES)}, or a text with {{question}}"
        )
    if None not in (given.min_pixels, given.max_pixels) and given.min_pixels > given.max_pixels:
        raise ValueError(f"pixels: at least {given.min_pixels} and at most {given.max_pixels}")
    check_model(given.model)


def guarded(run: Callable[[], dict | None], output: Path, console: Console) -> int:
    """Run something that keeps its samples in a folder; returns the exit status.

    Args:
        run: returns its results, in which "failed" counts samples; None in other processes.
    """
    try:
        results = run()
    except KeyboardInterrupt:
        return _stopped(console, "interrupted", output, INTERRUPTED)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _stopped(console, str(error), output, STOPPED)
    if results and results["failed"]:
        told = f"{results['failed']} samples failed and count as wrong: see {output}"
        console.print(told, style="yellow", soft_wrap=True)
        return FAILED
    return 0


def _stopped(console: Console, why: str, output: Path, status: int) -> int:
    console.print(
        f"stopped ({why}): what is finished is in {output}; go on with --resume",
        style="red",
        soft_wrap=True,
    )
    return status


def _check_steering(given: argparse.Namespace) -> None:
    named = [f"--{n}" for n in ("preset", "gain", "config") if getattr(given, n) is not None]
    if "vrga" not in given.arms and named:
        raise ValueError(f"{', '.join(named)}: about steering, and --no-vrga does not steer")
    if given.config is not None and len(named) > 1:
        raise ValueError("--config is a whole configuration: leave out --preset and --gain")
    if given.config is not None:
        read_config(given.config)


def _config(given: argparse.Namespace) -> Chosen:
    if given.config is not None:
        return Chosen(read_config(given.config), str(given.config))
    return chosen(given.preset, given.gain, given.model)


def read_config(path: Path) -> VRGAConfig:
    """A config from a JSON file, or from a folder with vrga_config.json.

    Raises:
        OSError: no such file.
        ValueError: no JSON, or fields that a config does not have.
    """
    return VRGAConfig.from_pretrained(Path(path))


def chosen(preset: str | None, gain: float | None, model: str | None) -> Chosen:
    """How a command steers: by --preset and --gain, else by what the checkpoint brings.

    Args:
        model: checkpoint folder or hub id; None is the embedded model.
    """
    fields = {} if gain is None else {"gain": gain}
    where = embedded() if model is None else check_model(model)
    return choose(preset, fields, where, fetch=True)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value
