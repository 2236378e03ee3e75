"""What is refused before anything is imported, loaded or asked."""

import importlib
import os
import re
import subprocess
import sys

import pytest
from command import ended, run
from PIL import Image

from vrga import beforehand
from vrga.analysis.ablate import SELECTIONS
from vrga.analysis.lookback import STEERINGS
from vrga.analysis.study import APART, FIRST
from vrga.demo.chain.data import CHAIN_SPLITS
from vrga.demo.data import SPLITS, TEST_SEEDS
from vrga.demo.fine.data import FINE_SPLITS
from vrga.evaluation.items import PROMPTS
from vrga.lookback import STYLES
from vrga.plots import save


def test_the_names_known_beforehand_are_those_of_the_modules():
    assert beforehand.PROMPTS == PROMPTS and beforehand.SPLITS == tuple(SPLITS)
    assert beforehand.FINE_SPLITS == tuple(FINE_SPLITS)
    assert beforehand.CHAIN_SPLITS == tuple(CHAIN_SPLITS)
    assert beforehand.STEERINGS == tuple(STEERINGS) and beforehand.SELECTIONS == SELECTIONS
    assert sorted(beforehand.STYLES) == sorted(STYLES)
    assert beforehand.SEEDS == (len(TEST_SEEDS) - (FIRST - TEST_SEEDS.start)) // APART


def test_every_ending_that_is_known_beforehand_can_be_written(tmp_path):
    from matplotlib.figure import Figure

    for ending in beforehand.PICTURES:
        found = save(Figure(figsize=(1, 1)), tmp_path / f"picture{ending}")
        assert found.stat().st_size > 0


QUESTION = ("--question", "who?", "--image", "PICTURE")
BAD = {
    "map's ending": (["generate", *QUESTION, "--map", "x.xyz"], "--map x.xyz: a picture ends in"),
    "map below a file": (["generate", *QUESTION, "--map", "FILE/x.png"], "cannot be a folder"),
    "map is a folder": (["generate", *QUESTION, "--map", "FOLDER"], "--map FOLDER is a folder"),
    "traces": (["generate", *QUESTION, "--trace", "FILE"], "cannot be a folder"),
    "traces over others": (["generate", *QUESTION, "--trace", "OTHERS"], "holds other files"),
    "image": (["generate", "--question", "?", "--image", "no.png"], "no.png does not exist"),
    "gain": (["generate", *QUESTION, "--gain", "1e39"], r"gain=1e\+39 must be ≤"),
    "model": (["generate", *QUESTION, "--model", "/no"], "no checkpoint at /no"),
    "saved table": (["demo", "--save", "FILE/x.json"], "--save .* cannot be a folder|--save"),
    "demo's folder": (["demo", "--output", "FILE"], "--output .*cannot be a folder"),
    "no trace": (["report", "none"], "no trace at none"),
    "three traces": (["report", "a", "b", "c"], "one or two traces; 3 given"),
    "questions": (["lookback", "none.jsonl"], "none.jsonl does not exist"),
    "prompts": (["lookback", "--prompts", "x"], "--prompts x: known are direct, cot, back"),
    "steering": (["lookback", "--steering", "x"], "--steering x: known are off"),
    "nats of no arm": (["lookback", "--steering", "off", "--uncertainty", "3"],
                       "is read by the arms"),
    "arms' zoom": (["lookback", "--steering", "zoom", "--zoom-option", "when=back"],
                   "--zoom-option when=back: the arms of --steering decide that"),
    "row of an answer": (["report", "FILE", "--row", "3"], "--row and --size are of traces"),
    "style": (["lookback", "--style", "x"], "--style x: known are"),
    "style of drawn ones": (["lookback", "--style", "solution"], "drawn ones have their own words"),
    "style of no prompt": (["tune", "FILE", "--sweep", "gain=1", "--style", "solution"],
                           "of the prompt back"),
    "seed of no halves": (["tune", "--sweep", "gain=1", "--seed", "3"], "--seed 3: of the halves"),
    "more than are drawn": (["tune", "--sweep", "gain=1", "--limit", "10001"], "at most 10000"),
    "lookback's folder": (["lookback", "--output", "FILE"], "cannot be a folder"),
    "sweep": (["tune", "--sweep", "gian=1"], "gian"),
    "swept value": (["tune", "--sweep", "gain=-1"], "gain=-1 must be ≥ 0"),
    "tune's folder": (["tune", "--sweep", "gain=1", "--output", "FILE/x"], "cannot be a folder"),
    "selection": (["analyze", "ablate", "--selection", "x"], "--selection x: known are step"),
    "seed": (["analyze", "heads", "--seed", "90"], "--seed 90: 0 to 89"),
    "analysis' folder": (["analyze", "rrar", "--output", "FILE"], "cannot be a folder"),
    "analysis' gain": (["analyze", "dispersion", "--gain", "-1"], "gain=-1.0 must be ≥ 0"),
    "eval's folder": (["eval", "--tasks", "grid", "--no-vrga", "--output", "FILE"], "cannot be"),
    "eval's data": (["eval", "--tasks", "grid", "--no-vrga", "--output", "o", "--data", "none"],
                    "--data none does not exist"),
    "eval's config": (["eval", "--tasks", "grid", "--vrga", "--output", "o", "--config", "FILE"],
                      "is no configuration"),
    "rollouts' split": (["train", "rollouts", "FILE", "--split", "noise"], "--split noise: read"),
    "rollouts' wait": (["train", "rollouts", "--timeout", "9"], "--timeout 9.0: read by --server"),
    "grid's wait": (["train", "data", "FOLDER", "--timeout", "9"], "--timeout 9.0: read by"),
    "callers of code": (["train", "data", "FOLDER", "--teacher", "a:b", "--parallel", "2"],
                        "--parallel 2: read by a teacher on a server"),
    "zoom's answers": (["train", "ablate", "zoom", "--answers", "2"], "--answers 2: read by"),
    "compared": (["compare", "none", "none"], "none does not exist"),
}  # fmt: skip
HEAVY = ("torch", "transformers", "matplotlib", "pandas", "datasets")


@pytest.mark.parametrize(("arguments", "told"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_told_before_the_work(tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (28, 28)).save("PICTURE.png")
    (tmp_path / "FILE").write_text("x")
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "OTHERS" / "base").mkdir(parents=True)
    (tmp_path / "OTHERS" / "base" / "thesis.tex").write_text("important")
    arguments = ["PICTURE.png" if x == "PICTURE" else x for x in arguments]

    def late(*args, **options):
        raise AssertionError("a model was loaded first")

    for module in ("answers.generation", "demo.show", "evaluation.lmms", "analysis.study"):
        monkeypatch.setattr(f"vrga.{module}.load", late)
    before = sorted(tmp_path.rglob("*"))
    assert ended(*arguments) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(told, error), error
    assert sorted(tmp_path.rglob("*")) == before  # nothing is left behind


def test_a_refusal_needs_no_heavy_import(tmp_path):
    script = (
        "import sys\n"
        "from vrga.cli import main\n"
        f"sys.argv = ['vrga', 'lookback', '--output', {str(tmp_path / 'x')!r}, '--prompts', 'x']\n"
        "try:\n    main()\n"
        "except SystemExit:\n"
        f"    print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          env=os.environ)  # fmt: skip
    assert done.stdout.strip().endswith("[]") and "known are" in done.stderr


def test_a_folder_that_can_be_made_is_not_made_yet(tmp_path):
    beforehand.check_folder(tmp_path / "a" / "b", "--output")
    beforehand.check_file(tmp_path / "c" / "d.json", "--save")
    assert list(tmp_path.iterdir()) == []
    beforehand.check_folder(tmp_path, "--output")
    assert tmp_path.is_dir()


@pytest.mark.parametrize("name", ["heads", "ablate", "rrar", "dispersion", "recovery"])
def test_an_analysis_of_which_samples_failed_ends_with_status_4(name, tmp_path, monkeypatch):
    analysis = importlib.import_module(f"vrga.analysis.{name}")
    monkeypatch.setattr(analysis, "analyze", lambda *args, **kwargs: {"failed": 2})
    done = run("analyze", name, "--output", tmp_path)
    assert done.exit_code == 4 and "2 samples failed" in done.output, done.output
    monkeypatch.setattr(analysis, "analyze", lambda *args, **kwargs: {"failed": 0})
    assert run("analyze", name, "--output", tmp_path).exit_code == 0
