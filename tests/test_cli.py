"""The command: what it prints, what it writes, how it refuses."""

import subprocess
import sys

import pytest
from PIL import Image, ImageFile
from typer.testing import CliRunner

from vrga.cli import app, main
from vrga.demo.data import TEST_SEEDS, make_samples, parse_answer
from vrga.images import read_image

RUNNER = CliRunner()


@pytest.fixture
def picture(tmp_path):
    sample = make_samples(1, seed=TEST_SEEDS.start + 500)[0]
    path = tmp_path / "letters.png"
    sample.image.save(path)
    return path, sample


def run(*arguments):
    return RUNNER.invoke(app, [str(a) for a in arguments])


def test_generate_answers_and_draws_the_region(picture, tmp_path):
    path, sample = picture
    drawn = tmp_path / "deep" / "map.png"
    done = run("generate", "--image", path, "--question", sample.question, "--map", drawn)
    assert done.exit_code == 0, done.output
    assert parse_answer(done.stdout.splitlines()[0]) == sample.color
    with Image.open(drawn) as image:
        assert min(image.size) > 300 and len(image.convert("RGB").getcolors(10**7)) > 50


def test_gain_one_answers_as_without(picture):
    path, sample = picture
    ask = ("generate", "--image", path, "--question", sample.question)
    assert run(*ask, "--gain", 1).stdout == run(*ask, "--no-vrga").stdout


@pytest.mark.parametrize("preset", ["default", "paper", "released", "released_mask"])
def test_every_preset_runs(picture, preset):
    path, sample = picture
    done = run("generate", "--image", path, "--question", sample.question, "--preset", preset)
    assert done.exit_code == 0 and done.output.strip()


def test_two_images(picture):
    path, _ = picture
    done = run("generate", "--image", path, "--image", path, "--question", "what color is the K?",
               "--max-new-tokens", 4)  # fmt: skip
    assert done.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--image", "no.png"], "image no.png does not exist"),
        (["--image", __file__], "cannot be read"),
        (["--image", "PICTURE", "--model", "/no/model"], "no checkpoint at /no/model"),
        (["--image", "PICTURE", "--gain", "-1"], "gain=-1.0 must be ≥ 0"),
        (["--image", "PICTURE", "--preset", "released_mask", "--gain", "2"], "is not read by"),
        (["--image", "PICTURE", "--no-vrga", "--map", "x.png"], "leave out --no-vrga"),
        (["--image", "PICTURE", "--no-vrga", "--gain", "3"], "leave out --no-vrga"),
    ],
)
def test_bad_input_is_one_line_and_status_2(picture, arguments, told, monkeypatch, capsys):
    arguments = [str(picture[0]) if a == "PICTURE" else a for a in arguments]
    monkeypatch.setattr(sys, "argv", ["vrga", "generate", "--question", "who?", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and told in error and len(error.splitlines()) == 1


def test_a_truncated_image_is_named(picture, monkeypatch, capsys):
    path, _ = picture
    path.write_bytes(path.read_bytes()[:200])
    arguments = ["vrga", "generate", "--image", str(path), "--question", "who?"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit):
        main()
    assert f"image {path} cannot be read" in capsys.readouterr().err


def test_the_module_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "vrga", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "generate" in done.stdout and "demo" in done.stdout


def test_a_truncated_image_is_named_whatever_others_have_told_pillow(picture, monkeypatch):
    """Some task modules of lmms-eval make Pillow fill up what is missing, for everybody."""
    path, _ = picture
    path.write_bytes(path.read_bytes()[:-60])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(OSError, match="letters.png cannot be read"):
        read_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES
