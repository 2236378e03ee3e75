"""Headless Chromium, as the tests of pages use it; without it they are skipped, which they say."""

import pytest
from chrome import installed, started  # of docs/, which draws with it

WIDE, PHONE = (1200, 900), (390, 844)


def chromium(size=WIDE):
    """A browser whose window is `size` CSS pixels; `PHONE` is one with a touch screen."""
    pytest.importorskip("selenium.webdriver", reason="needs selenium")
    if None in installed():
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    phone = {"width": size[0], "height": size[1], "pixelRatio": 2} if size == PHONE else None
    return started([f"--window-size={size[0]},{size[1]}"], phone, logs=True)
