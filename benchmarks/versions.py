"""The tests on many versions of transformers, and the record of it.

    python -m benchmarks.versions run [VERSION ...]   # of CORE what is not slow, on each of them
    python -m benchmarks.versions all                 # every test, on what is installed here
    python -m benchmarks.versions latest              # likewise, on the newest of everything

A version stands in an environment of its own, laid over the one that runs this: what the version
needs otherwise comes there, all else from here. Without VERSION it is each minor release since 5.10
in its last patch, and those of ALWAYS. Results are kept in benchmarks/results/versions.json, the
last of each version, and the table of docs/compatibility.md is written from them.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "versions.json"
OVERLAYS = ROOT / ".versions"
CORE = ("oracle", "accounting", "families", "passes", "host", "patch")
FIRST = (5, 10)
ALWAYS = ("4.57.6", "5.17.0", "5.19.0")
# What comes with a version of transformers, so that the pins of constraints.txt do not hold for it.
OWN = ("transformers", "huggingface-hub", "tokenizers")
PACKAGES = (*OWN, "torch", "triton")
LIMIT = 900  # seconds for one version
READ_PACKAGES = (
    "import importlib.metadata as m, json\n"
    "def of(name):\n"
    "    try: return m.version(name)\n"
    "    except m.PackageNotFoundError: return 'absent'\n"
    f"print(json.dumps({{name: of(name) for name in {PACKAGES!r}}}))"
)


def numbers(version: str) -> tuple[int, ...]:
    """To sort by; of a final release."""
    return tuple(int(part) for part in version.split("."))


def chosen(available: Iterable[str]) -> list[str]:
    """The versions to run of those that there are: oldest first.

    >>> chosen(["5.11.1", "5.11.0", "5.10.4", "5.9.0", "4.57.6", "5.17.0", "5.17.1", "5.19.0"])
    ['4.57.6', '5.10.4', '5.11.1', '5.17.0', '5.17.1', '5.19.0']
    """
    final = [v for v in available if re.fullmatch(r"\d+(\.\d+)+", v)]
    last: dict[tuple[int, ...], str] = {}
    for version in sorted(final, key=numbers):
        if numbers(version)[:2] >= FIRST:
            last[numbers(version)[:2]] = version
    return sorted({*last.values(), *(set(ALWAYS) & set(final))}, key=numbers)


def released() -> list[str]:
    """Every version of transformers that pip finds for this Python."""
    command = [sys.executable, "-m", "pip", "index", "versions", "transformers"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"^Available versions: (.+)$", told, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"pip index versions named no version of transformers: {told!r}")
    return found[1].split(", ")


def overlay(version: str) -> Path:
    """The Python of an environment with this version, over the one that runs this."""
    folder = OVERLAYS / version
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    base = next(path for path in sys.path if path.endswith("site-packages"))
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "base.pth").write_text(f"import site; site.addsitedir({base!r})\n")
    pins = folder / "constraints.txt"
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins.write_text("\n".join(line for line in lines if line.split("==")[0] not in OWN) + "\n")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
    command += ["--no-warn-conflicts", "--no-compile", "-c", str(pins), f"transformers=={version}"]
    subprocess.run(command, check=True)
    return python


def tested(python: Path, suite: str, files: Sequence[Path]) -> dict:
    """Run these tests in an environment: counts, the failures' names, versions, seconds."""
    packages = json.loads(
        subprocess.run(
            [str(python), "-c", READ_PACKAGES], capture_output=True, text=True, check=True
        ).stdout
    )
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command = [str(python), "-m", "pytest", *map(str, files), f"--junitxml={report}"]
        command += ["-m", "not slow"] if suite == "core" else []
        try:
            status = subprocess.run(command, cwd=ROOT, timeout=LIMIT * (4 if suite == "all" else 1))
            ended = f"pytest ended with {status.returncode}"
        except subprocess.TimeoutExpired as error:
            ended = f"not finished in {error.timeout:.0f} s"
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    kinds = {"failure": "failed", "error": "failed", "skipped": "skipped"}
    found: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for case in cases:
        kind = next((kinds[child.tag] for child in case if child.tag in kinds), "passed")
        found[kind].append(f"{case.get('classname')}::{case.get('name')}")
    if not found["passed"] and not found["failed"]:
        found["failed"] = [ended]
    return {
        "suite": suite,
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "packages": packages,
        "passed": len(found["passed"]),
        "failed": len(set(found["failed"])),
        "skipped": len(found["skipped"]),
        "failures": sorted(set(found["failed"])),
        "seconds": round(time.monotonic() - began),
    }


def kept() -> list[dict]:
    """All runs on record."""
    return json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []


def keep(run: dict) -> None:
    """Put a run on record in place of an earlier one of the same tests and version; of `latest`
    there is one alone, since what is newest changes."""

    def name(one: dict) -> tuple[str, str]:
        return one["suite"], "" if one["suite"] == "latest" else one["packages"]["transformers"]

    runs = [one for one in kept() if name(one) != name(run)] + [run]
    runs.sort(key=lambda one: (one["suite"] != "core", numbers(one["packages"]["transformers"])))
    RESULTS.write_text(json.dumps({"runs": runs}, indent=1) + "\n")


def main() -> int:
    """0, or 1 if a test failed anywhere."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "all", "latest"))
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="of transformers, for run")
    arguments = parser.parse_args()
    if arguments.versions and arguments.what != "run":
        parser.error(f"{arguments.what} tests what is installed; it takes no VERSION")
    failed = []
    if arguments.what == "run":
        files = [file for name in CORE for file in (ROOT / "tests").rglob(f"test_{name}.py")]
        assert len(files) == len(CORE), f"{len(files)} files of tests for {CORE}"
        for version in arguments.versions or chosen(released()):
            print(f"transformers {version}", flush=True)
            run = tested(overlay(version), "core", files)
            keep(run)
            failed += [version] if run["failed"] else []
    else:
        run = tested(Path(sys.executable), arguments.what, [ROOT / "tests"])
        keep(run)
        failed += [run["packages"]["transformers"]] if run["failed"] else []
    from benchmarks.table import renew

    renew()
    if failed:
        print(f"tests failed with transformers {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
