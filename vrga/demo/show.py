"""`vrga demo`: a closer look, then one picture and a table over held-out questions."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.text import Text

from vrga.config import VRGAConfig
from vrga.demo.arm import Arm, run_arm
from vrga.demo.data import PROMPTS, TEST_SEEDS, Sample, make_samples, prepare
from vrga.demo.fine.show import show_closer
from vrga.evaluation.wording import Table, percent, say_config, share
from vrga.hf.brought import checkpoint_of, choose
from vrga.hf.checkpoints import load
from vrga.intervals import mean_interval, paired_difference, wilson
from vrga.method.region import Region
from vrga.steering.patching import patch

OFF = VRGAConfig(gain=1.0)
CLOSER_QUESTIONS = 40  # at most, of each split: every arm asks them anew


def show(output: Path, questions: int, console: Console) -> dict:
    """Run the demo; what it measured, with 95 % intervals as [value, low, high].

    Args:
        output: folder for the pictures.
        questions: held-out questions per prompt.
        console: where to print.
    """
    closer = show_closer(output, min(questions, CLOSER_QUESTIONS), console)
    model, processor = load(dtype=torch.float32)
    chosen = choose(None, {}, *checkpoint_of(model))
    say_config(console, chosen)
    samples = make_samples(questions + 1, seed=TEST_SEEDS.start)
    _one_image(model, processor, samples[0], output, console)
    arms: dict[tuple[str, bool], Arm] = {}
    runs = [(prompt, on) for prompt in PROMPTS for on in (False, True)]
    for prompt, on in track(runs, "measuring", console=console, transient=True):
        config = chosen.config if on else OFF
        arms[prompt, on] = run_arm(model, processor, samples[1:], prompt, config)
    found = {prompt: _summary(arms[prompt, False], arms[prompt, True]) for prompt in PROMPTS}
    console.print(_table(found, questions))
    for prompt, summary in found.items():
        region = summary["region"]
        console.print(
            f"{prompt}: the true cell is in T in {percent(region['hit'])}, the map peaks on it "
            f"in {percent(region['peak'])}; T covers {100 * region['coverage']:.0f} % of the image"
        )
    console.print(
        "RRAR: attention on the true cell / on the image, mean over visual heads and answer "
        "tokens. Brackets: 95 % intervals."
    )
    return {"questions": questions, "prompts": found, "closer": closer}


def _summary(off: Arm, on: Arm) -> dict:
    """Both arms of one prompt, and the difference on the same questions."""
    return {
        "accuracy": {
            "off": wilson(off.right),
            "on": wilson(on.right),
            "difference": paired_difference(on.right, off.right),
        },
        "rrar": {
            "off": mean_interval(off.look("rrar")),
            "on": mean_interval(on.look("rrar")),
            "difference": paired_difference(on.look("rrar"), off.look("rrar")),
        },
        "region": {
            "hit": wilson(on.look("hit")),
            "peak": wilson(on.look("peak")),
            "coverage": float(on.look("coverage").mean()),
        },
    }


def _one_image(model, processor, sample: Sample, output: Path, console: Console) -> None:
    """Answer one question without and with VRGA, and show where the model was made to look."""
    from vrga.plots import region_figure, save

    inputs = prepare(processor, [sample], "direct").to(model.device)

    def generate() -> str:
        tokens = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        return processor.batch_decode(new, skip_special_tokens=True)[0]

    answers = {"without VRGA": generate()}
    with patch(model) as steered:
        answers["with VRGA"] = generate()
        region = steered.region[0]
    console.print(f"[bold]{sample.question}[/bold] (the answer is {sample.color})")
    for name, text in answers.items():
        console.print(f"  {name}: {text}")
    console.print(_cells(sample, region))
    figure = region_figure([sample.image], region, title=sample.question, answers=answers)
    path = save(figure, output / "demo.png")
    console.print(f"  bright cells: relevance map; [ ]: region T. Picture: {path.resolve()}\n")


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


def _table(found: dict[str, dict], questions: int) -> Table:
    table = Table(title=f"{questions} held-out questions, embedded model")
    for column in ("prompt", "measure", "without VRGA", "with VRGA", "difference"):
        table.add_column(column)
    for prompt, summary in found.items():
        for name, text in (("accuracy", percent), ("rrar", share)):
            off, on, change = (summary[name][arm] for arm in ("off", "on", "difference"))
            table.add_row(
                prompt, name.replace("rrar", "RRAR"), text(off), text(on), text(change, "+")
            )
    return table
