"""The examples run: each script as it stands, and the notebook's code cells one after the other."""

import json
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
(NOTEBOOK,) = EXAMPLES.glob("*.ipynb")
MADE = {"region_picture": ["region.png", "heads.png"], "trace_and_report": ["report.html"],
        "first_look": ["report.html"]}  # fmt: skip


def left_behind(name, folder):
    return [(folder / made).stat().st_size for made in MADE.get(name, [])]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_an_example_runs(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out and all(left_behind(script.stem, tmp_path))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    assert all(left_behind(NOTEBOOK.stem, tmp_path))


def test_the_notebook_is_kept_without_its_outputs():
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4
    assert not [cell for cell in notebook["cells"] if cell.get("outputs")]
