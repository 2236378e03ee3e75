"""What ways of asking the questions of `fine` take, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from vrga.annotations import Model, Processor
from vrga.closer.look import look_closer
from vrga.closer.zoom import Zoom
from vrga.config import VRGAConfig
from vrga.demo.fine import arms
from vrga.demo.fine.data import FineSample


def seconds_of_ways(
    loaded: tuple[Model, Processor], samples: Sequence[FineSample], config: VRGAConfig, zoom: Zoom
) -> dict[str, dict[str, list[float]]]:
    """What each way of asking takes, one question at a time, interleaved; all say as many words.

    "plain" is the unpatched model, "once" the patched one that never looks closer.

    Returns:
        "wall" and "cpu" -> way -> seconds of each question.
    """

    def closer(zoom: Zoom) -> Callable[[FineSample], object]:
        return lambda s: look_closer(
            *loaded, s.image, s.question, config, zoom, max_new_tokens=arms.LONGEST
        )

    ways = {
        "plain": lambda s: arms.ask_rows(loaded, [[s.image, s.question]], None, shrink=zoom),
        "once": closer(replace(zoom, gain=1e6)),
        "closer": closer(zoom),
        "closer, nothing reused": closer(replace(zoom, reuse=False)),
    }
    taken: dict[str, dict[str, list[float]]] = {
        clock: {name: [] for name in ways} for clock in ("wall", "cpu")
    }
    for way in ways.values() if samples else ():
        way(samples[0])  # what is made once is not counted
    for sample in samples:
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way(sample)
            taken["wall"][name].append(time.perf_counter() - wall)
            taken["cpu"][name].append(time.process_time() - cpu)
    return taken
