"""What the pictures stand on: plain, drawn textures, photographs, or these with stamps on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from vrga.demo.data import BACKGROUND, CELL
from vrga.demo.fine.photos import photographs
from vrga.demo.fine.stamps import scatter

SHRINK = 4  # how many times the overview is smaller than the picture
FIELD = SHRINK * CELL  # pixels of the picture behind one visual token of the overview
GRID = (6, 6)  # fields
SIDE = GRID[0] * FIELD


def _texture(rng) -> Image.Image:
    """Coloured noise of several scales, of random contrast, around a random colour."""
    total = np.zeros((168, 168, 3), np.float32)
    total += rng.uniform(60, 230, size=3).astype(np.float32)
    for side in (4, 14, 56):
        small = rng.normal(size=(side, side, 3)) * rng.uniform(0, 45)
        small = (0.5 * small + 0.5 * small.mean(2, keepdims=True)).astype(np.float32)
        layers = [
            Image.fromarray(small[..., i]).resize((168, 168), Image.Resampling.BICUBIC)
            for i in range(3)
        ]
        total += np.stack([np.asarray(layer) for layer in layers], -1)
    pixels = Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))
    return pixels.resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def _photo(rng) -> Image.Image:
    """A random square of a photograph, enlarged or shrunk to the picture's size."""
    found: Sequence[Image.Image] = photographs()
    photo = found[int(rng.integers(len(found)))]
    side = int(min(photo.size) * rng.uniform(0.6, 1.0))
    x, y = (int(rng.integers(0, length - side + 1)) for length in photo.size)
    return photo.crop((x, y, x + side, y + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _stamped(rng) -> Image.Image:
    """A photograph with cut-out pictures of animals, plants and things in a third of its fields."""
    image = _photo(rng)
    scatter(rng, image, GRID[0] * GRID[1] // 3, GRID)
    return image


GROUNDS: Mapping[str, Callable] = {
    "plain": lambda rng: Image.new("RGB", (SIDE, SIDE), BACKGROUND),
    "texture": _texture,
    "photos": _photo,
    "stamps": _stamped,
}
