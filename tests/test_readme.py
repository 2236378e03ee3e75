"""The README's Python snippets run as they stand, one after the other."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(SNIPPETS) >= 2
    names = {}
    for snippet in SNIPPETS:
        exec(compile(snippet, "README.md", "exec"), names)
    for made in ("region.png", "tokens.png", "compare.png", "report.html"):
        assert (tmp_path / made).stat().st_size > 0


@pytest.mark.slow
def test_the_pictures_of_the_five_minute_page_can_be_drawn(tmp_path):
    pictures = runpy.run_path(str(ROOT / "docs" / "pictures.py"))
    pictures["main"](tmp_path)
    named = re.findall(r"\(pictures/(\w+\.png)\)", (ROOT / "docs" / "why.md").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(named)
    assert all((ROOT / "docs" / "pictures" / name).exists() for name in named)
