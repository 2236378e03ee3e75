"""`vrga train report`: what was rewarded, whether it was earned, and answers before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vrga.evaluation.json_text import read_object
from vrga.evaluation.store import SETTINGS, read_settings
from vrga.evaluation.wording import percent
from vrga.training.data import read_data
from vrga.training.evaluate import RESULTS
from vrga.training.filters import ANSWER_GATES, TEACHER_GATES
from vrga.training.hacking import hacking
from vrga.training.page import asked, marked, rendered
from vrga.training.record import read_steps
from vrga.training.rollouts import read_rollouts
from vrga.training.settings import RL

PAGE = "report.html"
CURVES = {
    "loss": "loss of SFT",
    "reward": "reward",
    "accuracy": "right answers",
    "form": "reward of the form",
    "trigger": "answers that look back",
    "valid": "in the valid form",
    "empty": "with an empty span",
    "copied": "with a span that repeats",
    "length": "tokens of an answer",
}
SHOWN = 8  # questions before and after
WIDTH, HEIGHT, LEFT, BOTTOM = 320, 130, 44, 18  # of a curve


def write_report(folder: Path, output: Path | None = None) -> tuple[Path, str | None]:
    """Write the page of a training.

    Args:
        folder: of the training, with at least one of sft/ and rl/ in it.
        output: the file; None is report.html in the folder.

    Returns:
        The page, and what is wrong with the reward, or None.

    Raises:
        ValueError: nothing was trained there.
        ImportError: Jinja2 is missing.
    """
    records = {
        name: read_steps(folder / name)
        for name in ("sft", "rl")
        if (folder / name / "run.json").is_file()
    }
    records = {name: steps for name, steps in records.items() if steps}
    if not records:
        raise ValueError(f"{folder} has no steps of training: run vrga train sft {folder} first")
    questions, held, _ = read_rollouts(folder / "rollouts")
    items = {item.id: item for item in questions.items()}
    told = hacking(records["rl"]) if "rl" in records else None
    _, summary = read_data(folder)
    text = rendered(
        "report.html.jinja",
        title="A model that learns to look back",
        model=held["model"] or "the embedded model",
        hacking=told,
        curves=_curves(records),
        gates=_gates(summary),
        figures=_figures(folder / "evaluation"),
        compared=_compared(folder / "evaluation"),
        rewarded=_rewarded(records.get("rl", []), items, questions.tag),
        weight=_weight(folder / "rl"),
    )
    path = output or folder / PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8", "replace"))
    return path, told


def _curves(records: Mapping[str, Sequence[dict]]) -> list[dict]:
    found = []
    for stage, steps in records.items():
        for name, title in CURVES.items():
            if (stage == "sft") != (name == "loss"):
                continue
            points = [(one["step"], one[name]) for one in steps if one.get(name) is not None]
            if points:
                found.append({"title": title, **curve(points)})
    return found


def curve(points: Sequence[tuple[float, float]]) -> dict:
    """A curve as SVG coordinates, and what its axes say.

    Args:
        points: (step, value) in order, at least one.
    """
    first, last = points[0][0], points[-1][0]
    values = [value for _, value in points]
    low, high = min(values), max(values)
    if high - low < 1e-9:
        high = low + 1
    wide, tall = WIDTH - LEFT - 4, HEIGHT - BOTTOM - 6
    path = " ".join(
        f"{LEFT + wide * (step - first) / max(last - first, 1):.1f},"
        f"{6 + tall * (high - value) / (high - low):.1f}"
        for step, value in points
    )
    return {
        "points": path, "low": f"{low:.3g}", "high": f"{high:.3g}", "first": first, "last": last,
        "now": f"{values[-1]:.3g}",
    }  # fmt: skip


def _gates(summary: Mapping) -> list[tuple[str, int]]:
    named = [(ANSWER_GATES, "answers"), (TEACHER_GATES, "teacher")]
    return [
        (told, summary["fell"][part].get(gate, 0))
        for gates, part in named
        for gate, told in gates.items()
    ]


def _figures(folder: Path) -> list[dict]:
    """The table of `vrga train evaluate`, or nothing."""
    path = folder / RESULTS
    if not path.is_file():
        return []
    again = f"vrga train evaluate {folder.parent} --resume writes it anew"
    found = read_object(path, again)
    return [
        {
            "name": name,
            "accuracy": percent(one["accuracy"]),
            "change": percent(one["against_base"], "+") if "against_base" in one else "",
            **{key: percent(one[key]) for key in ("trigger", "valid", "empty", "copied")},
        }
        for name, one in sorted(found["models"].items(), key=lambda pair: _order(pair[0]))
    ]


def _compared(folder: Path) -> list[dict]:
    """One answer of each model to the same questions: first those whose score changed."""
    runs = {
        path.parent.name: read_rollouts(path.parent)
        for path in sorted(folder.glob("*/run.json"), key=lambda path: _order(path.parent.name))
    }
    if len(runs) < 2 or "base" not in runs:
        return []
    questions = next(iter(runs.values()))[0]
    first = {
        name: {one["id"]: one for one in answers if one["sample"] == 0 and one["error"] is None}
        for name, (_, _, answers) in runs.items()
    }
    ids = [id for id in first["base"] if all(id in own for own in first.values())]
    last = list(first)[-1]
    ids.sort(key=lambda id: first["base"][id]["score"] == first[last][id]["score"])
    items = {item.id: item for item in questions.items()}
    return [
        {
            **asked(items[id]),
            "answers": [
                {"name": name, "right": bool(own[id]["score"]),
                 "text": marked(own[id]["text"], questions.tag)}
                for name, own in first.items()
            ],
        }
        for id in ids[:SHOWN]
    ]  # fmt: skip


def _order(name: str) -> tuple[int, str]:
    """The models in the order of training; JSON keeps them by name."""
    return {"base": 0, "sft": 1, "rl": 2}.get(name, 3), name


def _rewarded(steps: Sequence[dict], items: Mapping, tag: str) -> list[dict]:
    """Answers of a few steps, from the first to the last, with what each was paid."""
    with_answers = [one for one in steps if one.get("answers")]
    apart = max(len(with_answers) // 4, 1)
    shown = with_answers[::apart][:4] + with_answers[-1:]
    return [
        {
            "step": one["step"],
            "answers": [
                {**said, "question": items[said["id"]].question, "text": marked(said["text"], tag)}
                for said in one["answers"]
            ],
        }
        for one in {one["step"]: one for one in shown}.values()
    ]


def _weight(folder: Path) -> float:
    """Lambda of a run of RL."""
    if not (folder / SETTINGS).is_file():
        return RL().weight
    return read_settings(folder)["settings"]["weight"]
