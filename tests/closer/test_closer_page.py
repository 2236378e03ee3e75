"""The page of an answer that took a closer look, and of one that took none."""

import copy
import json
import re

import pytest
from command import worked
from test_closer import NARROW, QUESTION, look, picture, untrained

import vrga
from vrga import Zoom
from vrga.demo import build
from vrga.report import render

pytest.importorskip("jinja2")


def test_the_page_tells_decision_boxes_crops_and_cost():
    found = look(images=[picture(0), picture(1)], record=True)
    text = render([found.trace])
    assert "<h2>Looked closer</h2>" in text and found.decision.reason in text
    assert text.count("<svg viewBox") == 2 and text.count("<rect ") == len(found.crops) == 1
    (crop,) = found.crops
    left, top, right, bottom = crop.box
    place = f'x="{left}" y="{top}" width="{right - left}"\n    height="{bottom - top}"'
    pictures = text.split('aria-label="picture ')[1:]
    assert place in pictures[crop.image] and place not in pictures[1 - crop.image]
    assert f"<td>{left}, {top}, {right}, {bottom}</td><td>112 &times; 112</td>" in text
    assert f"{found.cost.crops} of\nthem of the crops" in text
    shown = re.findall(r'<image href="(data:image/[^"]+)"', text)
    page = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text)[1])
    assert shown == page["images"][:2]  # the pictures, not the crops


def test_crops_before_the_picture_are_not_taken_for_it():
    zoom = Zoom(**{**NARROW.settings(), "order": "crops", "reuse": False})
    text = render([look(zoom, record=True).trace])
    (shown,) = re.findall(r'<image href="(data:image/[^"]+)"', text)
    page = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text)[1])
    assert shown == page["images"][page["runs"][0]["images"][1]]


def test_without_a_closer_look_the_page_says_why_and_shows_no_box():
    found = look(Zoom(gain=50), record=True)
    text = render([found.trace])
    assert "<h2>Not looked closer</h2>" in text and found.decision.reason in text
    assert "<svg viewBox" not in text and "of the crops" not in text


def test_a_decision_is_kept_with_the_trace_and_a_damaged_one_refused(tmp_path):
    trace = look(record=True).trace
    trace.save(tmp_path / "trace")
    again = vrga.Trace.load(tmp_path / "trace")
    assert again.closer == json.loads(json.dumps(trace.closer))
    words = json.loads((tmp_path / "trace" / "trace.json").read_text())
    for spoil in (
        lambda closer: closer["decision"].pop("reason"),
        lambda closer: closer["decision"]["crops"][0].update(box=[0, 0, 0, 4]),
        lambda closer: closer["decision"]["crops"][0].update(image=1),
        lambda closer: closer["cost"].update(total="soon"),
        lambda closer: closer["cost"].pop("answer"),
        lambda closer: closer.update(zoom={"order": "any"}),
        lambda closer: closer.update(pictures=[{"size": [0, 4], "seen": [4, 4]}]),
    ):
        damaged = copy.deepcopy(words)
        spoil(damaged["closer"])
        (tmp_path / "trace" / "trace.json").write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match="closer is no decision"):
            vrga.Trace.load(tmp_path / "trace")
    del words["closer"]  # of an older folder
    (tmp_path / "trace" / "trace.json").write_text(json.dumps(words))
    assert vrga.Trace.load(tmp_path / "trace").closer is None


def test_the_folder_of_generate_becomes_a_page(tmp_path):
    build.save(*untrained(), tmp_path / "model")
    picture().save(tmp_path / "picture.png")
    command = ["generate", "--model", tmp_path / "model", "--question", QUESTION, "--zoom"]
    command += ["--image", tmp_path / "picture.png", "--max-new-tokens", 3]
    command += ["--zoom-option", "within=map", "--trace", tmp_path / "out"]
    assert f"next: vrga report {tmp_path / 'out'}" in worked(*command).output
    page = tmp_path / "page.html"
    worked("report", tmp_path / "out", "-o", page)
    assert "ooked closer</h2>" in page.read_text()
