"""The page's tables of `vrga analyze finding`: from which words the place is found, how surely."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.answers import read
from benchmarks.timing import RESULTS
from vrga.analysis.finding import number, shares
from vrga.analysis.ways import BORDER, LAST, NAMED, NAMES, OPEN, WHOLE
from vrga.evaluation.wording import markdown, percent

ABSTAIN = ("0", "0.5", "0.7")  # thresholds that are shown; the first steers all
HEAD = ("questions", "map", "highest where asked", "less the turn's last token", "sure: AUROC",
        "right of the surest 50, 80, 90 %")  # fmt: skip


def finding() -> str:
    """The main maps; every map; borders; scores of certainty; what abstaining changes."""
    runs = {path.stem: read(f"finding/{path.stem}") for path in _stored()}
    one = next(iter(runs.values()))
    every = [name for name in NAMES if name not in (BORDER, OPEN)]
    parts = [
        markdown(HEAD, _main(runs)),
        "Highest where asked, every map that was tried:",
        markdown(["map", *runs], _each(runs, every, "peak")),
        "What is asked for in T, with the border that the released code leaves out, and without:",
        markdown(["T", *runs], _each(runs, (BORDER, OPEN), "in_region")),
        "AUROC of scores of how sure the map of the question's last token is:",
        markdown(["score", *runs], [
            [name, *(number(run["scores"][name]["auroc"]) for run in runs.values())]
            for name in one["scores"]
        ]),
        "Right answers, less those without steering; the question named, below a threshold none "
        "is steered:",
        markdown(["questions", "abstain", "steered", "right, less without steering"], _left(runs)),
    ]  # fmt: skip
    return "\n\n".join(parts)


def _stored() -> list[Path]:
    """Runs of the command, those about cards last."""
    found = (RESULTS / "finding").glob("*.json")
    return sorted(found, key=lambda path: (path.stem.startswith("fine"), path.stem))


def _main(runs: Mapping[str, Mapping]) -> list[list[str]]:
    rows = []
    for split, run in runs.items():
        for name in (LAST, NAMED, WHOLE):
            one = run["ways"][name]
            change = "" if name == LAST else percent(one["less_last"], "+")
            rows.append([f"{split}, {run['questions']:,}", name, percent(one["peak"]), change,
                         number(one["auroc"]), shares(one["surest"])])  # fmt: skip
    return rows


def _each(runs: Mapping[str, Mapping], names, kind: str) -> list[list[str]]:
    return [
        [name, *(f"{100 * run['ways'][name][kind][0]:.1f} %" for run in runs.values())]
        for name in names
    ]


def _left(runs: Mapping[str, Mapping]) -> list[list[str]]:
    return [
        [f"{split}, {run['questions']:,}", threshold, percent(one["steered"]),
         percent(one["change"], "+")]
        for split, run in runs.items() if "abstain" in run
        for threshold, one in run["abstain"]["thresholds"].items() if threshold in ABSTAIN
    ]  # fmt: skip
