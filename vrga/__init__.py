"""VRGA: make a vision-language model look at the region its question is about, as it reasons.

Importing this package changes nothing and imports neither triton nor transformers; each name
below is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what each name is, for type checkers and editors
    from vrga import lookback as lookback
    from vrga.answer import Answer as Answer
    from vrga.answer import ask as ask
    from vrga.checkup.run import doctor as doctor
    from vrga.closer import Closer as Closer
    from vrga.closer import look_closer as look_closer
    from vrga.config import VRGAConfig as VRGAConfig
    from vrga.hf.checkpoints import load as load
    from vrga.patching import Patch as Patch
    from vrga.patching import patch as patch
    from vrga.patching import unpatch as unpatch
    from vrga.region import Region as Region
    from vrga.trace import Trace as Trace
    from vrga.zoom import Zoom as Zoom

__version__ = "0.1.0"

_HOME = {
    "VRGAConfig": "config",
    "Answer": "answer",
    "Patch": "patching",
    "ask": "answer",
    "patch": "patching",
    "unpatch": "patching",
    "load": "hf.checkpoints",
    "doctor": "checkup.run",
    "Region": "region",
    "Trace": "trace",
    "Closer": "closer",
    "look_closer": "closer",
    "Zoom": "zoom",
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
