"""Headless Chromium: for the pictures of pages, and for the pages' tests."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def installed() -> tuple[str | None, str | None]:
    """Paths of the browser and of its driver; None for what there is not."""
    return next(filter(None, map(shutil.which, NAMES)), None), shutil.which("chromedriver")


def started(arguments: Sequence[str] = (), phone: dict | None = None, *, logs: bool = False):
    """A browser.

    Args:
        arguments: beside those that every one has.
        phone: width, height and pixelRatio of one with a touch screen; None has none.
        logs: whether what pages say and load is kept.
    """
    from selenium import webdriver

    browser, driver = installed()
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *arguments):
        options.add_argument(argument)
    if phone is not None:
        metrics = {"deviceMetrics": phone | {"touch": True}}
        options.add_experimental_option("mobileEmulation", metrics)
    if logs:
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
