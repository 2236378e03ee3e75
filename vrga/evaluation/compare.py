"""`vrga compare A B`: two runs of `vrga eval`, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vrga.evaluation.store import ANSWERED, merge, parts, read_samples, read_settings
from vrga.evaluation.tables import BASE, difference
from vrga.evaluation.wording import Table, percent


@dataclass(frozen=True)
class Turned:
    """Two arms of one task, and the samples whose score changed between them.

    Args:
        name: of the task and its arms.
        change: as of `difference`.
        gained, lost: samples whose score rose and fell, each as (of the first run, of the second).
    """

    name: str
    change: dict
    gained: list[tuple[dict, dict]]
    lost: list[tuple[dict, dict]]

    @property
    def kinds(self) -> dict[str, list[tuple[dict, dict]]]:
        return {"gained": self.gained, "lost": self.lost}


def compare(
    first: Path, second: Path | None, console: Console, *, most: int = 10, html: Path | None = None
) -> dict[str, dict]:
    """Print how the second run differs from the first, and return it: "task arm" -> difference.

    Arms of the same name are compared; where each run has a single arm, these. Without a
    second run, the first one's other arms with its arm "base". Below the table stand the samples
    that became right and wrong; each difference has their ids, too.

    Args:
        most: samples printed of each kind.
        html: a page of all of them with their images, see `write_page`.

    Raises:
        ValueError: a folder without a run, or runs without a common sample.
        ImportError: Jinja2 is missing, which the page needs.
    """
    (theirs, other), (ours, mine) = _read(first), _read(first if second is None else second)
    within = second is None
    if second is None:
        theirs = [one for one in theirs if one["arm"] == BASE]
        ours = [one for one in ours if one["arm"] != BASE]
        if not theirs or not ours:
            raise ValueError(
                f"{first} has not both the arm {BASE} and another: give another run to compare it "
                "with, or make one by vrga eval --compare"
            )
        second = first
    settings = _differing(other, mine)
    for name, (before, after) in settings.items():
        console.print(f"{name}: {before!r} against {after!r}", markup=False)
    turned = list(_turned(ours, theirs, within))
    if not turned:
        raise ValueError(f"{first} and {second} have no task, arm and scored sample in common")
    found = {}
    for one in turned:
        ids = {kind: [new["id"] for _, new in pairs] for kind, pairs in one.kinds.items()}
        found[one.name] = {**one.change, "ids": ids}
    console.print(_table(found))
    for one in turned:
        for kind, pairs in one.kinds.items():
            for line in _listed(one.name, kind, pairs, most):
                # A line each, whatever a model has said.
                console.print(line, markup=False, highlight=False, no_wrap=True,
                              overflow="ellipsis")  # fmt: skip
    if html is not None:
        from vrga.evaluation.flips import write_page

        path = write_page(turned, (first, second), settings, html)
        console.print(f"page: {path}", style="dim", soft_wrap=True)
    return found


def _differing(before: dict, after: dict) -> dict[str, tuple]:
    """Settings that differ, by name: of those with fields, such as a config, those fields alone."""
    found: dict[str, tuple] = {}
    for name in sorted(before | after):
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= {f"{name}.{field}": two for field, two in _differing(old, new).items()}
        elif old != new:
            found[name] = old, new
    return found


def _turned(ours: list[dict], theirs: list[dict], within: bool) -> Iterator[Turned]:
    """Every pair of arms with a scored sample in common; `within` one run, each with its base."""
    for task in dict.fromkeys(one["task"] for one in theirs):
        before, after = (_by_arm(samples, task) for samples in (theirs, ours))
        if within:
            named = [(BASE, arm) for arm in after if BASE in before]
        elif len(before) == len(after) == 1:
            named = list(zip(before, after, strict=True))
        else:
            named = [(arm, arm) for arm in before if arm in after]
        for a, b in named:
            change = difference(after[b], before[a])
            if change["pairs"]:
                name = f"{task} {b}" if a == b else f"{task} {a} -> {b}"
                yield Turned(name, change, **flips(after[b], before[a]))


def flips(after: list[dict], before: list[dict]) -> dict[str, list[tuple[dict, dict]]]:
    """The samples whose score rose ("gained") and fell ("lost"), each as (first, second run)."""
    by_id = {one["id"]: one for one in before}
    found: dict[str, list[tuple[dict, dict]]] = {"gained": [], "lost": []}
    for one in after:
        if one["id"] in by_id:
            change = difference([one], [by_id[one["id"]]])
            for kind in found:
                found[kind] += [(by_id[one["id"]], one)] * change[kind]
    return found


def _listed(name: str, kind: str, pairs: list[tuple[dict, dict]], most: int) -> list[str]:
    """Lines that tell which samples these are, and what both runs said."""
    if not pairs:
        return []
    lines = [f"{kind} in {name}: {len(pairs)}"]
    for old, new in pairs[:most]:
        wanted = "" if new.get("target") is None else f" (right: {_line(new['target'])})"
        lines.append(f"  {new['id']}: {_said(old)} -> {_said(new)}{wanted}")
    if len(pairs) > most:
        left = len(pairs) - most
        lines.append(f"  and {left} more: vrga compare --most {len(pairs)}")
    return lines


def _said(sample: dict, width: int = 24) -> str:
    """The end of an answer, where its verdict stands, or why there is none."""
    if sample["error"] is not None:
        return f"failed, {_line(sample['error'])[:width]}"
    text = _line(sample["text"] or "")
    return repr(text if len(text) <= width else f"...{text[3 - width :]}")


def _line(text: object) -> str:
    return " ".join(str(text).split())


def _read(folder: Path) -> tuple[list[dict], dict]:
    """Samples and settings of a finished or an unfinished run."""
    settings = read_settings(folder)
    samples: dict[str, dict] = {}
    for path in parts(folder):
        # A line may be cut off, if the run was stopped.
        found, _ = read_samples(path, settings["hash"], ANSWERED)
        merge(samples, [one for one in found if isinstance(one.get("task"), str)])
    return list(samples.values()), settings["settings"]


def _by_arm(samples: list[dict], task: str) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for one in samples:
        if one["task"] == task:
            found.setdefault(one["arm"], []).append(one)
    return found


def _table(found: dict[str, dict]) -> Table:
    columns = ("task", "pairs", "difference", "p", "gained", "lost")
    table = Table(*columns, title="second run less the first; brackets: 95 % intervals")
    for name, one in found.items():
        p = "" if one["p"] is None else f"{one['p']:.2g}"
        table.add_row(
            name, str(one["pairs"]), percent(one["score"], "+"), p, str(one["gained"]),
            str(one["lost"]),
        )  # fmt: skip
    return table
