"""Regions painted with the brush: from the browser's raster to cells of an image's token grid."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vrga.method.prompt import Grid

LARGEST = 256  # cells of the raster on a side
COVERED = 1 / 3  # of a token's cell, from which on it belongs to the region


def read_painted(text: str, images: int) -> list[np.ndarray | None]:
    """What the page sends of the brush: for each image a mask, bool [h, w], or None.

    Args:
        text: JSON, for each image null or {"w", "h", "bits"}: a byte for each cell, in base64.
        images: how many there are.

    Raises:
        ValueError: another form, or masks of other images than those of the question.
    """
    try:
        sent = json.loads(text or "[]")
        masks = [None if one is None else _mask(**one) for one in sent]
    except (ValueError, TypeError, binascii.Error) as error:
        raise ValueError(f"the painted region cannot be read ({error}): paint it again") from error
    masks = [mask if mask is not None and mask.any() else None for mask in masks]
    if any(mask is not None for mask in masks[images:]):
        raise ValueError(
            f"a region is painted on picture {len(masks)}, and there are {images}: clear it"
        )
    return (masks + [None] * images)[:images]


def cells_of(masks: Sequence[np.ndarray | None], grids: Sequence[Grid]) -> list[Tensor]:
    """The painted cells of each image's token grid, bool [h, w].

    A cell belongs to the region where a third of it is painted; where that is true of none of an
    image's cells, the one that is painted most.

    Raises:
        ValueError: not as many images as grids.
    """
    if len(masks) != len(grids):
        raise ValueError(
            f"this model cuts {len(masks)} pictures into {len(grids)} tiles, on which a painted "
            "region has no place: clear it, and let the model find its own"
        )
    found = []
    for mask, grid in zip(masks, grids, strict=True):
        if mask is None:
            found.append(torch.zeros(grid.h, grid.w, dtype=torch.bool))
            continue
        whole = Image.fromarray(mask.astype(np.float32))
        share = np.asarray(whole.resize((grid.w, grid.h), Image.Resampling.BOX))
        found.append(torch.from_numpy(share >= min(COVERED, float(share.max()))))
    return found


def _mask(w: int, h: int, bits: str) -> np.ndarray:
    if not all(isinstance(side, int) and 1 <= side <= LARGEST for side in (w, h)):
        raise ValueError(f"a raster of {w} x {h} cells")
    raw = np.frombuffer(base64.b64decode(bits, validate=True), np.uint8)
    return raw.reshape(h, w) > 0
