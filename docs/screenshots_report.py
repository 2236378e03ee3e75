"""Make the pictures of docs/traces-and-report.md: `python docs/screenshots_report.py`.

Of the report of a question to the embedded model, in headless Chromium at 1400 and at 390 pixels.
"""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path

import torch
from chrome import started
from PIL import Image

import vrga
from vrga.demo.data import PROMPTS, SPLITS, TEST_SEEDS, make_samples

HERE = Path(__file__).parent / "pictures"
SHOTS = {"report_wide.png": (1400, 860), "report_phone.png": (390, 844)}  # CSS pixels
# Picked among the first 200 drawn: steering makes its answer right.
SPLIT, NUMBER, PROMPT = "noise", 200, "cot"
READY = "return document.body.dataset.ready === 'yes'"


def page(path: Path) -> Path:
    """Ask the question, and write its report."""
    model, processor = vrga.load(dtype=torch.float32)
    (sample,) = make_samples(1, seed=TEST_SEEDS.start + NUMBER, **SPLITS[SPLIT])
    with vrga.patch(model, tokenizer=processor.tokenizer) as patch:
        patch.query = sample.question
        text = PROMPTS[PROMPT].format(question=sample.question)
        answer = vrga.ask(model, processor, sample.image, text, max_new_tokens=96)
    return answer.report(path)


def chromium(size: tuple[int, int]):
    """A headless browser; one that is narrow has a touch screen."""
    driver = started(["--hide-scrollbars"])
    phone = size[0] < 600
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": phone}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
    return driver


def shot(address: str, size: tuple[int, int]) -> Image.Image:
    """What a window of this size shows of the page when it is opened."""
    from selenium.webdriver.support.ui import WebDriverWait

    driver = chromium(size)
    try:
        driver.get(address)
        WebDriverWait(driver, 30, 0.05).until(lambda driver: driver.execute_script(READY))
        found = driver.execute_cdp_cmd("Page.captureScreenshot", {})["data"]
    finally:
        driver.quit()
    return Image.open(io.BytesIO(base64.b64decode(found))).convert("RGB")


def main(folder: Path = HERE) -> None:
    """Draw them into a folder."""
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        address = page(Path(made) / "report.html").as_uri()
        for name, size in SHOTS.items():
            # A palette: noise in PNG is large.
            palette = shot(address, size).quantize(256, Image.Quantize.FASTOCTREE)
            palette.save(folder / name, optimize=True)


if __name__ == "__main__":
    main()
