"""VRGA: make a vision-language model look at the region its question is about, as it reasons.

Importing this package changes nothing and imports neither triton nor transformers; each name
below is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what each name is, for type checkers and editors
    from vrga import lookback as lookback
    from vrga.answers.answer import Answer as Answer
    from vrga.answers.ask import ask as ask
    from vrga.checkup.run import doctor as doctor
    from vrga.closer.closer import Closer as Closer
    from vrga.closer.look import look_closer as look_closer
    from vrga.closer.zoom import Zoom as Zoom
    from vrga.config import VRGAConfig as VRGAConfig
    from vrga.hf.checkpoints import load as load
    from vrga.method.region import Region as Region
    from vrga.recording.trace import Trace as Trace
    from vrga.steering.patching import Patch as Patch
    from vrga.steering.patching import patch as patch
    from vrga.steering.patching import unpatch as unpatch

__version__ = "0.1.0"

_HOME = {
    "VRGAConfig": "config",
    "Answer": "answers.answer",
    "Patch": "steering.patching",
    "ask": "answers.ask",
    "patch": "steering.patching",
    "unpatch": "steering.patching",
    "load": "hf.checkpoints",
    "doctor": "checkup.run",
    "Region": "method.region",
    "Trace": "recording.trace",
    "Closer": "closer.closer",
    "look_closer": "closer.look",
    "Zoom": "closer.zoom",
}
_MODULES = ("lookback",)

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"vrga.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'vrga' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vrga.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
