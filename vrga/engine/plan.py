"""A steered request as it travels to the workers: plain values, checked before it leaves."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vrga.config import VRGAConfig
from vrga.engine.request import Box, as_box

PLAN = "vrga_plan"  # under which a plan stands in SamplingParams.extra_args


@dataclass(frozen=True)
class Plan:
    """How one request is steered; made at its admission.

    Args:
        config: the method's numbers.
        prompt: tokens of the prompt; every row at a later position is steered.
        query: position of the question's last token.
        images: (position, tokens) of each image, in their order.
        given: boxes of each image, as of `Asked`, or None.
    """

    config: VRGAConfig
    prompt: int
    query: int
    images: tuple[tuple[int, int], ...]
    given: tuple[tuple[Box, ...], ...] | None = None

    @property
    def probed(self) -> int:
        """Position of the row whose attention is looked at."""
        return self.query - (1 if self.config.reproduces else 0)

    def to_dict(self) -> dict[str, Any]:
        """The same as what JSON and MessagePack hold; the config as text, which is read once."""
        return {
            "config": _text(self.config),
            "prompt": self.prompt,
            "query": self.query,
            "images": self.images,
            "given": self.given,
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Plan:
        """The plan that `to_dict` told; lists are taken for tuples."""
        boxes = given["given"]
        return cls(
            _config(given["config"]),
            given["prompt"],
            given["query"],
            tuple((int(place), int(count)) for place, count in given["images"]),
            None if boxes is None else tuple(tuple(map(as_box, image)) for image in boxes),
        )

    @classmethod
    def within(cls, extra: Mapping[str, Any] | None) -> Plan | None:
        """The plan among a request's extra arguments; None where it is not steered."""
        return None if not extra or PLAN not in extra else cls.from_dict(extra[PLAN])


@functools.lru_cache(maxsize=256)
def _text(config: VRGAConfig) -> str:
    return json.dumps(config.to_dict())


@functools.lru_cache(maxsize=256)
def _config(text: str) -> VRGAConfig:
    """Requests that are steered alike share a config, and what it keeps of itself."""
    return VRGAConfig.from_dict(json.loads(text))
