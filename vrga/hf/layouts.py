"""How each model family lays the tokens of an image out: its grids, in the order of the tokens.

A layout takes the model's config and the inputs that came with the images, and gives for images
(1) and for videos (2) the `Cells` of every image or frame in the order of the batch's rows; None
where they must be read from the rotary positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from vrga.annotations import Config

IMAGES, VIDEOS = 1, 2


@dataclass(frozen=True)
class Cells:
    """The tokens of one image, or one frame or tile: h rows of w, in raster order.

    Args:
        lead: tokens before the first row that show nothing (a class token).
        gap: tokens after each row that show nothing (LLaVA's newlines).
        tail: such tokens after the last row.
        spare: such tokens that a run of image tokens may end with.
        breaks: tokens of text between its rows (Pixtral's).
    """

    h: int
    w: int
    lead: int = 0
    gap: int = 0
    tail: int = 0
    spare: int = 0
    breaks: int = 0

    @property
    def tokens(self) -> int:
        """All image tokens it takes."""
        return self.lead + self.h * (self.w + self.gap) + self.tail

    @property
    def span(self) -> int:
        """Positions from its first token to its last."""
        return self.tokens + (self.h - 1) * self.breaks


Layout = Callable[[Config, dict], Mapping[int, Iterable[Cells]] | None]


def by_patches(config: Config, inputs: dict) -> dict[int, list[Cells]] | None:
    """image_grid_thw and video_grid_thw: patches in time, height and width (Qwen-VL)."""
    names = {IMAGES: "image_grid_thw", VIDEOS: "video_grid_thw"}
    given = {kind: inputs.get(name) for kind, name in names.items()}
    if all(grids is None for grids in given.values()):
        return None
    merge = config.vision_config.spatial_merge_size

    def cells(grids: Tensor | None) -> list[Cells]:
        rows = [] if grids is None else grids.tolist()
        return [Cells(h // merge, w // merge) for t, h, w in rows for _ in range(t)]

    return {kind: cells(grids) for kind, grids in given.items()}


def tiles(side: Callable[[Config], float]) -> Layout:
    """Images, tiles of images, or frames that are all of one size.

    Args:
        side: tokens along each side, from the config.
    """

    def layout(config: Config, inputs: dict) -> dict[int, Iterable[Cells]]:
        count = side(config)
        if count != int(count):
            raise ValueError(
                f"{config.model_type} has {count * count:g} tokens per image, which is no square"
            )
        one = Cells(int(count), int(count))
        return {IMAGES: itertools.repeat(one), VIDEOS: itertools.repeat(one)}

    return layout


def patches_per_side(vision: Config) -> int:
    """Patches along the side of the square images that a vision tower takes."""
    size, patch = (
        value[0] if isinstance(value, (list, tuple)) else value
        for value in (vision.image_size, vision.patch_size)
    )
    return size // patch


# Tokens that a vision tower puts before its patches, by its model_type.
CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}


def selected_patches(config: Config, inputs: dict) -> dict[int, Iterable[Cells]]:
    """LLaVA: square images of a fixed size, or Pixtral's of any, by its vision tower.

    Raises:
        ValueError: a vision tower that is not known, or a strategy that leaves no grid.
    """
    vision, strategy = config.vision_config, config.vision_feature_select_strategy
    if vision.model_type == "pixtral":
        sizes, patch = inputs.get("image_sizes"), vision.patch_size
        if sizes is None:
            return {IMAGES: iter(())}  # no image; or one that nothing accounts for, which is told
        return {IMAGES: [Cells(h // patch, w // patch, breaks=1) for h, w in sizes.tolist()]}
    if vision.model_type not in CLASS_TOKENS:
        raise ValueError(
            f"{config.model_type} with the vision tower {vision.model_type!r} is not supported: "
            f"its token grid is not known; known towers: pixtral, {', '.join(CLASS_TOKENS)}"
        )
    lead = CLASS_TOKENS[vision.model_type] - (strategy == "default")
    if lead < 0 or strategy not in ("default", "full"):
        raise ValueError(
            f"vision_feature_select_strategy={strategy!r} on a {vision.model_type!r} leaves tokens "
            "that are no grid; supported: 'full', and 'default' where there is a class token"
        )
    side = patches_per_side(vision)
    one = Cells(side, side, lead=lead)
    return {IMAGES: itertools.repeat(one), VIDEOS: itertools.repeat(one)}


def any_resolution(config: Config, inputs: dict) -> dict[int, Iterable[Cells]]:
    """LLaVA-OneVision: an overview of each image, then its tiles put together, row by row.

    The tiles' padding is cut off and large images are scaled down, as the model does it; each of
    their rows ends with a newline token. Samples of several images have overviews alone, each
    followed by a newline. Videos have frames of half the side.
    """
    side = patches_per_side(config.vision_config)
    half = math.ceil(side / 2)
    # A newline stands behind a video's last frame.
    found: dict[int, Iterable[Cells]] = {VIDEOS: itertools.repeat(Cells(half, half, spare=1))}
    sizes = inputs.get("image_sizes")
    if sizes is None:
        return found
    counts = inputs.get("batch_num_images")
    counts = [1] * len(sizes) if counts is None else [int(count) for count in counts]
    several = [count > 1 for count in counts for _ in range(count)]
    images: list[Cells] = []
    for size, overview_alone in zip(sizes.tolist(), several, strict=True):
        if overview_alone:
            images.append(Cells(side, side, tail=1))
        else:
            h, w = _unpadded(size, side, config)
            images += [Cells(side, side), Cells(h, w, gap=1)]
    return found | {IMAGES: images}


def _unpadded(size: list[int], side: int, config: Config) -> tuple[int, int]:
    """Rows and columns of an image's tiles without padding, in tokens; `size` is in pixels."""
    from transformers.image_processing_utils import select_best_resolution

    pixels = config.vision_config.image_size
    best = select_best_resolution(size, config.image_grid_pinpoints)
    h, w = (side * (length // pixels) for length in best)
    height, width = size
    if width / height > w / h:
        h -= 2 * ((h - int(round(height * (w / width), 7))) // 2)
    else:
        w -= 2 * ((w - int(round(width * (h / height), 7))) // 2)
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(h * w / (most * side**2))
    return (int(h // ratio), int(w // ratio)) if ratio > 1.1 else (h, w)
