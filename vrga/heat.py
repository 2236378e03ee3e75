"""How a map of the image and its cells are drawn: colours, and the outline of some cells."""

from __future__ import annotations

import numpy as np

# Black, violet, red, orange, yellow: inferno, deeper at its end, as in report/drawing.js.
HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (255, 228, 60))
STRENGTH = 0.65  # opacity of the hottest place; the coldest has `COLD` of it
COLD = 0.4


def heat_colors(levels: np.ndarray) -> np.ndarray:
    """A map's colours, to lay over an image: dark where nobody looked and glowing where they did,
    so that it shows on dark images as on light ones.

    Args:
        levels: in [0, 1], float [h, w].

    Returns:
        Red, green, blue and opacity, each in [0, 1], float [h, w, 4].
    """
    levels = np.clip(levels, 0, 1)
    places = np.linspace(0, 1, len(HEAT))
    colors = [np.interp(levels, places, channel) / 255 for channel in zip(*HEAT, strict=True)]
    return np.stack([*colors, STRENGTH * (COLD + (1 - COLD) * levels)], axis=-1)


def outline(mask: np.ndarray) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The outline of the true cells of a mask, bool [h, w]: segments ((x0, y0), (x1, y1)) on the
    grid lines."""
    padded = np.pad(mask, 1)
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    edges = [((x, y), (x + 1, y)) for y, x in zip(rows.tolist(), columns.tolist(), strict=True)]
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    return edges + [
        ((x, y), (x, y + 1)) for y, x in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
