"""Which devices of an engine are steered on."""

from __future__ import annotations

import os
from typing import Any

UNTESTED_GPU = "VRGA_ENGINE_UNTESTED_GPU"  # environment variable: 1 steers where nobody has yet


def gpu_allowed() -> bool:
    """Whether this process was told to steer on a GPU, untested as that is."""
    return os.environ.get(UNTESTED_GPU) == "1"


def refused_device(config: Any) -> str | None:
    """Why an engine of this configuration steers nothing on its device; None where it does."""
    kind = config.device_config.device_type
    if kind == "cpu":
        return None
    if kind != "cuda":
        return f"attention on the device {kind!r} is not ours: CPUs alone are"
    if not gpu_allowed():
        return (
            "steering on a GPU has never been run, for want of one: the kernels are compiled and "
            f"checked in the interpreter alone. Set {UNTESTED_GPU}=1 where the server starts to "
            "try it, and compare its answers with those of vrga.patch"
        )
    from vllm.platforms import current_platform

    if current_platform.is_rocm():
        return "attention on ROCm is not ours: FLASH_ATTN on CUDA is"
    backend = config.attention_config.backend
    if backend is not None and backend.name != "FLASH_ATTN":
        return f"attention by {backend.name} is not ours: start with --attention-backend FLASH_ATTN"
    return None
