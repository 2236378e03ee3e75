"""`vrga demo`: a closer look, what steering changes, a table over held-out questions, what next."""

from __future__ import annotations

import importlib.util
import math
import os
import shlex
import shutil
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.text import Text

from vrga.config import VRGAConfig, unsteered_config
from vrga.demo.arm import Arm, run_arm
from vrga.demo.data import PROMPTS, TEST_SEEDS, Sample, make_samples, prepare, split_options
from vrga.demo.fine.show import show_closer
from vrga.evaluation.wording import Table, percent, say_config, share
from vrga.hf.checkpoints import load
from vrga.hf.chosen_config import checkpoint_of, choose
from vrga.intervals import Interval, mean_interval, paired_difference, wilson
from vrga.method.region import Region
from vrga.steering.patching import patch

CLOSER_QUESTIONS = 40  # at most, of each split: every arm asks them anew
REASONED = "cot"
SAID = {"direct": "asked directly", "cot": "asked to reason", "back": "asked to look back"}


def show(output: Path, questions: int, console: Console, split: str) -> dict:
    """Run the demo; what it measured, with 95 % intervals as [value, low, high].

    Args:
        output: folder for the pictures.
        questions: held-out questions per prompt.
        console: where to print.
        split: of the questions, a key of `SPLITS`.
    """
    closer = show_closer(output, min(questions, CLOSER_QUESTIONS), console)
    model, processor = load(dtype=torch.float32)
    chosen = choose(None, {}, *checkpoint_of(model))
    samples = make_samples(questions + 1, seed=TEST_SEEDS.start, **split_options(split))
    configs = {False: unsteered_config(chosen.config), True: chosen.config}
    runs = [(prompt, on) for prompt in PROMPTS for on in configs]
    arms: dict[tuple[str, bool], Arm] = {}
    for prompt, on in track(runs, "measuring", console=console, transient=True):
        arms[prompt, on] = run_arm(model, processor, samples[1:], prompt, configs[on])
    found = {prompt: _summary(arms[prompt, False], arms[prompt, True]) for prompt in PROMPTS}

    console.print(
        f"[bold]What steering changes[/bold], over {questions} held-out questions of the split "
        f"{split}, {SAID[REASONED]}:"
    )
    for line in headline(found):
        console.print(f"  {line}", highlight=False)
    say_config(console, chosen)
    console.print()
    question = _one_image(model, processor, samples[0], chosen.config, output, console)
    console.print(table(found, questions, split))
    for line in _regions(found):
        console.print(line)
    console.print(
        "Region: attention on the region T from the first token; RRAR: attention on the true cell "
        "/ on the image, over the answer. Means over visual heads. Brackets: 95 % intervals.\n"
    )
    console.print("[bold]What next[/bold]")
    for line in next_commands(question, samples[0].question, output):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    return {"questions": questions, "split": split, "prompts": found, "closer": closer}


def _summary(off: Arm, on: Arm) -> dict:
    """Both arms of one prompt, and the difference on the same questions."""
    figures: dict[str, dict[str, object]] = {
        "accuracy": {
            "off": wilson(off.right),
            "on": wilson(on.right),
            "difference": paired_difference(on.right, off.right),
        }
    }
    for name in ("rrar", "first"):
        figures[name] = {
            "off": mean_interval(off.look(name)),
            "on": mean_interval(on.look(name)),
            "difference": paired_difference(on.look(name), off.look(name)),
        }
    figures["region"] = {
        "hit": wilson(on.look("hit")),
        "peak": wilson(on.look("peak")),
        "coverage": float(on.look("coverage").mean()),
    }
    return figures


def headline(found: dict[str, dict]) -> list[str]:
    """What changes, in the order of how surely it does, and what does not; by the intervals.

    Args:
        found: prompt -> what was measured, `REASONED` among them.
    """
    lines = []
    for name, what, text in (
        ("first", "region, first token", percent),
        ("rrar", "RRAR", share),
        ("accuracy", "right answers", percent),
    ):
        off, on, change = (found[REASONED][name][arm] for arm in ("off", "on", "difference"))
        ends = f"{_value(text, off)} -> {_value(text, on)}"
        lines.append(f"{what:<20}{ends:<18}{text(change, '+'):<24}{sure(change)}")
    return lines


def sure(change: Interval) -> str:
    """What a paired difference says: "rises", "falls", "no clear change", or why it says nothing.

    Without an interval there are too few questions: few, or fewer than a hundred that all agree.
    """
    _, low, high = change
    if math.isnan(low):
        return "cannot tell, too few questions"
    return "rises" if low > 0 else "falls" if high < 0 else "no clear change"


def _value(text, interval: Interval) -> str:
    return text((interval[0], math.nan, math.nan))


def _one_image(
    model, processor, sample: Sample, config: VRGAConfig, output: Path, console: Console
) -> Path:
    """Answer one question without and with VRGA, show where the model was made to look, and keep
    the question's image: its path."""
    from vrga.plots import region_figure, save

    inputs = prepare(processor, [sample], "direct").to(model.device)

    def generate() -> str:
        tokens = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        return processor.batch_decode(new, skip_special_tokens=True)[0]

    answers = {"without VRGA": generate()}
    with patch(model, config) as steered:
        answers["with VRGA"] = generate()
        region = steered.region[0]
    console.print(
        f"[bold]{sample.question}[/bold] (the answer is {sample.color}; the first question drawn, "
        "not picked)"
    )
    for name, text in answers.items():
        console.print(f"  {name}: {text}", markup=False)
    console.print(_cells(sample, region))
    figure = region_figure([sample.image], region, title=sample.question, answers=answers)
    path = save(figure, output / "demo.png")
    console.print(
        f"  bright cells: relevance map; [ ]: region T. Picture: {path.resolve()}\n",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    image = output / "question.png"
    sample.image.save(image)
    return image


def _cells(sample: Sample, region: Region) -> Text:
    """The image's cells as text: letters, shaded by the map, bracketed where they are in T."""
    letters = {cell: letter for letter, _, cell in sample.objects}
    grid, heat = region.grids[0], region.map[0]
    mask = region.mask[grid.index].view(grid.h, grid.w)
    text = Text()
    for r in range(grid.h):
        text.append("  ")
        for c in range(grid.w):
            level = int(40 + 215 * float(heat[r, c] / heat.max().clamp_min(1e-12)))
            ink = "black" if level > 127 else "white"
            left, right = "[]" if mask[r, c] else "  "
            text.append(
                f"{left}{letters.get((r, c), '.')}{right}", f"{ink} on rgb({level},{level},{level})"
            )
        text.append("\n")
    return text


def table(found: dict[str, dict], questions: int, split: str) -> Table:
    """What steering changes for each prompt: attention on the region, RRAR, right answers."""
    title = f"{questions} held-out questions of the split {split}, embedded model"
    made = Table("prompt", "measure", "without VRGA", "with VRGA", "difference", title=title)
    rows = (("first", "region", percent), ("rrar", "RRAR", share), ("accuracy", "right", percent))
    for prompt, summary in found.items():
        for name, shown, text in rows:
            off, on, change = (summary[name][arm] for arm in ("off", "on", "difference"))
            made.add_row(prompt, shown, text(off), text(on), text(change, "+"))
    return made


def _regions(found: dict[str, dict]) -> list[str]:
    """How good the regions are, told once for prompts that have the same."""
    told: dict[str, list[str]] = {}
    for prompt, summary in found.items():
        region = summary["region"]
        line = (
            f"the true cell is in T in {percent(region['hit'])}, the map peaks on it in "
            f"{percent(region['peak'])}; T covers {100 * region['coverage']:.0f} % of the image"
        )
        told.setdefault(line, []).append(prompt)
    return [f"{', '.join(prompts)}: {line}" for line, prompts in told.items()]


def next_commands(image: Path, question: str, output: Path) -> list[str]:
    """Three commands to go on with, as they can be typed.

    Args:
        image: of the question, as a file; output: folder for what they write.
    """
    # The demo may run in an environment that is not active.
    vrga = "vrga" if shutil.which("vrga") else os.path.relpath(sys.argv[0])
    traces, page = output / "traces", output / "report.html"
    needs = "" if importlib.util.find_spec("gradio") else ", after pip install '.[app]'"
    ask = ["generate", "--image", str(image), "--question", question, "--trace", str(traces)]
    return [
        f"{shlex.join([vrga, *ask])}",
        f"{shlex.join([vrga, 'report', str(traces), '-o', str(page)])}   # then open the page",
        f"{vrga} app   # your own picture and question{needs}",
    ]
