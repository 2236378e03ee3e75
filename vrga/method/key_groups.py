"""The groups of keys in which decode attention sums: encoded in flags, decoded from statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vrga.kernels.columns import GATE, GROUP, MASS
from vrga.method.region import Region

OTHER, REGION, WATCHED = 0, 1, 2
REST_OF_IMAGE = 2  # released_mask: the image outside T
QUESTION, PROMPT = 2, 3  # while recording: the question's text, and the prompt's other text


if TYPE_CHECKING:
    from vrga.config import VRGAConfig


@dataclass(frozen=True)
class KeyGroups:
    """What group each key is in, what the groups weigh, and what their sums mean.

    Args:
        method: the config's.
        opened, closed: weight of each group where the gate is open, and where it is not.
        watch: keys watched beside the region, bool [B, S], or None.
        question: the question's text, bool [B, S], or None; keys off the image are told apart then.
    """

    method: str
    opened: tuple[float, ...]
    closed: tuple[float, ...]
    watch: Tensor | None = None
    question: Tensor | None = None

    @classmethod
    def of(
        cls, config: VRGAConfig, watch: Tensor | None = None, question: Tensor | None = None
    ) -> KeyGroups:
        """The groups of a config.

        Raises:
            ValueError: `watch` with a method that weighs the image's parts otherwise.
        """
        method = config.method
        opened: tuple[float, ...]
        closed: tuple[float, ...]
        if watch is not None and method in ("released_mask", "ablation"):
            raise ValueError(f"watch works with method='vrga' or 'released', not {method!r}")
        if method == "ablation":
            opened, closed = (1.0, 0.0), (1.0, 1.0)
        elif method == "released_mask":
            opened, closed = (1.0, 1.0, 0.0), (1.0, 0.0, 0.0)
        elif question is not None:  # text is measured and not steered
            opened, closed = (1.0, float(config.gain), 1.0, 1.0), (1.0,) * 4
        else:
            parts = 1 if watch is None else 2
            opened, closed = (1.0, float(config.gain)) * parts, (1.0, 1.0) * parts
        return cls(method, opened, closed, watch, question)

    @property
    def boosts(self) -> bool:
        """Whether T alone is steered, so that nothing is where it is empty."""
        return self.method not in ("released_mask", "ablation")

    @property
    def count(self) -> int:
        """How many groups there are."""
        return len(self.opened)

    def unweighted(self) -> KeyGroups:
        """The same groups where attention is measured alone."""
        return replace(self, opened=(1.0,) * self.count, closed=(1.0,) * self.count)

    def flags(self, regions: list[Region], length: int = 0) -> Tensor:
        """Of every key of the prompt (group << 1) | on image, int32 [B, S or `length`, if more]."""
        image = torch.stack([region.image for region in regions])
        flags = ((self._kinds(regions, image) << 1) | image).to(torch.int32)
        return torch.nn.functional.pad(flags, (0, max(length - flags.shape[1], 0)))

    def _kinds(self, regions: list[Region], image: Tensor) -> Tensor:
        """The group of every key of the prompt, int64 [B, S]."""
        region = torch.stack([region.mask for region in regions]).long()
        if self.method == "ablation":
            return image.long() * REGION
        if self.method == "released_mask":
            return torch.where(region > 0, REGION, image.long() * REST_OF_IMAGE)
        kinds = region * REGION
        if self.watch is not None:
            kinds = kinds + self.watch.long() * WATCHED
        if self.question is None:
            return kinds
        return torch.where(image, kinds, torch.where(self.question, QUESTION, PROMPT))

    def log_weights(self, flags: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Logarithm of each key's weight under an open and a shut gate, of the shape of `flags`.

        A weight of 0 gives the least finite number.
        """
        least, group = torch.finfo(dtype).min, flags >> 1
        opened, closed = (
            [math.log(weight) if weight else least for weight in weights]
            for weights in (self.opened, self.closed)
        )
        return _by_group(group, opened, dtype), _by_group(group, closed, dtype)

    def shares(self, stats: Tensor) -> dict[str, Tensor]:
        """Shares of attention after steering, by what they are of.

        Args:
            stats: of attention before steering, [..., 3 + groups], as the kernels write them.

        Returns:
            image, region; with a question also question, prompt and generated; with watched keys
            also watched: float [...] each.
        """
        opened, closed = torch.tensor(self.opened), torch.tensor(self.closed)
        weight = torch.where(stats[..., GATE, None] > 0, opened, closed)
        mass, before = stats[..., MASS], stats[..., GROUP:]
        after = before * weight
        total = after.sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
        after = after / total[..., None]
        if self.question is not None:
            # Before steering, group 0 is the image outside T and what was generated.
            outside = (mass - before[..., REGION]).clamp_min(0) * weight[..., OTHER] / total
            region, question, prompt = after[..., REGION:].unbind(-1)
            return {
                "image": outside + region,
                "region": region,
                "question": question,
                "prompt": prompt,
                "generated": (after[..., OTHER] - outside).clamp_min(0),
            }
        rest: Tensor | float = 0.0  # hard mask and ablations: no image token is in group 0
        if self.method not in ("ablation", "released_mask"):
            # For the boost, group 0 also holds the image outside T.
            rest = (mass - before[..., 1:].sum(-1)).clamp_min(0) * weight[..., OTHER] / total
        found = {"image": rest + after[..., 1:].sum(-1), "region": after[..., 1::2].sum(-1)}
        return found if self.watch is None else found | {"watched": after[..., WATCHED:].sum(-1)}


def _by_group(group: Tensor, numbers: list[float], dtype: torch.dtype) -> Tensor:
    """Each key's number, by its group."""
    found = torch.full_like(group, numbers[0], dtype=dtype)
    for place, number in enumerate(numbers[1:], 1):
        if number != numbers[0]:
            found = torch.where(group == place, number, found)
    return found
