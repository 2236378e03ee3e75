"""Photographs to lay cards on: those that scikit-image ships, read where it is installed."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from PIL import Image

from vrga.images import read_image

NAMES = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png",
    "motorcycle_right.png", "hubble_deep_field.jpg", "retina.jpg", "ihc.png", "camera.png",
    "brick.png", "grass.png", "gravel.png", "coins.png", "moon.png",
)  # fmt: skip


def available() -> bool:
    """Whether scikit-image, whose photographs are used, is installed."""
    return _package() is not None


def _package() -> Path | None:
    found = importlib.util.find_spec("skimage")
    return None if found is None or found.origin is None else Path(found.origin).parent


@functools.cache
def photographs() -> tuple[Image.Image, ...]:
    """The photographs, RGB, in an order that is always the same.

    Raises:
        ImportError: scikit-image is not installed.
        FileNotFoundError: this version of it ships another set.
    """
    package = _package()
    if package is None:
        raise ImportError(
            "the splits fine-photos and fine-stamps lay cards on the photographs that scikit-image "
            "ships, and it is not installed: pip install scikit-image"
        )
    folder = package / "data"
    missing = [name for name in NAMES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"this version of scikit-image ships no {', '.join(missing)} in {folder}: the split "
            "fine-photos needs them; 0.26 has them"
        )
    return tuple(read_image(folder / name) for name in NAMES)
