"""Write the pages' tables from the measured results: python -m benchmarks.table

Every table stands between two comment lines of one page, README.md or one of docs/, and is made
from the JSON files in benchmarks/results/ alone. `--check` changes nothing and fails if a page
differs.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import answers, engine_costs, finding, speed, timing, trainings
from benchmarks import versions as record
from benchmarks.gpu import foreseen, tables
from benchmarks.timing import RESULTS, ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def versions() -> str:
    """What was run with which transformers, and when."""
    suites = {
        "core": "`make test-versions`",
        "all": "`make test`",
        "latest": "`make latest`, the newest of everything",
    }
    head = ["transformers", "tests", "passed", "failed", "skipped", "torch", "Python", "on"]
    return timing.table(head, (
        [run["packages"]["transformers"], suites[run["suite"]], run["passed"], run["failed"],
         run["skipped"], run["packages"]["torch"].split("+")[0], run["python"], run["date"]]
        for run in record.kept()
    ))  # fmt: skip


TABLES = {
    "summary": answers.summary,
    "analyses": answers.analyses,
    "recovery": answers.recovery,
    "demo": answers.demo,
    "evaluation": answers.evaluation,
    "lookback": answers.lookback,
    "uncertain": answers.uncertain,
    "training": trainings.training,
    "ablations": trainings.ablations,
    "looking": trainings.looking,
    "growth": speed.growth,
    "contenders": speed.contenders,
    "host": speed.host,
    "compiled": speed.compiled,
    "predicted": foreseen.table,
    "gpu": lambda: tables.text(RESULTS / "gpu"),
    "trace": speed.trace,
    "steps": speed.steps,
    "instructions": speed.instructions,
    "attention": speed.attention,
    "accounting": speed.accounting,
    "engine": speed.engine,
    "engine on paper": engine_costs.table,
    "closer": answers.closer,
    "again": trainings.again,
    "finding": finding.finding,
    "versions": versions,
}


def markers(name: str) -> tuple[str, str]:
    """The lines that a table stands between."""
    return f"<!-- {name}: python -m benchmarks.table -->", f"<!-- end {name} -->"


def filled(pages: Mapping[Path, str]) -> dict[Path, str]:
    """Pages with every table made anew.

    Raises:
        ValueError: a table that stands in no page, or in several places.
    """
    new = dict(pages)
    for name, make in TABLES.items():
        start, end = markers(name)
        pattern = f"{re.escape(start)}.*?{re.escape(end)}"
        found = [(path, old) for path, text in pages.items()
                 for old in re.findall(pattern, text, re.DOTALL)]  # fmt: skip
        if len(found) != 1:
            where = ", ".join(path.name for path, _ in found) or "no page"
            raise ValueError(
                f"the lines {start} and {end} stand in {where}; they must stand once in one of "
                f"{', '.join(path.name for path in pages)}"
            )
        ((path, old),) = found
        new[path] = new[path].replace(old, f"{start}\n{make()}\n{end}")
    return new


def renew(pages: Sequence[Path] = PAGES) -> list[Path]:
    """Write every table anew; the pages that changed."""
    old = {path: path.read_text() for path in pages}
    new = filled(old)
    changed = [path for path in pages if new[path] != old[path]]
    for path in changed:
        path.write_text(new[path])
    return changed


def main() -> int:
    """0, or 1 if `--check` found a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if different")
    arguments = parser.parse_args()
    if arguments.check:
        old = {path: path.read_text() for path in PAGES}
        return int(filled(old) != old)
    renew()
    return 0


if __name__ == "__main__":
    sys.exit(main())
