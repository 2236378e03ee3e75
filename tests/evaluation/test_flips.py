"""The page of samples that turned: what it shows, what it says is gone; and in a browser."""

import io
import json
import re
import shutil
import sys

import pytest
from PIL import Image
from rich.console import Console

pytest.importorskip("lmms_eval")

from browser import chromium
from command import run

from vrga.evaluation import local
from vrga.evaluation.compare import compare
from vrga.evaluation.flips import verdict
from vrga.evaluation.harness import TASKS
from vrga.evaluation.store import ANSWERED, Store

TASK = "vrga_geomath"
HOSTILE = "<script>document.title = 'taken'</script> \u202egnp.exe"
# Of the first and the second run: scores, and what was said.
SCORES = {0: (0, 1), 1: (1, 0), 2: (1, 0), 3: (1, 1)}
SAID = (f"so red, I think. {HOSTILE}", f"so blue, I think. {HOSTILE}")


def answered(number, score, text):
    return {
        "key": f"vrga/{TASK}/{number}", "arm": "vrga", "task": TASK, "id": number, "tokens": 3,
        "prompt": f"<|im_start|>user\nasked {number}", "text": text, "seconds": 1.0,
        "steered": True, "region": None, "score": float(score), "error": None,
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on one file of questions, of which the image of sample 1 is gone since."""
    folder = tmp_path_factory.mktemp("turned")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LMMS_EVAL_DATASETS_CACHE", str(folder / "cache"))
        rows = []
        for number in range(4):
            Image.new("RGB", (300 + number, 200), "teal").save(folder / f"{number}.png")
            rows.append({"question": f"what is {number} & {HOSTILE}", "answer": f"${number}$",
                         "image": f"{number}.png"})  # fmt: skip
        (folder / "GeoMath.json").write_text(json.dumps(rows))
        for place, name in enumerate(("first", "second")):
            store = Store(
                folder / name,
                {"command": "eval", "config": {"gain": place, "gate": "static"}},
                fields=ANSWERED,
            )
            store.add([answered(n, scores[place], SAID[place]) for n, scores in SCORES.items()])
            store.close()
            local.write_tasks(["GeoMath"], folder, folder / name / TASKS)
        (folder / "1.png").unlink()
        yield folder / "first", folder / "second"


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "deep" / "turned.html"
    done = run("compare", *runs, "--most", 0, "--html", path)
    assert done.exit_code == 0 and "page: " in done.output, done.output
    return path


def cards(text):
    """Each sample's part of the page, by its number."""
    parts = re.findall(r"<article>.*?</article>", text, re.DOTALL)
    return {re.search(r"<h4>sample (\d)</h4>", one)[1]: one for one in parts}


def test_every_sample_that_turned_is_there_with_its_image_question_and_answers(page):
    text = page.read_text()
    found = cards(text)
    assert list(found) == ["0", "1", "2"]  # gained, then lost; 3 has not turned
    assert re.search("1 became right.*sample 0.*2 became wrong.*sample 1", text, re.DOTALL)
    for number, one in found.items():
        assert f"what is {number} &amp;" in one and f"<b>${number}$</b>" in one
        assert "<mark>red,</mark> I think." in one and "<mark>blue,</mark> I think." in one
    good, bad = ('<span class="good">right', '<span class="bad">wrong')
    assert found["0"].index(bad) < found["0"].index(good)
    assert found["2"].index(good) < found["2"].index(bad)
    assert "<td>config.gain</td><td>0</td><td>1</td>" in text
    assert "-25.0 %; 1 gained and 2 lost of 4 pairs; p = 1." in text
    assert "Cannot tell: 4 pairs are too few" in text


def test_an_image_that_is_gone_is_said_to_be(page):
    found = cards(page.read_text())
    assert [one.count("<img") for one in found.values()] == [1, 0, 1]
    assert re.search("not shown: image .*1.png does not exist", found["1"])
    assert "not shown" not in found["0"] + found["2"]


def test_a_run_whose_data_is_gone_shows_the_chats(runs, tmp_path):
    moved = [shutil.copytree(one, tmp_path / one.name) for one in runs]
    for one in moved:
        shutil.rmtree(one / TASKS)
    compare(*moved, Console(file=io.StringIO()), html=tmp_path / "x.html")
    for number, one in cards((tmp_path / "x.html").read_text()).items():
        assert f"&lt;|im_start|&gt;user\nasked {number}" in one and "<img" not in one
        assert "not shown: the data of task vrga_geomath cannot be loaded" in one
        assert "not known here" in one


def test_the_page_needs_nothing_else_and_holds_no_code(page):
    text = page.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import|<script""", text)
    assert "default-src 'none'" in text and "&lt;script&gt;" in text
    assert "\u202e" not in text and "[U+202E]" in text


@pytest.mark.parametrize(
    ("score", "said"),
    [
        ((0.1, float("nan"), float("nan")), "Cannot tell: 5 pairs"),
        ((0.1, 0.05, 0.2), "The second run is better"),
        ((-0.1, -0.2, -0.05), "The first run is better"),
        ((0.1, -0.1, 0.3), "Not clear: 0 lies inside"),
        ((0.1, 0.0, 0.3), "Not clear: 0 lies inside"),
    ],
)
def test_the_interval_decides_what_is_said(score, said):
    assert verdict({"score": score, "pairs": 5}).startswith(said)


def test_without_jinja_the_page_says_what_to_install(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"vrga\[report\]"):
        compare(*runs, Console(file=io.StringIO()), html=tmp_path / "x.html")


def test_in_a_browser_nothing_is_wider_than_the_screen(page):
    opened = chromium()
    try:
        script = """
          const images = [...document.images];
          await Promise.all(images.map((one) => { one.loading = 'eager'; return one.decode(); }));
          return [document.documentElement.scrollWidth, innerWidth,
                  images.map((one) => one.width / one.height)];"""
        for width, height, phone in ((1400, 1000, False), (390, 844, True)):
            screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
            opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            opened.get(page.as_uri())
            wide, window, ratios = opened.execute_script(f"return (async () => {{{script}}})()")
            assert wide <= window == width
            assert ratios == pytest.approx([300 / 200, 302 / 200], rel=0.02)
        assert opened.title == "vrga: samples that turned" and opened.get_log("browser") == []
    finally:
        opened.quit()
