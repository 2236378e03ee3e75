"""The pages' tables of training: models before and after it, ablations, looking again."""

from __future__ import annotations

from benchmarks.answers import read
from benchmarks.looking import PLAIN
from vrga.evaluation.wording import markdown, percent, share
from vrga.training import zoomed

ABLATIONS = ("sft", "rl", "lambda", "style", "tag", "reflection", "mix")


def training() -> str:
    """Models that were trained to look back, on the same held-out questions."""
    rows = []
    for name, one in read("training")["models"].items():
        change = percent(one["against_base"], "+") if "against_base" in one else ""
        shares = (f"{100 * one[key][0]:.1f} %" for key in ("trigger", "valid", "empty", "copied"))
        rows.append([name, percent(one["accuracy"]), change, *shares])
    names = ("model", "accuracy", "against base", "looks back", "valid", "empty", "repeats")
    joint = []
    for name in ("off", "always", "back", "back+relocate"):
        one = read("training")["joint"][name]
        change = percent(one["against_off"]["accuracy"], "+") if one["against_off"] else ""
        looks = (share(one[x]) for x in ("rrar", "image_inside", "image_outside"))
        joint.append([name, percent(one["accuracy"]), change, *looks])
    steered = ("VRGA", "accuracy", "against off", "RRAR", "image, inside", "image, outside")
    return f"{markdown(names, rows)}\n\n{markdown(steered, joint)}"


def ablations() -> str:
    """What each part of training is worth, each ablation over all its seeds."""
    rows: list[list[str]] = []
    untrained: list[list[float]] = []
    for name in ABLATIONS:
        run = read(f"ablate/{name}")
        shape = f"{name}, {run['seeds']} x {run['questions']} x {run['answers']}"
        for arm in sorted(run["arms"], key=lambda arm: (arm != "base", arm)):
            one = run["arms"][arm]
            if arm == "base":
                if one["by_seed"] in untrained:  # told already
                    continue
                untrained.append(one["by_seed"])
            first = arm in ("base", one["compared_with"])
            rows.append([
                shape, arm.replace("<", "\\<"), percent(one["accuracy"]),
                "" if first else percent(one["against"], "+"),
                *(f"{100 * one[key]:.1f} %" for key in ("trigger", "valid", "empty", "copied")),
                " ".join(f"{100 * own:.1f}" for own in one["by_seed"]),
            ])  # fmt: skip
            shape = ""
    names = ("accuracy", "difference", "looks back", "valid", "empty", "repeats", "by seed")
    return markdown(("ablation", "trained", *names), rows)


def looking() -> str:
    """What looking again costs, with nothing new to see and with crops."""
    run = read("looking")
    rows = [
        [
            split, way, f"{100 * own['right'].count('1') / run['questions']:.0f} %",
            *(f"{own[name]['median']:.0f}" for name in ("visual", "prompt", "answer")),
            f"{own['gigaflops']['median'] / ways[PLAIN]['gigaflops']['median']:.2f}",
            f"{own['time']['median']:.2f} ({own['time']['low']:.2f} to {own['time']['high']:.2f})",
        ]
        for split, ways in run["splits"].items() for way, own in ways.items()
    ]  # fmt: skip
    columns = ("visual tokens", "tokens of prompts", "said", "operations", "time")
    return markdown(("questions", "way", f"right of {run['questions']}", *columns), rows)


def again() -> str:
    """What a trained <back> is worth with a closer look at its place, and over either alone."""
    run = read("again")
    asked = f"right of {run['questions']:,} a seed"
    names = [asked if name == "right" else name for name in zoomed.COLUMNS]
    told = markdown(names, zoomed.rows(run))
    return f"{told}\n\n{markdown(zoomed.DIFFERENCE, zoomed.differences(run))}"
