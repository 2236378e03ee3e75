"""One way of asking the embedded model, over many drawn questions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from vrga.config import VRGAConfig
from vrga.demo.data import Sample, parse_answer
from vrga.evaluation.asker import Asker
from vrga.evaluation.items import drawn_items
from vrga.evaluation.region_attention import PUBLISHED, Looks, looks_of
from vrga.method.heads import visual_heads
from vrga.method.region import Region
from vrga.recording.trace import Trace


@dataclass(frozen=True)
class DemoLooks(Looks):
    """Where the heads looked, and what the first token saw.

    Args:
        first: attention on the region T from the first generated token, mean over the visual heads
            of `Looks.rrar`.
    """

    first: float


def demo_looks(
    trace: Trace, row: int, steps: int, region: Region, truth: list[Tensor] | None
) -> DemoLooks:
    """As `looks_of`, of an answer of a step at least."""
    heads = visual_heads(region.heads, PUBLISHED)
    first = float(trace.filled().region[0, :, row][heads].mean())
    return DemoLooks(**vars(looks_of(trace, row, steps, region, truth)), first=first)


@dataclass(frozen=True)
class Arm:
    """One prompt with one configuration, an entry per question.

    Args:
        right: the colour is right, bool [N].
        looks: where the heads looked.
    """

    texts: list[str]
    right: np.ndarray
    looks: list[DemoLooks | None]

    def look(self, name: str) -> np.ndarray:
        """A figure of the looks, float [N]."""
        return np.array([getattr(one, name) for one in self.looks], dtype=float)


def run_arm(
    model,
    processor,
    samples: list[Sample],
    prompt: str,
    config: VRGAConfig | None,
    batch: int = 100,
) -> Arm:
    """Answer every question; None leaves the model unpatched, and nothing is measured."""
    asker = Asker(
        model, processor, config, batch=batch, measure=config is not None, looks=demo_looks
    )
    requests = [i.request(prompt, i.id, max_new_tokens=96) for i in drawn_items(samples)]
    found = {answer.id: answer for answer in asker.ask(requests)}
    answers = [found[one.id] for one in requests]
    texts = [a.text for a in answers if a.text is not None]  # drawn questions never fail
    right = [parse_answer(text) == s.color for text, s in zip(texts, samples, strict=True)]
    return Arm(texts, np.array(right), [a.looks for a in answers])
