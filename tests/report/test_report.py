"""The report: one page that needs nothing else, whatever the model wrote; and in a browser."""

import base64
import json
import re
import runpy
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import PHONE, WIDE, chromium
from command import ended, worked
from PIL import Image
from traces import filled_trace

import vrga
from vrga import Trace, VRGAConfig
from vrga.demo.data import TEST_SEEDS, make_samples
from vrga.method.timeline import Relocation
from vrga.recording.trace import MEASURES
from vrga.report import render, write_report

HOSTILE = ["<script>document.title = 'taken'</script>", "</script>", " <!--", "<back>", "&lt;\n"]


def embedded(text):
    """The JSON in a page."""
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text)[1])


def maps_of(run, index):
    """The map of a channel, float [steps, n], 1 at the highest of each step."""
    steps, n = len(run["steps"]), sum(h * w for h, w in run["sizes"])
    start = sum(c["mapped"] for c in run["channels"][:index]) * steps * n
    raw = np.frombuffer(base64.b64decode(run["maps"]), np.uint8)
    return raw[start : start + steps * n].reshape(steps, n) / 255


def channel(run, name):
    return next(i for i, c in enumerate(run["channels"]) if c["name"].startswith(name))


@pytest.fixture(scope="module")
def hostile():
    """Base and steered, of a model that writes HTML."""
    traces = [filled_trace(1.0), filled_trace(3.0)]
    for trace in traces:
        trace.texts[0], trace.inside = list(HOSTILE), None
        trace.asked[0] = "what <b>is</b> this?</script><script>document.title = 'taken'</script>"
    return traces


def test_the_page_holds_the_maps_and_shares_of_the_trace():
    trace = filled_trace()
    run = embedded(render([trace], row=1))["runs"][0]
    region, n = trace.regions[1], sum(g.h * g.w for g in trace.regions[1].grids)
    assert run["grids"] == run["sizes"] == [[g.h, g.w] for g in region.grids]
    assert run["tokens"] == trace.texts[1] and run["steps"] == [0, 1, 2, 3]
    own = [i for i, (layer, head) in enumerate(trace.heads) if region.visual[layer, head]]
    layer, head = trace.heads[own[0]].tolist()
    for name, wanted in (
        ("visual heads", trace.maps[:, own, 1, :n].float().mean(1)),
        ("all layers", trace.layer_maps[:, :, 1, :n].float().mean(1)),
        (f"layer {layer}, head {head}", trace.maps[:, own[0], 1, :n].float()),
    ):
        found = maps_of(run, channel(run, name))
        wanted = wanted / wanted.amax(1, keepdim=True)
        assert np.abs(found - wanted.numpy()).max() < 0.003
    shares = np.frombuffer(base64.b64decode(run["shares"]), "<u2") / 65535
    shares = shares.reshape(len(run["channels"]), len(run["series"]), 4)
    found = shares[channel(run, f"layer {layer}, head {head}"), run["series"].index("region")]
    assert np.abs(found - trace.region[:, layer, 1, head].numpy()).max() < 1e-4
    cells = torch.cat([g.index for g in region.grids])
    assert run["region"] == region.mask[cells].int().tolist()


def test_model_output_cannot_break_out_of_the_page(hostile):
    text = render(hostile)
    assert "document.title" not in re.sub(
        r"&lt;script&gt;document.title|\\u003cscript\\u003edocument.title", "", text
    )
    assert text.count("<script") == 2 and text.count("</script") == 2 and "<!--" not in text
    assert embedded(text)["runs"][0]["tokens"] == HOSTILE


def test_the_page_needs_nothing_else(hostile):
    text = render(hostile)
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import|fetch\(|XMLHttp""", text)
    assert "default-src 'none'" in text
    assert all(image.startswith("data:image/") for image in embedded(text)["images"])


def test_both_runs_share_their_images(hostile):
    page = embedded(render(hostile))
    assert len(page["images"]) == 1 and [run["images"] for run in page["runs"]] == [[0], [0]]
    assert [run["name"] for run in page["runs"]] == ["not steered", "steered, gain 3.0"]
    names = [run["name"] for run in embedded(render([hostile[1]] * 2))["runs"]]
    assert names == ["first: steered, gain 3.0", "second: steered, gain 3.0"]


def long_trace(steps=2000):
    """A trace of many steps, from a short one."""
    trace, times = filled_trace(maps="all"), steps // 4
    for name in set(MEASURES) - {"watched"}:
        setattr(trace, name, getattr(trace, name).repeat(times, 1, 1, 1))
    trace.maps, trace.layer_maps = (
        x.repeat(times, 1, 1, 1) for x in (trace.maps, trace.layer_maps)
    )
    trace.steps, trace.texts = torch.arange(steps), [["word "] * steps] * 2
    trace.ends, trace.ids = torch.tensor([steps] * 2), None
    trace.inside = trace.inside.repeat(times, 1)
    return trace


def test_maps_beyond_the_room_leave_out_heads_and_then_become_coarser():
    trace = long_trace()
    whole = embedded(render([trace], megabytes=100))["runs"][0]
    assert whole["left_out"] == 0 and len(whole["channels"]) == 5 + 24
    n = sum(h * w for h, w in whole["grids"])
    groups = 5 * 2000 * n / 1e6
    some = embedded(render([trace], megabytes=groups * 1.5))["runs"][0]
    assert [c["name"] for c in some["channels"]] == [c["name"] for c in whole["channels"][:7]]
    assert some["left_out"] == 22 and some["sizes"] == some["grids"]
    coarse = embedded(render([trace], megabytes=groups / 2))["runs"][0]
    assert 0 < coarse["left_out"] <= 24
    assert coarse["sizes"] == [[(h + 1) // 2, (w + 1) // 2] for h, w in coarse["grids"]]
    assert len(base64.b64decode(coarse["maps"])) <= 1e6 * groups / 2
    fine, found = maps_of(whole, 0)[3], maps_of(coarse, 0)[3]
    (h, w), (ch, cw) = whole["grids"][0], coarse["sizes"][0]
    fine, found = fine.reshape(h, w), found.reshape(ch, cw)
    means = np.zeros((ch, cw))
    for r in range(ch):
        for c in range(cw):
            means[r, c] = fine[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean()
    assert np.abs(means / means.max() - found).max() < 0.02


def test_a_trace_without_maps_texts_and_images_still_makes_a_page():
    trace = filled_trace(maps=None, layer_maps=False, layers=[1, 2], steps=range(0, 9, 2))
    trace.texts = trace.asked = trace.images = None
    run = embedded(render([trace]))["runs"][0]
    assert not any(c["mapped"] for c in run["channels"]) and run["steps"] == [0, 2]
    assert run["tokens"] == [f"#{i} " for i in trace.ids[0].tolist()] and run["images"] == []


def test_a_row_that_ended_early_ends_there():
    trace = filled_trace()
    trace.ends = torch.tensor([2, 4])
    trace.texts[0] = trace.texts[0][:3]
    whole, run = (embedded(render([trace], row=row))["runs"][0] for row in (1, 0))
    assert whole["steps"] == [0, 1, 2, 3] and run["steps"] == [0, 1] and len(run["tokens"]) == 3
    i, own = channel(run, "all layers"), trace.regions[0].grids[0].h * trace.regions[0].grids[0].w
    wanted = trace.layer_maps[:2, :, 0, :own].float().mean(1)
    assert np.abs(maps_of(run, i) - (wanted / wanted.amax(1, keepdim=True)).numpy()).max() < 0.003
    shares = np.frombuffer(base64.b64decode(run["shares"]), "<u2") / 65535
    shares = shares.reshape(len(run["channels"]), len(run["series"]), 2)
    found = shares[i, run["series"].index("image")]
    assert np.abs(found - trace.image[:2, :, 0].mean((1, 2)).numpy()).max() < 1e-4
    trace.texts = None
    run = embedded(render([trace], row=0))["runs"][0]
    assert run["tokens"] == [f"#{i} " for i in trace.ids[0, :3].tolist()]
    trace.ends[0] = 0
    with pytest.raises(ValueError, match="row 0 has nothing to show: of its 1 tokens"):
        render([trace])


def test_a_region_found_anew_is_outlined_from_its_step_on():
    trace = filled_trace()
    region = trace.regions[0]
    other = replace(region, mask=region.image & ~region.mask)
    trace.relocated = [Relocation(0, 2, other), Relocation(1, 1, trace.regions[1])]
    run = embedded(render([trace]))["runs"][0]
    cells = region.grids[0].index
    assert run["region"] == region.mask[cells].int().tolist()
    assert run["relocated"] == [[2, other.mask[cells].int().tolist()]]


def test_large_photos_become_smaller():
    trace = filled_trace()
    noise = np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), dtype=np.uint8)
    trace.images[0] = [Image.fromarray(noise)]
    (image,) = embedded(render([trace]))["images"]
    assert image.startswith("data:image/jpeg") and len(image) < 3e6


def masked_trace(**options):
    """A trace under the hard mask, which knows one image per row and chooses other heads."""
    return filled_trace(config=VRGAConfig.released_mask(), counts=(1, 1), **options)


def test_runs_of_other_heads_have_an_atlas_each():
    base, mask = filled_trace(1.0, counts=(1, 1)), masked_trace()
    page = embedded(render([base, mask]))
    own, other = (trace.regions[0].visual for trace in (base, mask))
    counts = int(own.sum()), int(other.sum()), int((own & other).sum())
    assert counts[0] != counts[1] and page["atlases"] == [0, 1]
    assert page["differ"] == (
        f"Not the same heads: {counts[0]} in 'not steered', {counts[1]} in 'released mask'; "
        f"{counts[2]} are in both."
    )
    names = [{c["name"] for c in run["channels"] if c["single"]} for run in page["runs"]]
    assert names[0] < names[1]  # a head that both have can be compared
    same = embedded(render([base, filled_trace(counts=(1, 1))]))
    assert same["atlases"] == [0] and same["differ"] == ""
    alone = embedded(render([mask]))
    assert alone["atlases"] == [0] and alone["differ"] == ""
    bare = filled_trace(counts=(0, 1))
    assert embedded(render([bare, bare]))["atlases"] == [0]


def test_two_prompts_are_not_one_report():
    first, second = filled_trace(1.0), filled_trace()
    first.asked[0], second.asked[0] = "see " * 50 + "what is red?", "see " * 50 + "who is blue?"
    with pytest.raises(ValueError, match="two runs of one prompt") as refused:
        render([first, second])
    assert "what is red?" in str(refused.value) and "who is blue?" in str(refused.value)
    assert "from character 173 on" in str(refused.value)
    second.asked = None  # unknown, not another one
    assert "what is red?" in render([first, second])


def test_text_cannot_turn_the_direction_of_the_page():
    trace = filled_trace()
    turning = "".join(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]))
    arabic = "\u0627\u0644\u0644\u0648\u0646 \u200f\u0623\u062d\u0645\u0631"
    trace.texts[0][:2], trace.asked[0] = [f"a\u202eb{turning}", arabic], f"what{turning}?"
    text = render([trace])
    found = embedded(text)["runs"][0]["tokens"]
    assert found[0].startswith("a[U+202E]b[U+202A]") and found[0].endswith("[U+2069]")
    assert found[1] == arabic
    assert "what[U+202A][U+202B]" in text and not set(turning) & set(text)
    assert not re.search(r"\\u20(2[a-e]|6[6-9])", text)


def test_what_cannot_be_shown_is_said():
    trace = filled_trace()
    with pytest.raises(ValueError, match="one or two traces; 3 given"):
        render([trace] * 3)
    with pytest.raises(ValueError, match="rows 0 to 1"):
        render([trace], row=2)
    with pytest.raises(ValueError, match="the trace is empty"):
        render([Trace()])


def test_without_jinja_the_report_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"vrga\[report\]"):
        render([filled_trace()])


@pytest.mark.slow
def test_two_commands_make_a_report_of_the_embedded_model(tmp_path):
    sample = make_samples(1, seed=TEST_SEEDS.start + 500)[0]
    sample.image.save(tmp_path / "x.png")
    traces, page = tmp_path / "out", tmp_path / "deep" / "report.html"
    ask = ["generate", "--image", tmp_path / "x.png", "--question", sample.question]
    answered = worked(*ask, "--gain", 3, "--trace", traces)
    worked("report", traces / "base", traces / "steered", "-o", page)
    text = page.read_text()
    base, steered = embedded(text)["runs"]
    assert (
        sample.question in text and base["config"]["gain"] == 1 and steered["config"]["gain"] == 3
    )
    said = "".join(steered["tokens"])
    assert said.startswith(answered.stdout.splitlines()[0])
    plain = worked(*ask, "--gain", 3)
    assert plain.stdout.splitlines()[0] == answered.stdout.splitlines()[0]


def test_without_steering_there_is_one_trace(tmp_path):
    sample = make_samples(1, seed=TEST_SEEDS.start + 500)[0]
    sample.image.save(tmp_path / "x.png")
    ask = ["generate", "--image", tmp_path / "x.png", "--question", sample.question]
    worked(*ask, "--no-vrga", "--trace", tmp_path / "t")
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["base"]
    assert Trace.load(tmp_path / "t" / "base").config["gain"] == 1


def test_an_answer_without_a_trace_is_told_all_the_same(tmp_path, monkeypatch, capsys):
    sample = make_samples(1, seed=TEST_SEEDS.start + 500)[0]
    sample.image.save(tmp_path / "x.png")
    own = Trace.save

    def full(self, path):
        if path.name == "base":
            raise OSError("No space left on device")
        return own(self, path)

    monkeypatch.setattr(Trace, "save", full)
    ask = ["generate", "--image", tmp_path / "x.png", "--question", sample.question,
           "--trace", tmp_path / "t"]  # fmt: skip
    for more, saved, told in (
        (["--max-new-tokens", 1], 0, "steered: the trace is empty: its answer has one token"),
        ([], 1, "base: No space left on device"),
    ):
        assert ended(*ask, *more) == 2
        out, error = capsys.readouterr()
        assert told in error
        first, *rest = out.splitlines()
        assert first and [line.split(":")[0] for line in rest] == ["traces", "next"] * saved


def test_a_model_that_cuts_images_into_tiles_shows_their_maps(tmp_path, monkeypatch):
    region = filled_trace().regions[1]  # of two grids, from one image

    def answer(*args, **options):
        return "yes", region, [Image.new("RGB", (90, 60))], {}

    monkeypatch.setattr("vrga.answers.generation.answer", answer)
    Image.new("RGB", (90, 60)).save(tmp_path / "x.png")
    ask = ["generate", "--image", tmp_path / "x.png", "--question", "who?"]
    ask += ["--map", tmp_path / "map.png"]
    done = worked(*ask)
    assert "cuts images into tiles" in done.stdout and (tmp_path / "map.png").exists()


def test_a_folder_without_a_trace_is_one_line_and_status_2(tmp_path, capsys):
    assert ended("report", tmp_path) == 2
    error = capsys.readouterr().err
    assert "no trace at" in error and len(error.splitlines()) == 1


# --- in a browser ---


@pytest.fixture(scope="module")
def open_page(tmp_path_factory):
    """Open the page of some traces in headless Chromium, at a window's size in CSS pixels.

    One browser for each size: to start one takes longer than a test.
    """
    opened = {}

    def open_(traces, size=WIDE):
        from selenium.webdriver.support.ui import WebDriverWait

        found = opened.get(size) or opened.setdefault(size, chromium(size))
        found.get_log("browser")  # what a failed test left
        paths = [trace.save(tmp_path_factory.mktemp("trace") / "t") for trace in traces]
        page = write_report(paths, tmp_path_factory.mktemp("page") / "report.html")
        found.get(page.as_uri())
        ready = "return document.body.dataset.ready"
        WebDriverWait(found, 30).until(lambda d: d.execute_script(ready))
        return found

    yield open_
    for found in opened.values():
        found.quit()


def pictures(driver):
    """The pixels of every picture."""
    script = "return [...document.querySelectorAll('canvas')].map((c) => c.toDataURL())"
    return driver.execute_script(script)


def token(driver, run, number):
    return driver.find_element("id", f"t{run}-{number}")


def chosen(driver):
    return [e.text for e in driver.find_elements("css selector", ".token.chosen")]


def opened_at(driver):
    return driver.execute_script("return page.opening")


def shown(driver, run=0):
    return driver.find_element("id", f"shares-{run}").text


def test_hovering_a_token_changes_both_maps(open_page, hostile):
    from selenium.webdriver.common.action_chains import ActionChains

    driver = open_page(hostile)
    before, told = pictures(driver), shown(driver)
    assert len(before) == 2
    other = 3 if opened_at(driver) != 3 else 2
    ActionChains(driver).move_to_element(token(driver, 0, other)).perform()
    after = pictures(driver)
    assert all(a != b for a, b in zip(before, after, strict=True)) and shown(driver) != told
    assert chosen(driver) == [HOSTILE[other]] * 2
    shaded = [e.text for e in driver.find_elements("css selector", "#text-0 .token.back")]
    assert shaded == ["<back>"]
    # What the model wrote is text.
    assert token(driver, 0, 0).text == HOSTILE[0] and driver.title.startswith("vrga")
    assert driver.get_log("browser") == []


CELLS = """
  const canvas = document.querySelectorAll('canvas')[arguments[2]], draw = canvas.getContext('2d');
  const [h, w] = arguments, found = [];
  for (let r = 0; r < h; r++) for (let c = 0; c < w; c++) {
    const [x, y] = [(c + 0.5) * canvas.width / w, (r + 0.5) * canvas.height / h];
    found.push([...draw.getImageData(Math.round(x), Math.round(y), 1, 1).data.slice(0, 3)]);
  }
  return found;"""


def colors(driver, grid, picture=0):
    """The colour in the middle of each image token, float [h * w, 3]."""
    return np.array(driver.execute_script(CELLS, grid.h, grid.w, picture), dtype=float)


def set_to(driver, name, value):
    """Use a control of the page."""
    driver.execute_script(
        "const [name, value] = arguments, box = document.getElementById(name);"
        "if (box.type === 'checkbox') box.checked = value; else box.value = value;"
        "box.dispatchEvent(new Event('input')); box.dispatchEvent(new Event('change'));",
        name, value,
    )  # fmt: skip


def looked_at(trace, token):
    """The map of the visual heads at a token, flat."""
    return trace.map_of(0)[trace.steps_of(0).index(token)].numpy()


@pytest.mark.parametrize("tint", [(8, 6, 10), (250, 250, 245)], ids=["dark", "light"])
def test_the_map_shows_on_a_dark_photograph_as_on_a_light_one(open_page, tint):
    trace, grid = filled_trace(), filled_trace().regions[0].grids[0]
    trace.images[0] = [Image.new("RGB", (28 * grid.w, 28 * grid.h), tint)]
    driver = open_page([trace])
    looked = looked_at(trace, opened_at(driver))
    drawn, order = colors(driver, grid), np.argsort(looked)
    apart = np.abs(drawn[order[-1]] - drawn[order[0]]).max()
    assert apart > 60, "the cell looked at most does not stand out"
    # Closer to glowing yellow, the more it was looked at.
    warmth = drawn[:, 0] - drawn[:, 2]
    assert np.corrcoef(warmth, looked)[0, 1] > 0.8
    set_to(driver, "opacity", 0)
    assert np.abs(colors(driver, grid) - tint).max() <= 1
    set_to(driver, "opacity", 65)
    set_to(driver, "original", True)
    assert np.abs(colors(driver, grid) - tint).max() <= 1
    assert driver.find_element("id", "scale-0").text == "the original"


def test_the_change_from_base_to_steered_is_a_map_of_its_own(open_page):
    traces = [filled_trace(1.0), filled_trace(3.0)]
    driver = open_page(traces)
    grid, token_ = traces[0].regions[0].grids[0], opened_at(driver)
    before, after = (looked_at(trace, token_) for trace in traces)
    set_to(driver, "kind", "change")
    drawn, change = colors(driver, grid, 1), after - before
    assert (change > 0).any() and (change < 0).any()
    clear = np.abs(change) > 0.1 * np.abs(change).max()  # fainter ones are as good as grey
    assert np.array_equal((drawn[:, 0] - drawn[:, 2] > 0)[clear], (change > 0)[clear])
    title = driver.find_element("id", "title-1").text
    assert title == "steered, gain 3.0 \u2212 not steered"
    told = driver.find_element("id", "scale-1").text
    assert f"{100 * np.abs(change).max():.3g}" in told and "less" in told and "more" in told
    assert driver.find_element("id", "title-0").text == "not steered"


@pytest.fixture
def parted():
    """Two answers that differ in a word, and of which the second is longer by one."""
    traces = [filled_trace(1.0), filled_trace(3.0, tokens=6)]
    traces[0].texts[0] = ["the ", "K ", "is ", "red", "."]
    traces[1].texts[0] = ["so ", "the ", "K ", "is ", "blue", "."]
    return traces


def test_words_that_differ_are_marked_and_same_words_go_together(open_page, parted):
    from selenium.webdriver.common.action_chains import ActionChains

    driver = open_page(parted)
    marked = driver.find_elements("css selector", ".token.differs")
    assert [e.text.strip() for e in marked] == ["red", "so", "blue"]
    for run, number, wanted in ((1, 2, ["K", "K"]), (1, 4, ["red", "blue"]), (1, 0, ["so"])):
        ActionChains(driver).move_to_element(token(driver, run, number)).perform()
        assert [text.strip() for text in chosen(driver)] == wanted
    assert shown(driver).startswith("This answer has no such token")
    assert driver.find_element("id", "where").text == "token 1 of 6"
    assert "The answers differ" in driver.find_element("css selector", ".verdict").text
    assert driver.get_log("browser") == []


def test_pictures_and_answers_are_side_by_side_and_stay_only_for_the_answers(open_page, parted):
    driver = open_page(parted, (1400, 900))
    places = driver.execute_script(
        "return ['pictures-0', 'pictures-1', 'text-0', 'text-1'].map((id) =>"
        " document.getElementById(id).getBoundingClientRect().toJSON())"
    )
    assert all(0 <= box["top"] < box["bottom"] <= 900 for box in places)
    assert places[1]["right"] <= places[2]["left"] == places[3]["left"]
    driver.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    viewer = "return document.getElementById('viewer').getBoundingClientRect().bottom"
    trends = "return document.getElementById('trends').getBoundingClientRect().top"
    assert driver.execute_script(viewer) <= driver.execute_script(trends)
    assert driver.get_log("browser") == []


def test_shares_of_attention_sum_to_all_and_the_region_is_said_within_the_image(open_page, parted):
    parted[1] = masked_trace()  # does not tell the question from other text
    driver = open_page(parted)
    for run, names in ((0, ["image", "question", "other prompt", "answer so far"]),
                       (1, ["image", "text"])):  # fmt: skip
        told = shown(driver, run)
        region = re.search(r" \(region ([\d.]+) %\)", told)
        parts = re.findall(r"([a-z ]+?) ([\d.]+) %", told.replace(region[0], ""))
        assert [name.strip() for name, _ in parts] == names
        assert round(sum(float(value) for _, value in parts), 6) == 100
        assert float(region[1]) <= float(parts[0][1])


def test_an_answer_of_one_step_has_an_axis_that_says_so(open_page):
    driver = open_page([filled_trace(tokens=2)])
    said = driver.find_element("id", "trend-region").text.split("\n")
    assert said[-2:] == ["1", "the only token with a step"]
    assert len(driver.find_elements("css selector", "#trend-region circle.dot")) == 1
    assert driver.get_log("browser") == []


def test_arrow_keys_go_from_token_to_token(open_page, hostile):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = open_page(hostile)
    driver.execute_script("select(0, 0)")
    # Unless a token has the focus, Home and End scroll the page.
    ActionChains(driver).send_keys(Keys.ARROW_RIGHT, Keys.END, Keys.HOME).perform()
    assert driver.find_element("id", "where").text == "token 2 of 5"
    ActionChains(driver).send_keys(Keys.ARROW_LEFT).perform()
    driver.execute_script("document.getElementById('text-0').focus({preventScroll: true})")
    seen = [pictures(driver)]
    for key, number in ((Keys.ARROW_RIGHT, 1), (Keys.ARROW_RIGHT, 2), (Keys.END, 4), (Keys.HOME, 0),
                        (Keys.ARROW_LEFT, 0)):  # fmt: skip
        ActionChains(driver).send_keys(key).perform()
        assert token(driver, 1, number).get_attribute("aria-selected") == "true"
        assert driver.find_element("id", "where").text == f"token {number + 1} of 5"
        seen.append(pictures(driver))
    assert seen[0] != seen[1] != seen[2] and seen[0] == seen[4] == seen[5]
    assert driver.get_log("browser") == []


def test_the_last_token_says_that_nothing_was_measured(open_page, hostile):
    from selenium.webdriver.common.action_chains import ActionChains

    driver = open_page(hostile)
    ActionChains(driver).move_to_element(token(driver, 0, 4)).perform()
    assert "Not measured at this token" in shown(driver)


def test_another_head_shows_another_map(open_page, hostile):
    from selenium.webdriver.support.ui import Select

    driver = open_page(hostile)
    heads = Select(driver.find_element("id", "channel"))
    names = [option.text for option in heads.options]
    assert names[:2] == ["visual heads", "all layers"] and any("late layers" in n for n in names)
    before, trend = (
        pictures(driver),
        driver.find_element("id", "trends").get_attribute("innerHTML"),
    )
    heads.select_by_visible_text("all layers")
    assert all(a != b for a, b in zip(before, pictures(driver), strict=True))
    assert driver.find_element("id", "trends").get_attribute("innerHTML") != trend
    # A click on a head of the atlas chooses it.
    cell = driver.find_element("css selector", "#atlas rect.has")
    driver.execute_script("arguments[0].dispatchEvent(new MouseEvent('click'))", cell)
    assert heads.first_selected_option.text.startswith("layer ")
    assert driver.get_log("browser") == []


def test_every_run_of_other_heads_is_named(open_page):
    from selenium.webdriver.support.ui import Select

    traces = [filled_trace(1.0, counts=(1, 1), maps="all"), masked_trace(maps="all")]
    driver = open_page(traces)
    titles = [e.text for e in driver.find_elements("css selector", "#atlas > h3")]
    assert titles == ["not steered", "released mask"]
    outlined = [
        len(panels.find_elements("css selector", "figure:first-child rect.visual"))
        for panels in driver.find_elements("css selector", "#atlas > .panels")
    ]
    said = driver.find_element("id", "differ")
    assert outlined[0] != outlined[1]
    assert f"{outlined[0]} in 'not steered', {outlined[1]} in 'released mask'" in said.text
    heads = Select(driver.find_element("id", "channel"))
    own, other = (trace.regions[0].visual for trace in traces)
    kinds = Counter(option.text.partition(" (")[2] for option in heads.options)
    assert kinds["visual)"] == int((own & other).sum()) > 0
    assert kinds["visual in released mask)"] == int((other & ~own).sum()) > 0
    heads.select_by_visible_text("all layers")
    assert said.text == ""
    assert driver.get_log("browser") == []


def test_the_numbers_of_a_head_can_be_reached_by_keys(open_page, hostile):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = open_page(hostile)
    where = driver.find_element("id", "where").text
    driver.execute_script("document.querySelector('#atlas svg').focus()")
    heads = hostile[0].regions[0].heads
    back = [Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_UP]  # one more than there are heads
    for keys, layer, head in (
        ([], 0, 0), ([Keys.ARROW_DOWN, Keys.ARROW_RIGHT], 1, 1), (back, 0, 0)
    ):  # fmt: skip
        ActionChains(driver).send_keys(*keys).perform()
        told = driver.find_element("id", "head").text
        assert told.startswith(f"layer {layer}, head {head}")
        assert f"R {float(heads.focus[layer, head]):.4g}" in told
    layer, head = hostile[0].heads[0].tolist()
    ActionChains(driver).send_keys(*[Keys.ARROW_DOWN] * layer, *[Keys.ARROW_RIGHT] * head).perform()
    ActionChains(driver).send_keys(Keys.ENTER).perform()
    channel = driver.find_element("id", "channel").get_attribute("value")
    assert channel.startswith(f"layer {layer}, head {head}")
    assert driver.find_element("id", "where").text == where
    assert driver.get_log("browser") == []


def test_on_a_phone_a_tap_works_and_nothing_is_wider_than_the_screen(open_page, hostile):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions import interaction
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    driver = open_page(hostile, PHONE)
    driver.execute_script("select(1, 0)")
    script = "return [document.documentElement.scrollWidth, window.innerWidth]"
    wide, window = driver.execute_script(script)
    assert window == PHONE[0] and wide <= window
    before, word = pictures(driver), token(driver, 1, 2)
    driver.execute_script("arguments[0].scrollIntoView({block: 'end'})", word)
    finger = ActionBuilder(driver, mouse=PointerInput(interaction.POINTER_TOUCH, "finger"))
    finger.pointer_action.move_to(word).pointer_down().pointer_up()
    finger.perform()
    assert all(a != b for a, b in zip(before, pictures(driver), strict=True))
    # The picture stays in sight while the text is read.
    box = driver.find_element("id", "viewer").rect
    top = driver.execute_script("return window.scrollY")
    assert 0 <= box["y"] - top and box["height"] < 0.7 * PHONE[1]
    ActionChains(driver).reset_actions()
    assert driver.get_log("browser") == []


def test_two_thousand_tokens(open_page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = open_page([long_trace(), long_trace()])
    assert len(driver.find_elements("css selector", "#text-1 .token")) == 2000
    before = pictures(driver)
    driver.execute_script("document.getElementById('text-0').focus({preventScroll: true})")
    ActionChains(driver).send_keys(Keys.END, Keys.ARROW_LEFT).perform()
    assert driver.find_element("id", "where").text == "token 1999 of 2000"
    assert pictures(driver) != before
    box = token(driver, 0, 1998).rect  # is followed into sight
    top = driver.execute_script("return window.scrollY")
    assert 0 <= box["y"] - top < WIDE[1]
    assert driver.get_log("browser") == []


def test_several_images_have_a_picture_each(open_page):
    driver = open_page([filled_trace(counts=(2, 1))] * 2, PHONE)
    assert len(pictures(driver)) == 4 and len(set(pictures(driver))) == 2
    for canvas in driver.find_elements("css selector", "canvas"):  # none is squeezed
        shown = canvas.size["width"] / canvas.size["height"]
        own = int(canvas.get_attribute("width")) / int(canvas.get_attribute("height"))
        assert abs(shown / own - 1) < 0.03
    assert driver.get_log("browser") == []


def test_the_outline_of_a_small_picture_is_as_wide_on_the_screen(open_page):
    """Two pixels of black between white, whatever the canvas is shrunk to."""
    trace = filled_trace(counts=(2, 1))
    trace.regions[0].mask[:] = False
    for grid in trace.regions[0].grids:
        trace.regions[0].mask[grid.index.view(grid.h, grid.w)[:, 0]] = True
    for size in (WIDE, PHONE):
        driver = open_page([trace] * 2, size)
        script = """
          return [...document.querySelectorAll('canvas')].map((canvas) => {
            const draw = canvas.getContext('2d'), scale = canvas.width / canvas.clientWidth;
            const row = draw.getImageData(0, canvas.height / 2 | 0, canvas.width, 1).data;
            const w = arguments[0], edge = canvas.width / w | 0;
            let black = 0;
            for (let x = edge - 6 * scale | 0; x < edge + 6 * scale; x++) black += row[4 * x] < 30;
            return [scale, black / scale];
          });"""
        found = driver.execute_script(script, trace.regions[0].grids[0].w)
        assert found[0][0] > 1.5 and all(1.4 < black < 2.6 for _, black in found[::2]), found
    assert driver.get_log("browser") == []


def test_a_row_without_an_image_has_texts_and_no_picture(open_page):
    from selenium.webdriver.common.action_chains import ActionChains

    driver = open_page([filled_trace(counts=(0, 1))])
    assert shown(driver).endswith(" %")
    ActionChains(driver).move_to_element(token(driver, 0, 4)).perform()
    assert shown(driver) == "Not measured at this token."
    assert pictures(driver) == [] and "No image" in driver.find_element("id", "atlas").text
    assert len(driver.find_elements("css selector", "#text-0 .token")) == 5
    assert driver.get_log("browser") == []


@pytest.mark.slow
def test_the_pictures_of_the_page_on_the_report_can_be_drawn(tmp_path):
    chromium().quit()  # or skip
    script = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "screenshots_report.py"))
    script["main"](tmp_path)
    for name, size in script["SHOTS"].items():
        with Image.open(tmp_path / name) as picture:
            assert picture.size == size
            assert len(picture.convert("RGB").getcolors(10**7)) > 50


@pytest.mark.slow
def test_the_pictures_of_a_trained_checkpoint_can_be_drawn(tmp_path, monkeypatch):
    """Of the embedded model, which has to be asked to look back; without that none are drawn."""
    chromium().quit()  # or skip
    docs = Path(__file__).parents[2] / "docs"
    monkeypatch.syspath_prepend(docs)
    script = runpy.run_path(str(docs / "trained.py"))
    where = str(Path(vrga.__file__).parent / "demo" / "weights")
    with pytest.raises(SystemExit, match="looks back in none of 20 answers"):
        script["main"](where, tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(script["PROMPTS"], "cot", script["PROMPTS"]["back"])
    script["main"](where, tmp_path)
    for name, size in (("report", script["SIZE"]), ("trend", None)):
        with Image.open(tmp_path / f"trained_{name}.png") as picture:
            assert size is None or picture.size == size
