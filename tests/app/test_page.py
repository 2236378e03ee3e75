"""The page in headless Chromium: drop, ask, see where a word looked, paint, and leave."""

import json
import runpy
import threading
import time
from pathlib import Path

import psutil
import pytest
from browser import PHONE, chromium
from PIL import Image

import vrga
from vrga.app import word_queue
from vrga.app.examples import SHOWN
from vrga.demo.data import PROMPTS, TEST_SEEDS, make_samples

pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason='the page needs Gradio: pip install "vrga[app]"')
SAMPLES = make_samples(2, seed=TEST_SEEDS.start, noise=140.0)
LARGE = (1400, 1000)


@pytest.fixture(scope="module")
def address():
    from vrga.app.server import served

    with served(max_new_tokens=64) as found:
        yield found


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for place, sample in enumerate(SAMPLES):
        sample.image.save(folder / f"{place}.png")
    return [folder / f"{place}.png" for place in range(len(SAMPLES))]


@pytest.fixture(scope="module")
def browsers():
    opened = {}
    yield opened
    for one in opened.values():
        one.quit()


class Tab:
    """The page in a browser."""

    def __init__(self, driver):
        self.driver = driver
        # Its parts come one by one, and not always in the same order.
        self.wait(
            "return ['#vrga-viewer [data-ready]', '#vrga-ask', '#vrga-question textarea',"
            "'#vrga-drop input[type=file]'].every(part => document.querySelector(part))"
        )

    def run(self, script, *given):
        return self.driver.execute_script(script, *given)

    def wait(self, script, seconds=30):
        """What a script returns as soon as it is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, seconds, 0.05).until(lambda d: d.execute_script(script))

    def find(self, name):
        return self.driver.find_element("id", f"vrga-{name}")

    @property
    def heard(self):
        return self.run("return document.querySelector('#vrga-viewer [data-ready]').dataset.heard")

    def until(self, *kinds):
        """Wait until the viewer was told one of these."""
        self.wait(
            "const now = document.querySelector('#vrga-viewer [data-ready]').dataset.heard;"
            f"return {list(kinds)}.includes(now)"
        )

    def drop(self, *files):
        self.run("document.querySelector('#vrga-viewer [data-ready]').dataset.heard = ''")
        box = self.driver.find_element("css selector", "#vrga-drop input[type=file]")
        box.send_keys("\n".join(map(str, files)))
        self.until("pictures", "error")

    def write(self, text):
        box = self.driver.find_element("css selector", "#vrga-question textarea")
        box.clear()
        box.send_keys(text)

    def ask(self):
        """Ask, and wait until it is answered, or told why it is not; the seconds it took."""
        self.run("document.querySelector('#vrga-viewer [data-ready]').dataset.heard = ''")
        start = time.perf_counter()
        self.find("ask").click()
        self.until("answered", "error", "stopped")
        seconds = time.perf_counter() - start
        self.wait("return !document.getElementById('vrga-ask').disabled")
        return seconds

    def pixels(self):
        script = (
            "return [...document.querySelectorAll('#vrga-viewer canvas')].map(c => c.toDataURL())"
        )
        return self.run(script)

    def pick(self, select, value):
        from selenium.webdriver.support.ui import Select

        Select(self.find(select)).select_by_visible_text(value)

    def set(self, slider, value):
        """Move one of the viewer's own sliders."""
        move = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.run(move, self.find(slider), value)

    def move_to(self, element):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).move_to_element(element).perform()

    def gain(self, value):
        from selenium.webdriver.common.keys import Keys

        box = self.driver.find_element("css selector", "#vrga-gain input[type=number]")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(str(value), Keys.TAB)


@pytest.fixture
def open_tab(address, browsers):
    """Open the page; afterwards nothing may stand in the console, nor any other host be asked."""
    used = []

    def open_(size=LARGE):
        if size not in browsers:
            browsers[size] = chromium(size)
        driver = browsers[size]
        if driver in used:
            check(driver)
        driver.get("about:blank")
        for kind in ("browser", "performance"):  # what a page says when it is left
            driver.get_log(kind)
        driver.get(address)
        used.append(driver)
        return Tab(driver)

    def check(driver):
        messages = [json.loads(one["message"])["message"] for one in driver.get_log("performance")]
        asked = [one["params"]["request"]["url"] for one in messages
                 if one["method"] == "Network.requestWillBeSent"]  # fmt: skip
        own = (address, "data:", "blob:")
        assert asked and not [url for url in asked if not url.startswith(own)]
        assert not [one for one in driver.get_log("browser") if one["level"] == "SEVERE"]

    yield open_
    for driver in set(used):
        check(driver)


def wait_for(condition, seconds=30):
    """Wait until something outside the browser is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.05)


@pytest.fixture
def gate(monkeypatch):
    """Holds answers back at their second word until it is set; counts what was let through."""
    opened, entered, through = threading.Event(), threading.Event(), []
    put = word_queue.Stoppable.put

    def held(self, value):
        through.append(value)
        if len(through) > 2:
            entered.set()
            opened.wait(30)
        put(self, value)

    monkeypatch.setattr(word_queue.Stoppable, "put", held)
    opened.entered, opened.through = entered, through
    yield opened
    opened.set()


def test_an_uploaded_picture_is_answered_without_and_with_vrga(
    open_tab, paths, tmp_path, record_property
):
    tab = open_tab()
    assert "small model inside the package" in tab.find("head").text
    tab.drop(paths[0])
    tab.write(SAMPLES[0].question)
    record_property("seconds_to_the_first_answer", round(tab.ask(), 2))
    wanted = vrga.ask(*vrga.load(), paths[0], SAMPLES[0].question)
    said = [tab.find(f"words-{number}").text.rstrip("\u25a0") for number in range(2)]
    assert said == [wanted.base, wanted.text]
    assert f"{int(wanted.region.mask.sum())} of 36 image tokens" in tab.find("foot").text
    place = {"behavior": "allow", "downloadPath": str(tmp_path)}
    tab.driver.execute_cdp_cmd("Browser.setDownloadBehavior", place)
    tab.wait("return !document.getElementById('vrga-report').disabled")
    tab.find("report").click()
    page = tmp_path / "vrga-report.html"
    wait_for(page.exists)
    assert "Where the model looked" in page.read_text() and SAMPLES[0].question in page.read_text()


def test_a_word_shows_where_it_looked(open_tab, paths):
    tab = open_tab()
    tab.drop(paths[0])
    plain = tab.pixels()
    tab.write(SAMPLES[0].question)
    tab.ask()
    question = tab.pixels()
    assert len(question) == 2 and all(a != b for a, b in zip(plain, question, strict=True))
    tab.move_to(tab.find("word-1-2"))
    word = tab.pixels()
    assert word[1] != question[1] and "% on the image" in tab.find("shares-1").text
    tab.move_to(tab.find("word-1-3"))
    visual = tab.pixels()
    assert visual[1] not in (word[1], question[1])
    tab.run("arguments[0].click()", tab.find("word-1-3"))  # stays when the mouse leaves
    tab.pick("channel", "layer 2")
    layer = tab.pixels()
    assert layer[1] != visual[1]
    tab.pick("channel", next(name for name in tab.find("channel").text.split("\n")
                             if name.strip().startswith("layer 3, head")).strip())  # fmt: skip
    assert tab.pixels()[1] not in (layer[1], visual[1])
    tab.run("arguments[0].click()", tab.find("word-1-3"))
    tab.move_to(tab.find("ask"))
    assert tab.pixels() == question  # the question's map is that of its visual heads
    tab.set("opacity", 20)
    light = tab.pixels()
    assert light[1] != question[1]
    tab.find("original").click()
    assert tab.pixels() == plain
    tab.find("original").click()
    assert tab.pixels() == light


def test_a_painted_region_changes_the_steering(open_tab, paths):
    from selenium.webdriver.common.action_chains import ActionChains

    tab = open_tab()
    tab.drop(paths[0])
    tab.write(SAMPLES[0].question)
    tab.gain(8)
    tab.ask()
    free = tab.pixels(), tab.find("foot").text
    tab.find("paint").click()
    canvas = tab.driver.find_element("css selector", "#vrga-pictures-1 canvas")
    cell = canvas.size["width"] / 6
    stroke = ActionChains(tab.driver).move_to_element(canvas)  # its middle; to the last column
    stroke.move_by_offset(2.2 * cell, -2.7 * cell).click_and_hold()
    stroke.move_by_offset(0, 0.4 * cell).move_by_offset(0.4 * cell, 0)
    stroke.move_by_offset(0, -0.3 * cell).release().perform()
    assert tab.pixels() != free[0]
    tab.ask()
    assert "the painted region, 1 of 36 image tokens" in tab.find("foot").text
    assert "the painted region" not in free[1]
    tab.find("clear").click()
    painted = tab.pixels()
    tab.ask()
    assert tab.find("foot").text.split(" \u00b7 ")[1] == free[1].split(" \u00b7 ")[1]
    assert tab.pixels() == free[0] != painted


@pytest.mark.filterwarnings("ignore:this is the small embedded model")
def test_what_goes_wrong_is_said_in_words(open_tab, paths, tmp_path, monkeypatch):
    import vrga.app.loaded_model

    tab = open_tab()
    tab.ask()
    assert tab.find("note").text == "there is no picture: drop one, or choose an example"
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(paths[0].read_bytes()[:200])
    tab.drop(damaged)
    assert "damaged.png cannot be read" in tab.find("note").text
    tab = open_tab()
    Image.new("RGB", (120, 80), "navy").save(tmp_path / "photo.jpg")
    tab.drop(tmp_path / "photo.jpg")
    tab.write("who is this?")
    tab.ask()
    assert "reads coloured letters" in tab.find("note").text

    def broken(*args, **kwargs):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(vrga.app.loaded_model, "ask", broken)
    tab.ask()
    assert tab.find("note").text == "the model failed: RuntimeError: CUDA out of memory"
    assert tab.find("ask").is_enabled()


def test_several_pictures_and_an_example(open_tab, paths):
    tab = open_tab()
    tab.drop(*paths)
    tab.write("what color is the K?")
    tab.ask()
    assert len(tab.pixels()) == 4 and "of 72 image tokens" in tab.find("foot").text
    tab.run("document.querySelector('#vrga-viewer [data-ready]').dataset.heard = ''")
    examples = tab.driver.find_elements("css selector", "#vrga-examples button")
    assert len(examples) == len(SHOWN)
    examples[1].click()
    tab.until("pictures")
    assert len(tab.pixels()) == 2 and tab.find("foot").text == ""
    tab.ask()
    assert "of 36 image tokens" in tab.find("foot").text


def test_on_a_phone_a_tap_works_and_nothing_is_wider_than_the_screen(open_tab, address):
    """On the page as the pictures of the docs show it."""
    script = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "screenshots.py"))
    tab = open_tab(PHONE)
    script["answered"](tab.driver, address)
    wide, window = tab.run("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert window == PHONE[0] == script["SHOTS"]["app_phone.png"][0] and wide <= window
    whole = script["shot"](tab.driver)
    assert whole.width in (window, 2 * window) and whole.height > PHONE[1]
    before, word = tab.pixels(), tab.find("word-0-3")
    tab.run("arguments[0].scrollIntoView({block: 'end'})", word)
    word.click()
    assert tab.pixels()[0] != before[0]
    assert word.get_attribute("aria-selected") == "true"


# --- one at a time, and nothing kept ---


def test_a_closed_tab_stops_its_answer_and_takes_its_files_along(open_tab, gate, paths):
    tab = open_tab()
    first = tab.driver.current_window_handle
    tab.driver.switch_to.new_window("tab")
    other = open_tab()
    other.drop(paths[0])
    other.write(PROMPTS["cot"].format(question=SAMPLES[0].question))
    other.find("ask").click()
    assert gate.entered.wait(30)
    (folder,) = uploaded()
    assert (folder / "0.png").exists()
    tab.driver.close()
    tab.driver.switch_to.window(first)
    wait_for(lambda: not (folder / "0.png").exists())
    gate.set()
    for one in threading.enumerate():
        if one.name == "vrga-answer":
            one.join(20)
            assert not one.is_alive()
    assert len(gate.through) == 3  # the prompt, a word, and that at which it stopped


def test_one_question_at_a_time_and_the_button_stops_it(open_tab, gate, paths):
    first = open_tab()
    handle = first.driver.current_window_handle
    first.drop(paths[0])
    first.write(PROMPTS["cot"].format(question=SAMPLES[0].question))
    first.find("ask").click()
    assert gate.entered.wait(30)
    for leaves in (True, False):  # the first of them is closed while it waits
        first.driver.switch_to.new_window("tab")
        other = open_tab()
        other.drop(paths[1])
        other.write("what color is the K?")
        other.find("ask").click()
        queued = "return document.querySelector('#vrga-note').innerText.includes('in the queue')"
        other.wait(queued)
        if leaves:
            first.driver.close()
            first.driver.switch_to.window(handle)
    assert len(gate.through) == 3 and other.heard == "pictures"
    waiting = first.driver.current_window_handle
    first.driver.switch_to.window(handle)
    first.wait("return !document.getElementById('vrga-stop').disabled")
    first.find("stop").click()
    gate.set()
    first.until("stopped")
    assert first.find("note").text == "Stopped." and first.find("ask").is_enabled()
    assert first.find("words-0").text.startswith("<think")
    first.driver.switch_to.window(waiting)
    other.until("answered")
    assert other.find("note").text == ""
    # Prompts: of the answer that was stopped, and both of the one that waited.
    assert sum(value.numel() > 1 for value in gate.through) == 3
    first.driver.close()
    first.driver.switch_to.window(handle)


def uploaded():
    """Folders of what the server of this process keeps of uploads."""
    import os

    kept = Path(os.environ["GRADIO_TEMP_DIR"])
    return [path.parent for path in kept.rglob("0.png")]


def test_it_listens_on_this_machine_alone_and_leaves_nothing(paths):
    import os

    from vrga.app.server import served

    before = os.environ.get("GRADIO_TEMP_DIR")
    with served(max_new_tokens=4) as address:
        port = int(address.rstrip("/").rpartition(":")[2])
        listening = [one.laddr.ip for one in psutil.Process().net_connections()
                     if one.status == psutil.CONN_LISTEN and one.laddr.port == port]  # fmt: skip
        assert listening == ["127.0.0.1"]
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert len(list((folder / "examples").iterdir())) == len(SHOWN)
    assert not folder.exists() and os.environ.get("GRADIO_TEMP_DIR") == before
