"""The page of what a server told of an answer."""

import json
import re

import pytest
from PIL import Image
from typer.testing import CliRunner

from vrga.cli import app
from vrga.report import write_looked

SUMMARY = {
    "steered": True, "config": "paper, gain 3", "grids": [[4, 6], [2, 2]],
    "boxes": [[[0.5, 0.25, 1.0, 0.75]], []], "tokens": 6, "heads": [[3, 5], [2, 0], [3, 1]],
    "query": 51, "share": {"mean": 0.5, "steps": [0.25, 0.75]},
}  # fmt: skip
ANSWER = {
    "choices": [{"message": {"content": "<script>red</script>"}, "finish_reason": "stop"}],
    "kv_transfer_params": {"vrga": SUMMARY},
}


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def saved(tmp_path):
    def save(told):
        path = tmp_path / "told.json"
        path.write_text(told if isinstance(told, str) else json.dumps(told))
        return path

    return save


def test_an_answer_is_drawn_with_its_images_boxes_heads_and_shares(saved, tmp_path):
    pictures = [tmp_path / "one.png", tmp_path / "two.png"]
    for path, size in zip(pictures, [(120, 80), (40, 40)], strict=True):
        Image.new("RGB", size, "red").save(path)
    page = tmp_path / "page.html"
    found = run("report", saved(ANSWER), "--image", pictures[0], "--image", pictures[1], "-o", page)
    assert found.exit_code == 0, found.output
    text = page.read_text()
    sides = r"\s+".join(f'{side}="([\\d.]+)"' for side in ("x", "y", "width", "height"))
    boxes = re.findall(f"<rect {sides}", text)
    assert [[float(x) for x in box] for box in boxes] == [[60, 20, 60, 40]]
    assert text.count("data:image/") == 2 and "nothing of the region" in text
    assert "6 of 28 image tokens" in text and "50.0 %" in text
    assert "<td>3</td><td>1, 5</td>" in text
    assert 'points="0.0,90.0 600.0,30.0"' in text
    assert "<script>" not in text and "&lt;script&gt;red" in text


@pytest.mark.parametrize(
    "told", [SUMMARY, {"vrga": SUMMARY}, {"kv_transfer_params": {"vrga": SUMMARY}}],
    ids=["summary", "its field", "answer"],
)  # fmt: skip
def test_a_summary_alone_makes_white_pictures_of_its_grids(saved, tmp_path, told):
    text = write_looked(saved(told), [], tmp_path / "page.html").read_text()
    assert 'viewBox="0 0 168 112"' in text and 'viewBox="0 0 56 56"' in text
    assert "<h2>Answer</h2>" not in text


def test_an_answer_that_was_not_steered_says_why(saved, tmp_path):
    told = {"steered": False, "config": "paper", "fault": "keys lie otherwise"}
    text = write_looked(saved(told), [], tmp_path / "page.html").read_text()
    assert "not steered</strong> (paper): keys lie otherwise" in text


def changed(**fields):
    return SUMMARY | fields


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("{", "is no JSON file"),
        ([1], "holds no summary of a steered answer"),
        ({"choices": [], "kv_transfer_params": None}, "An answer without it was not steered"),
        (changed(boxes=[[]]), "1 lists of boxes"),
        (changed(boxes=[[[0.5, 0, 0.5, 1]], []]), "is no box"),
        (changed(boxes=[[[0, 0, 1, 7]], []]), "7 is no share"),
        (changed(share={"steps": [float("nan")]}), "nan is no share"),
        (changed(heads=[[1, -1]]), "-1 is no number"),
        (changed(grids=[[4, 6], [0, 2]]), "lists of boxes for the grids"),
        ({key: one for key, one in SUMMARY.items() if key != "tokens"}, "no 'tokens'"),
        (changed(heads=7), "damaged summary"),
        (changed(steered="false"), "neither true nor false"),
        (changed(tokens=999), "999 tokens in the region, of 28"),
        (changed(grids=[[1, 4, 6], [2, 2]]), "is no pair of numbers"),
        (changed(grids=[[60000, 60000], [2, 2]]), "lists of boxes for the grids"),
        (changed(share=None), "no mapping with steps"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)  # fmt: skip
def test_a_file_that_is_none_or_damaged_is_refused_in_words(saved, tmp_path, told, words):
    with pytest.raises(ValueError, match=words):
        write_looked(saved(told), [], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_other_images_than_the_request_had_are_refused(saved, tmp_path):
    path = tmp_path / "one.png"
    Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(ValueError, match="is of 2 images, and --image was given 1 times"):
        write_looked(saved(SUMMARY), [path], tmp_path / "page.html")
    found = run("report", tmp_path, "--image", path)
    assert found.exit_code and "goes with the JSON file" in str(found.exception or found.output)


@pytest.mark.parametrize("sizes", [((120, 80), (500, 25)), ((40, 40), (120, 20))])
def test_images_whose_sides_the_grids_cannot_be_of_are_refused(saved, tmp_path, sizes):
    command = ["report", saved(ANSWER), "-o", tmp_path / "page.html"]
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
        command += ["--image", tmp_path / f"{number}.png"]
    found = run(*command)
    assert found.exit_code and "give the request's images, in its order" in str(found.exception)
    assert not (tmp_path / "page.html").exists()


def test_images_of_an_answer_that_was_not_steered_are_refused_with_its_reason(saved, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    told = saved({"steered": False, "config": "paper", "fault": "no image"})
    found = run("report", told, "--image", tmp_path / "one.png", "-o", tmp_path / "page.html")
    assert found.exit_code and "was not steered (no image)" in str(found.exception)
