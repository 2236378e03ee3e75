"""Images of a row: one for each grid of its region."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from vrga.method.region import Region


def fitted(images: Sequence[Image.Image], region: Region) -> list[Image.Image]:
    """One image for each of a region's grids.

    Of a video's frames, which the model merges in time, the first of each group.

    Raises:
        ValueError: not as many images as grids, nor, of a video, a multiple.
    """
    images, grids = list(images), len(region.grids)
    if len(images) == grids:
        return images
    video = bool(grids) and all(grid.video for grid in region.grids)
    if not video or not images or len(images) % grids:
        more = ", or a multiple, as the model merges frames" if video else ""
        raise ValueError(
            f"{len(images)} images given; the region has {grids} grids: give one for each, in "
            f"order{more}"
        )
    return images[:: len(images) // grids]
