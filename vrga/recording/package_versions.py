"""Versions of the packages that something was measured with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch


def versions(*more: str) -> dict[str, str]:
    """Of Python, of vrga and what it stands on, and of more packages, by their names."""
    found = {"python": platform.python_version()}
    for package in ("vrga", "torch", "transformers", *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def versions_and_device() -> dict[str, str]:
    """What a result depends on beside its settings."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return versions() | {"device": device}
