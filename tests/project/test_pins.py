"""What the tests are run with: constraints.txt, and the versions of transformers."""

import json
import re
import runpy
import subprocess
from pathlib import Path
from unittest import mock

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import table, versions

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "constraints.txt").read_text().splitlines()
PINS = [Requirement(line) for line in LINES if not line.startswith("#")]
OF_TORCH = re.compile(r"torch|triton|(nvidia|cuda)-.*")


def holds(one, python):
    """Whether the marker of a requirement holds on Linux with this Python."""
    where = {"python_version": python, "python_full_version": f"{python}.0", "os_name": "posix",
             "sys_platform": "linux", "platform_machine": "x86_64",
             "implementation_name": "cpython"}  # fmt: skip
    return one.marker is None or Marker(str(one.marker)).evaluate(where)


def pinned(python):
    """name -> version on Linux with this Python."""
    found = {}
    for pin in PINS:
        if holds(pin, python):
            assert pin.name not in found, f"{pin.name} is pinned twice for Python {python}"
            found[pin.name] = next(iter(pin.specifier)).version
    return found


def required():
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    told = setup.call_args.kwargs
    extras = told["extras_require"].values()
    return [Requirement(line) for group in (told["install_requires"], *extras) for line in group]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_everything_that_setup_asks_for_is_pinned_within_its_bounds(python):
    pins = pinned(python)
    for one in required():
        name = canonicalize_name(one.name)
        if not OF_TORCH.fullmatch(name) and holds(one, python):
            assert name in pins and one.specifier.contains(pins[name]), one
    assert {"pip", "setuptools", "wheel"} <= set(pins)


def test_pins_are_exact_and_fit_any_build_of_torch():
    for pin in PINS:
        (bound,) = pin.specifier
        assert bound.operator == "==" and "*" not in bound.version, pin
        assert "+" not in bound.version and pin.url is None, pin  # no build's own label, no address
        assert not OF_TORCH.fullmatch(pin.name), pin  # TORCH in the Makefile says which
    assert "://" not in "\n".join(LINES)


def test_transformers_is_not_capped():
    (one,) = [one for one in required() if one.name == "transformers"]
    assert {bound.operator for bound in one.specifier} == {">=", "!="}
    assert one.specifier.contains("5.99.0") and not one.specifier.contains("5.9.0")


def test_each_minor_release_is_run_in_its_last_patch():
    there = ["5.11.1", "5.11.0", "5.10.4", "5.10.12", "5.9.0", "4.57.6", "5.17.0", "5.17.1",
             "5.19.0", "6.0.0", "6.0.0rc1", "4.56.2"]  # fmt: skip
    assert versions.chosen(there) == [
        "4.57.6", "5.10.12", "5.11.1", "5.17.0", "5.17.1", "5.19.0", "6.0.0",
    ]  # fmt: skip


def ran(version, suite="core", **more):
    packages = {"transformers": version, "torch": "2.13.0+cpu"}
    return {"suite": suite, "packages": packages, "passed": 9, "failed": 0, "skipped": 2,
            "python": "3.11.7", "date": "2026-11-26"} | more  # fmt: skip


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "RESULTS", tmp_path / "versions.json")


def test_the_last_run_of_a_version_stands_in_the_table(record):
    for run in (ran("5.24.0"), ran("5.9.1"), ran("5.24.0", failed=3), ran("5.23.0", "latest"),
                ran("5.24.0", "latest"), ran("5.24.0", "all")):  # fmt: skip
        versions.keep(run)
    assert len(json.loads(versions.RESULTS.read_text())["runs"]) == 4
    rows = [line.split(" | ") for line in table.versions().splitlines()[2:]]
    assert [row[0] for row in rows] == ["| 5.9.1", "| 5.24.0", "| 5.24.0", "| 5.24.0"]
    assert rows[1][1:] == ["`make test-versions`", "9", "3", "2", "2.13.0", "3.11.7",
                           "2026-11-26 |"]  # fmt: skip
    assert rows[2][1].startswith("`make latest`") and rows[3][1] == "`make test`"


def test_tests_that_never_ran_are_a_failure(tmp_path, monkeypatch):
    """Collection that stumbles, or a process that dies, must not read as a pass."""
    fails = tmp_path / "test_none.py"
    fails.write_text("import no_such_module\n")
    answers = [mock.Mock(stdout='{"transformers": "5.24.0"}'), mock.Mock(returncode=-9)]
    monkeypatch.setattr(subprocess, "run", mock.Mock(side_effect=answers))
    run = versions.tested(Path("python"), "core", [fails])
    assert (run["passed"], run["failed"]) == (0, 1)
    assert run["failures"] == ["pytest ended with -9"]
