"""Launching Triton kernels at little host time: scratch memory and bound kernels are kept.

A launch through `kernel[grid](...)` looks at every argument to find the compiled variant, some 20
microseconds of host time. A decode step makes the same launch once per layer, on other tensors of
the same shapes, so a `Launch` does that once and then starts the variant it found.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}

MAX_PLANS = 64  # a cache that grows makes a new plan for every token


def interpreted(kernel: object) -> bool:
    """Whether Triton's interpreter runs a kernel (TRITON_INTERPRET=1 at import)."""
    return not isinstance(kernel, triton.JITFunction)


def tile_dtype(kernel: object, dtype: torch.dtype) -> tl.dtype:
    """The type of a kernel's tiles.

    The interpreter multiplies bfloat16 tiles as raw bits; there the tiles are float32.
    """
    return tl.float32 if interpreted(kernel) else DTYPES[dtype]


@functools.cache
def multiprocessors(index: int) -> int:
    """Multiprocessors of a CUDA device."""
    return torch.cuda.get_device_properties(index).multi_processor_count


class Launch:
    """A kernel with all its arguments but the tensors, which may differ in content alone.

    Args:
        kernel: a `triton.jit` function whose first arguments are the tensors.
        grid: programs along each axis.
        numbers: the arguments behind the tensors.
        constants: its compile-time constants by name.
        options: of the launch, num_warps and num_stages; or BN, a constant that goes with them.
    """

    # Before 3.3 a compiled kernel was started without its constants.
    _starts_compiled = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3)

    def __init__(
        self, kernel, grid: tuple[int, ...], numbers: tuple, constants: dict, options: dict
    ):
        self.kernel, self.grid, self.numbers = kernel, (*grid, 1, 1)[:3], numbers
        self.keywords = constants | options
        named = [name for name in kernel.arg_names if name in self.keywords]
        self._rest = (*numbers, *(self.keywords[name] for name in named))
        self._start = None

    def __call__(self, *tensors: Tensor) -> None:
        """Launch on tensors of the dtypes and alignments of the first call."""
        if self._start is not None:
            self._start(*tensors, *self._rest)
            return
        compiled = self.kernel[self.grid](*tensors, *self.numbers, **self.keywords)
        if self._starts_compiled and not interpreted(self.kernel):
            self._start = compiled[self.grid]


class Workspace:
    """What calls keep for the next: scratch memory per device, and plans of what to launch.

    A buffer grows on demand and never shrinks. A captured CUDA graph keeps the addresses it saw,
    so an outgrown buffer is kept, too.

    Args:
        keep_memory: False allocates scratch memory for each call, which under torch.compile is
            the compiler's business, and keeps plans alone.
    """

    def __init__(self, keep_memory: bool = True):
        self._keep_memory = keep_memory
        self._buffers: dict[torch.device, list[Tensor]] = {}
        self.plans: dict[tuple, Any] = {}  # each of the kernel that made it

    def floats(self, count: int, device: torch.device) -> Tensor:
        """At least `count` uninitialised float32 on `device`."""
        if not self._keep_memory:
            return torch.empty(count, dtype=torch.float32, device=device)
        buffers = self._buffers.setdefault(device, [])
        if not buffers or buffers[-1].numel() < count:
            size = max(count, 2 * buffers[-1].numel() if buffers else 0)
            buffers.append(torch.empty(size, dtype=torch.float32, device=device))
        return buffers[-1]

    def remember(self, key: tuple, plan: object) -> None:
        """Keep a plan; those of caches that have grown since make room."""
        if len(self.plans) >= MAX_PLANS:
            self.plans.clear()
        self.plans[key] = plan


def call_key(tensors: tuple[Tensor | None, ...], numbers: tuple) -> tuple:
    """All that checks and compiled variants depend on: equal keys mean the same launches."""
    return numbers, *(
        None if x is None else (x.shape, x.stride(), x.dtype, x.device, x.data_ptr() & 15)
        for x in tensors
    )
