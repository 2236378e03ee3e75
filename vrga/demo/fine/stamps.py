"""Cut-out pictures to scatter on a ground: the stamps of Debian's tuxpaint-stamps-default."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path("/usr/share/tuxpaint/stamps")
FEWEST = 100  # stamps that a whole package has at least; it has hundreds


def available() -> bool:
    """Whether the stamps are installed."""
    return len(_files()) >= FEWEST


@functools.cache
def _files() -> tuple[Path, ...]:
    """The stamps' files, in an order that is always the same."""
    return tuple(sorted(FOLDER.rglob("*.png")))


@functools.lru_cache(maxsize=256)
def stamp(number: int, side: int) -> Image.Image:
    """A stamp, RGBA, cut to what is not transparent and shrunk to a longest side in pixels.

    Args:
        number: of the stamp; counted round.

    Raises:
        ImportError: the package is not installed.
    """
    if not available():
        raise ImportError(
            "the split fine-stamps scatters the stamps of Debian's tuxpaint-stamps-default, and "
            f"{FOLDER} holds {len(_files())} of them: apt-get install tuxpaint-stamps-default"
        )
    with Image.open(_files()[number % len(_files())]) as image:
        found = image.convert("RGBA")
    found = found.crop(found.getchannel("A").getbbox() or (0, 0, *found.size))
    scale = side / max(found.size)
    width, height = (max(1, round(length * scale)) for length in found.size)
    return found.resize((width, height), Image.Resampling.LANCZOS)


def scatter(rng: np.random.Generator, image: Image.Image, fields: int, grid: tuple[int, int]):
    """Lay stamps on an image, one in each of some fields, inside its field.

    Args:
        rng: draws which, where and how large.
        image: changed.
        fields: how many; grid: rows and columns of fields.
    """
    rows, columns = grid
    width, height = image.width // columns, image.height // rows
    for place in rng.permutation(rows * columns)[:fields].tolist():
        row, column = divmod(place, columns)
        longest = int(rng.integers(width // 2, width))
        own = stamp(int(rng.integers(1 << 30)), longest)
        x = column * width + int(rng.integers(0, width - own.width + 1))
        y = row * height + int(rng.integers(0, height - own.height + 1))
        image.paste(own, (x, y), own)
