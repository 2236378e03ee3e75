"""Make the pictures of the page in docs/app.md: `python docs/screenshots.py`.

Of `vrga app` with the embedded model, in headless Chromium at 1400 and at 390 pixels.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

from chrome import started
from PIL import Image

from vrga.app.server import served

HERE = Path(__file__).parent / "pictures"
SHOTS = {"app_wide.png": (1400, 1000), "app_phone.png": (390, 844)}  # CSS pixels
EXAMPLE, WORD = 2, "answer"  # which example is chosen, and the word that is pointed at
HEARD = "return document.querySelector('#vrga-viewer [data-ready]')?.dataset.heard"


def answered(driver, address: str) -> None:
    """Open the page, choose an example, ask, and point at a word of the steered answer."""
    from selenium.webdriver.support.ui import WebDriverWait

    def until(script: str) -> None:
        WebDriverWait(driver, 60, 0.05).until(lambda driver: driver.execute_script(script))

    driver.get(address)
    until("return !!document.querySelector('#vrga-viewer [data-ready]')")
    driver.find_elements("css selector", "#vrga-examples button")[EXAMPLE].click()
    until(f"{HEARD} === 'pictures'")
    driver.find_element("id", "vrga-ask").click()
    until(f"{HEARD} === 'answered' && !document.getElementById('vrga-ask').disabled")
    words = driver.find_elements("css selector", "#vrga-words-1 .word")
    driver.execute_script("arguments[0].click()", [w for w in words if w.text.strip() == WORD][-1])
    driver.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")


def shot(driver) -> Image.Image:
    """The whole page, also what is below the window."""
    size = driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
    asked = {"captureBeyondViewport": True, "clip": clip}
    found = driver.execute_cdp_cmd("Page.captureScreenshot", asked)
    return Image.open(io.BytesIO(base64.b64decode(found["data"]))).convert("RGB")


def draw(folder: Path, address: str) -> None:
    """Draw the pages of a server into a folder."""
    for name, size in SHOTS.items():
        width, height = size
        narrow = {"width": width, "height": height, "pixelRatio": 1} if width < 600 else None
        driver = started([f"--window-size={width},{height}"], narrow)
        try:
            answered(driver, address)
            # A palette: noise in PNG is large.
            palette = shot(driver).quantize(256, Image.Quantize.FASTOCTREE)
            palette.save(folder / name, optimize=True)
        finally:
            driver.quit()


def main(folder: Path = HERE) -> None:
    """Draw them into a folder."""
    folder.mkdir(exist_ok=True)
    with served() as address:
        draw(folder, address)


if __name__ == "__main__":
    main()
