"""VRGA: make a vision-language model look at the region its question is about, as it reasons.

Importing this package changes nothing and imports neither triton nor transformers; each name
below is loaded on first use.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOME = {
    "VRGAConfig": "config",
    "Patch": "patching",
    "patch": "patching",
    "unpatch": "patching",
    "load": "hf.checkpoints",
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
    return sorted([*globals(), *__all__])
