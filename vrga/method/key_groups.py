"""The groups of keys in which decode attention sums, and what each group weighs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vrga.method.region import Region

OTHER, REGION, WATCHED = 0, 1, 2
REST_OF_IMAGE = 2  # released_mask: the image outside T
QUESTION, PROMPT = 2, 3  # while recording: the question's text, and the prompt's other text
_ALWAYS_SHUT = (1.0, 1.0)


if TYPE_CHECKING:
    from vrga.config import VRGAConfig


def group_count(config: VRGAConfig, watch: Tensor | None, question: Tensor | None) -> int:
    """How many groups there are.

    Raises:
        ValueError: `watch` with a method that weighs the image's parts otherwise.
    """
    if question is not None:
        return 4
    if watch is None:
        return 3 if config.method == "released_mask" else 2
    if config.method in ("released_mask", "ablation"):
        raise ValueError(f"watch works with method='vrga' or 'released', not {config.method!r}")
    return 4


def key_groups(
    regions: list[Region], config: VRGAConfig, watch: Tensor | None, question: Tensor | None
) -> Tensor:
    """The group of every key of the prompt, int64 [B, S].

    Args:
        watch: keys watched beside the region, bool [B, S], or None.
        question: the question's text, bool [B, S]; keys off the image are told apart then.
    """
    image = torch.stack([region.image for region in regions])
    region = torch.stack([region.mask for region in regions]).long()
    if config.method == "ablation":
        return image.long() * REGION
    if config.method == "released_mask":
        return torch.where(region > 0, REGION, image.long() * REST_OF_IMAGE)
    kinds = region * REGION if watch is None else region * REGION + watch.long() * WATCHED
    return (
        kinds
        if question is None
        else torch.where(image, kinds, torch.where(question, QUESTION, PROMPT))
    )


def weights(
    config: VRGAConfig, groups: int, *, text: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Weight of each group where the gate is open, and where it is not.

    Args:
        text: groups 2 and 3 are text, which is measured and not steered.
    """
    if config.method == "ablation":
        return (1.0, 0.0), _ALWAYS_SHUT
    if config.method == "released_mask":
        return (1.0, 1.0, 0.0), (1.0, 0.0, 0.0)
    gain = float(config.gain)
    opened = (1.0, gain, 1.0, 1.0) if text else (1.0, gain) * (groups // 2)
    return opened, _ALWAYS_SHUT * (groups // 2)
