"""The command: what it prints, what it writes, how it refuses."""

import subprocess
import sys

import pytest
import torch
from command import ended, run, worked
from PIL import Image, ImageFile

import vrga
from vrga.answers import generation
from vrga.demo.data import TEST_SEEDS, make_samples, parse_answer
from vrga.images import read_image
from vrga.recording.token_texts import Streamed


@pytest.fixture
def picture(tmp_path):
    sample = make_samples(1, seed=TEST_SEEDS.start + 500)[0]
    path = tmp_path / "letters.png"
    sample.image.save(path)
    return path, sample


def test_generate_answers_and_draws_the_region(picture, tmp_path):
    path, sample = picture
    drawn = tmp_path / "deep" / "map.png"
    done = worked("generate", "--image", path, "--question", sample.question, "--map", drawn)
    assert parse_answer(done.stdout.splitlines()[0]) == sample.color
    with Image.open(drawn) as image:
        assert min(image.size) > 300 and len(image.convert("RGB").getcolors(10**7)) > 50


def test_gain_one_answers_as_without(picture):
    path, sample = picture
    ask = ("generate", "--image", path, "--question", sample.question)
    assert run(*ask, "--gain", 1).stdout == run(*ask, "--no-vrga").stdout


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        (None, "config: sparing (vrga_config.json of the checkpoint)"),
        ("default", "config: sparing (vrga_config.json of the checkpoint)"),
        ("paper", "config: paper (preset paper)"),
        ("released", "config: released (preset released)"),
        ("released_mask", "config: released_mask (preset released_mask)"),
    ],
)
def test_every_preset_runs_and_is_named_away_from_the_answer(picture, preset, said):
    path, sample = picture
    more = [] if preset is None else ["--preset", preset]
    done = run("generate", "--image", path, "--question", sample.question, *more)
    assert done.exit_code == 0 and done.stdout.strip()
    assert said in done.stderr.splitlines() and "config" not in done.stdout


@pytest.mark.parametrize("more", [[], ["--zoom", "--model", "fine"]], ids=["plain", "closer"])
def test_a_question_with_a_control_token_is_refused(picture, more, capsys):
    asked = ["--image", picture[0], "--question", "what <|image_pad|> is the R?"]
    assert ended("generate", *asked, *more) == 2
    assert "contains <|image_pad|>, a control token of this model" in capsys.readouterr().err


def test_a_picture_that_the_processor_does_not_take_is_named_by_its_size(tmp_path, capsys):
    Image.new("RGB", (3000, 1)).save(tmp_path / "thin.png")
    assert ended("generate", "--image", tmp_path / "thin.png", "--question", "what?") == 2
    assert "images are of 3000 x 1 pixels" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_told_in_words(picture, capsys):
    ask = ["--image", picture[0], "--question", "what?", "--device-map", "cuda:9"]
    assert ended("generate", *ask) == 2
    assert "device_map='cuda:9'" in capsys.readouterr().err


def test_the_version_is_said():
    done = run("--version")
    assert done.exit_code == 0 and done.stdout == f"vrga {vrga.__version__}\n"


def test_completion_can_be_installed():
    assert "--install-completion" in run("--help").output


@pytest.mark.parametrize("more", [[], ["--no-vrga"], ["--trace", "TRACE"]], ids=str)
def test_a_streamed_answer_is_the_answer(picture, tmp_path, monkeypatch, more):
    path, sample = picture
    pieces = []
    monkeypatch.setattr("vrga.cli.generate._speak", pieces.append)
    more = [str(tmp_path / "trace") if word == "TRACE" else word for word in more]
    ask = ("generate", "--image", path, "--question", f"{sample.question} think step by step.")
    answer = run(*ask, *[word for word in more if word == "--no-vrga"]).stdout.strip()
    done = worked(*ask, *more, "--stream")
    assert "".join(pieces) == answer and len(pieces) > 10
    assert answer not in done.stdout  # it was printed piece by piece


def test_streaming_waits_for_whole_characters_and_drops_outer_space():
    texts = {
        (): "",
        (1,): " a",
        (1, 2): " a\ufffd",
        (1, 2, 3): " a\u00e9",
        (1, 2, 3, 4): " a\u00e9 \n",
    }
    said = []
    streamed = Streamed(lambda ids, skip_special_tokens: texts[tuple(ids)], said.append)
    streamed.put(torch.tensor([[7, 8]]))
    for token in (1, 2, 3, 4):
        streamed.put(torch.tensor([token]))
    streamed.end()
    assert said == ["a", "\u00e9"]


def test_loading_and_prompt_options_reach_the_model(picture, monkeypatch):
    path, sample = picture
    seen = {}
    own_load, own_inputs = generation.load, generation.inputs_of

    def load(model, **options):
        seen.update(options)
        return own_load(model, **options)

    def inputs_of(*arguments, **options):
        inputs = own_inputs(*arguments, **options)
        seen["text"] = arguments[1].tokenizer.decode(inputs["input_ids"][0])
        seen["tokens"] = int(inputs["image_grid_thw"].prod())
        return inputs

    monkeypatch.setattr(generation, "load", load)
    monkeypatch.setattr(generation, "inputs_of", inputs_of)
    more = ["--dtype", "bfloat16", "--device-map", "cpu", "--max-pixels", 28 * 28 * 16]
    more += ["--system", "see the K."]
    worked("generate", "--image", path, "--question", sample.question, *more)
    assert (seen["dtype"], seen["device_map"], seen["tokens"]) == ("bfloat16", "cpu", 64)
    assert seen["text"].startswith("<|im_start|>system\nsee the K.")


def test_another_picture_is_warned_of_and_answered(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (120, 80), "navy").save(path)
    done = run("generate", "--image", path, "--question", "who?", "--max-new-tokens", 2)
    assert done.exit_code == 0 and "reads coloured letters" in done.stderr
    assert "letters" not in done.stdout


def test_a_report_is_made_of_the_folder_that_generate_wrote(picture, tmp_path):
    path, sample = picture
    ask = ("generate", "--image", path, "--question", sample.question, "--trace", tmp_path / "t")
    assert run(*ask).exit_code == 0
    pages = [tmp_path / f"{name}.html" for name in ("parent", "both", "alone")]
    assert run("report", tmp_path / "t", "-o", pages[0]).exit_code == 0
    assert run("report", tmp_path / "t/base", tmp_path / "t/steered", "-o", pages[1]).exit_code == 0
    assert pages[0].read_bytes() == pages[1].read_bytes()
    (tmp_path / "t/base/trace.json").unlink()
    assert run("report", tmp_path / "t", "-o", pages[2]).exit_code == 0
    (tmp_path / "t/steered/trace.json").unlink()
    with pytest.raises(FileNotFoundError, match="no trace at .*generate --trace"):
        raise run("report", tmp_path / "t", "-o", pages[2]).exception


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
        (["--image", "PICTURE", "--no-vrga", "--preset", "default"], "leave out --no-vrga"),
        (["--image", "PICTURE", "--question", " \n"], "is empty: say what to ask"),
        (["--image", "PICTURE", "--max-pixels", "10"], "images of at least"),
    ],
)
def test_bad_input_is_one_line_and_status_2(picture, arguments, told, capsys):
    arguments = [picture[0] if a == "PICTURE" else a for a in arguments]
    asked = [] if "--question" in arguments else ["--question", "who?"]
    assert ended("generate", *asked, *arguments) == 2
    error = capsys.readouterr().err
    lines = [x for x in error.splitlines() if not x.startswith(("config: ", "Loading")) and x]
    assert told in error and len(lines) == 1


def test_a_truncated_image_is_named(picture, capsys):
    path, _ = picture
    path.write_bytes(path.read_bytes()[:200])
    assert ended("generate", "--image", path, "--question", "who?") == 2
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
