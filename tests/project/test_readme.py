"""The pages say what is so: their code runs, their commands and links are there, every refusal is
explained, and every table is the one that the results give.

Python blocks run as they stand, one page after the other in a folder of its own. Those below the
line REAL load a checkpoint that no test can have: for them `vrga.load` gives the embedded model
whatever name it is asked for, and photo.jpg is a picture that this model can read.
"""

import ast
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import vrga
from benchmarks import table
from vrga.cli import app
from vrga.demo.data import make_samples

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = [ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md")]
REAL = "<!-- real checkpoint -->\n"
BLOCK = re.compile(rf"({re.escape(REAL)})?```python\n(.*?)```", re.DOTALL)
# By docs/screenshots.py and docs/screenshots_report.py, which need a browser, and docs/trained.py,
# which needs a trained checkpoint too.
SHOTS = [
    "app_wide.png", "app_phone.png", "report_wide.png", "report_phone.png", "trained_report.png",
    "trained_trend.png",
]  # fmt: skip
MADE = {  # what a page's code leaves behind
    "README.md": [],
    "guide.md": ["region.png", "trend.png"],
    "look-back.md": ["look-back.html", "trend.png"],
    "traces-and-report.md": ["tokens.png", "compare.png", "atlas.png", "report.html"],
}


def titles(paths):
    return [path.name for path in paths]


WITH_CODE = [path for path in PAGES if BLOCK.search(path.read_text())]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=titles(WITH_CODE))
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_samples(1, seed=1)[0].image.save("photo.jpg")
    load, names = vrga.load, {}
    for real, code in BLOCK.findall(page.read_text()):
        asked = []

        def stand_in(name=None, asked=asked, **kwargs):
            asked.append(name)
            return load(**kwargs)

        monkeypatch.setattr(vrga, "load", stand_in if real else load)
        exec(compile(code, page.name, "exec"), names)
        assert not real or (asked and all(asked)), "this block needs no real checkpoint"
    for made in MADE.get(page.name, []):
        assert (tmp_path / made).stat().st_size > 0


def test_the_readme_fits_on_a_few_screens():
    assert len(README.read_text().splitlines()) <= 150


def spoken(text):
    """Commands in a page: the lines of its shell blocks, and those between backticks."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield from re.split(r"\s&&\s", re.sub(r"(^|\s)#.*", "", line))
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for said in re.findall(r"`((?:vrga|make|python) [^`]+)`", prose):
        yield " ".join(said.split())


def options_of(words):
    """Options of a vrga command, and None for a command that there is not."""
    command, given = typer.main.get_command(app), list(words)
    while hasattr(command, "commands") and given:
        name = given.pop(0)
        if name not in command.commands:
            return None
        command = command.commands[name]
    return {name for one in command.params for name in (*one.opts, *one.secondary_opts)}


def unknown(command):
    """What a command names that is not there, or ''."""
    words = [w for w in shlex.split(command) if not re.fullmatch(r"[A-Z_0-9]+=.*|\.\.\.", w)]
    words = words[: words.index("--")] if "--" in words else words  # what follows is another's
    if not words:
        return ""
    if words[0] == "vrga" and len(words) > 1 and not words[1].startswith("-"):
        known = options_of(words[1:])
        if known is None:
            return words[1]
        given = {word.split("=")[0] for word in words if re.match(r"-\w|--\w", word)}
        return " ".join(sorted(given - known - {"--help"}))
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return " ".join(w for w in words[1:] if w not in targets and "=" not in w)
    if words[:2] == ["python", "-m"]:
        ours = words[2].split(".")[0] in ("vrga", "benchmarks")
        return words[2] if ours and importlib.util.find_spec(words[2]) is None else ""
    if words[0] == "python":
        return "" if (ROOT / words[1]).exists() else words[1]
    return ""


@pytest.mark.parametrize("page", PAGES + OTHERS, ids=titles(PAGES + OTHERS))
def test_the_commands_of_a_page_are_there(page):
    told = {command: unknown(command) for command in spoken(page.read_text())}
    assert not {command: what for command, what in told.items() if what}


def test_a_command_that_is_not_there_is_found():
    for line, what in (
        ("vrga demoo", "demoo"), ("vrga generate --imag x", "--imag"), ("make tst", "tst"),
        ("vrga eval --task pope", "--task"), ("python -m benchmarks.tables", "benchmarks.tables"),
        ("vrga analyze recovry", "analyze"), ("python docs/picture.py", "docs/picture.py"),
    ):  # fmt: skip
        assert unknown(line) == what or (line.startswith("vrga analyze") and unknown(line)), line


def slug(heading):
    """The anchor of a heading, as GitHub and MkDocs make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES + OTHERS, ids=titles(PAGES + OTHERS))
def test_the_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), target


@pytest.mark.parametrize("page", ["docs/design.md", "CONTRIBUTING.md"])
def test_the_files_that_a_page_names_exist(page):
    names = re.findall(r"`([a-z_/]+\.(?:py|jinja|json|txt))`", (ROOT / page).read_text())
    assert len(names) > 5
    for name in names:
        assert any((ROOT / root / name).exists() for root in ("vrga", "", "vrga/demo")), name


# --- refusals ---

EXPLAINED = ["config*.py", "ranges.py", "method/*.py", "hf/*.py", "steering/*.py",
             "recording/choices.py", "recording/meter.py", "kernels/api.py", "answers/*.py",
             "app/*.py", "engine/*.py", "training/*.py", "lookback.py"]  # fmt: skip


def raised():
    """(where, the constant pieces of the message) of every error that is raised with one."""
    for path in sorted(path for names in EXPLAINED for path in (ROOT / "vrga").glob(names)):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                continue
            call = node.exc
            if isinstance(call.func, ast.Attribute) and call.func.attr == "_missing":
                continue  # which makes one message, raised under its own name
            pieces = [x.value for x in ast.walk(call) if isinstance(x, ast.Constant)
                      and isinstance(x.value, str)]  # fmt: skip
            if pieces:
                yield f"{path.name}:{node.lineno}", "\0".join(pieces)


def explained():
    """The messages of the page, as pieces."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            yield line, [piece.strip() for piece in line.split("…") if piece.strip()]


def fits(pieces, message):
    """Whether the pieces stand in a message in their order, across what is filled in."""
    return re.search(".*".join(map(re.escape, pieces)), message, re.DOTALL) is not None


def covers(pieces, where):
    """Whether a line says enough to stand for a message of that file: few words would for any."""
    return len("".join(pieces)) > 9 or where.startswith(("config.py", "ranges.py", "prompt.py"))


def test_every_refusal_is_explained():
    lines = [pieces for _, pieces in explained()]
    alone = [f"{where}: {message!r}" for where, message in raised()
             if not any(covers(one, where) and fits(one, message) for one in lines)]  # fmt: skip
    assert not alone, "\n".join(alone)


def test_no_refusal_is_explained_that_is_never_raised():
    messages = list(raised())
    missing = (ROOT / "vrga" / "hf" / "host.py").read_text()  # of `_missing`, left out of `raised`
    for line, pieces in explained():
        raises = any(covers(pieces, where) and fits(pieces, told) for where, told in messages)
        assert raises or pieces[-1] in missing, line


# --- tables and pictures ---


@pytest.mark.slow
def test_the_tables_are_those_of_the_results():
    old = {path: path.read_text() for path in table.PAGES}
    assert table.filled(old) == old, "run python -m benchmarks.table"


def test_a_table_must_stand_in_one_page_once(monkeypatch):
    monkeypatch.setattr(table, "TABLES", {"one": lambda: "new"})
    start, end = table.markers("one")
    here, there = Path("here.md"), Path("there.md")
    block = f"{start}\nold\n{end}"
    found = table.filled({here: f"a\n{block}\nb", there: "c"})
    assert found == {here: f"a\n{start}\nnew\n{end}\nb", there: "c"}
    with pytest.raises(ValueError, match="stand in no page"):
        table.filled({here: "a", there: "c"})
    with pytest.raises(ValueError, match="stand in here.md, there.md"):
        table.filled({here: block, there: block})


@pytest.mark.slow
def test_the_pictures_of_the_pages_can_be_drawn(tmp_path):
    for script in ("pictures", "house"):
        runpy.run_path(str(ROOT / "docs" / f"{script}.py"))["main"](tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()} | set(SHOTS)  # see tests/app/, tests/report/
    text = "\n".join(page.read_text() for page in PAGES)
    assert drawn == set(re.findall(r"pictures/(\w+\.png)\)", text))
    assert all((ROOT / "docs" / "pictures" / name).exists() for name in drawn)


def test_the_house_is_drawn_from_the_imports(tmp_path):
    house = runpy.run_path(str(ROOT / "docs" / "house.py"))
    package = tmp_path / "vrga"
    (package / "hf").mkdir(parents=True)
    (package / "ground.py").write_text("import os\n")
    (package / "hf" / "one.py").write_text("from vrga import ground\n")
    (package / "top.py").write_text(
        "from vrga.hf.one import x\nimport vrga.ground\ndef f():\n    import vrga.late\n"
    )
    (package / "late.py").write_text("from vrga.top import f\n")
    rooms = house["rooms"](package)
    assert rooms == {"ground": set(), "hf": {"ground"}, "top": {"hf", "ground"}, "late": {"top"}}
    assert house["floors"](rooms) == {"ground": 0, "hf": 1, "top": 2, "late": 3}
    assert house["direct"](rooms)["top"] == {"hf"}


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("material", reason="make docs brings mkdocs-material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
    assert (tmp_path / "guide" / "index.html").exists()
