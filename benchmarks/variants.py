"""Every variant of the kernels that is shipped: what is compiled, and what is checked on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vrga.kernels import arguments, decode

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Variant:
    """One combination of compile-time constants.

    Args:
        heads, kv_heads, rows, size: H, H_kv, query rows, d.
        groups: 2 for boost and ablation, 3 for the hard mask, 4 with watched cells.
        single: one split, which finishes the output in the same launch.
        extent: padding or a static cache; gate: static; stats: telemetry.
        page: keys on a page of a cache in pages, which has no extent; 0: one piece.
    """

    heads: int = 28
    kv_heads: int = 4
    rows: int = 1
    size: int = 128
    dtype: torch.dtype = torch.bfloat16
    groups: int = 2
    single: bool = False
    extent: bool = False
    gate: bool = False
    stats: bool = False
    page: int = 0

    def __str__(self) -> str:
        flags = [n for n in ("single", "extent", "gate", "stats") if getattr(self, n)]
        flags += [f"pages of {self.page}"] if self.page else []
        return " ".join(
            [
                f"{self.heads}/{self.kv_heads}",
                f"d{self.size}",
                TYPES[self.dtype],
                f"Q{self.rows}",
                f"groups {self.groups}",
                *flags,
            ]
        )


def variants() -> Iterator[Variant]:
    """Every shipped variant of a cache in one piece: head sizes, dtypes, GQA ratios, query blocks,
    modes and flags."""
    for single in (False, True):
        for size in arguments.HEAD_SIZES:
            for dtype in arguments.DTYPES:
                yield Variant(size=size, dtype=dtype, single=single)
        for heads, kv_heads in ((8, 8), (8, 4), (16, 4), (16, 2), (64, 8), (12, 1), (16, 1)):
            yield Variant(heads=heads, kv_heads=kv_heads, single=single)
        for rows in (2, 4, decode.MAX_ROWS):
            yield Variant(rows=rows, single=single)
        for groups in (3, 4):
            yield Variant(groups=groups, single=single)
        for extent in (False, True):
            for gate in (False, True):
                for stats in (False, True):
                    if extent or gate or stats:
                        yield Variant(extent=extent, gate=gate, stats=stats, single=single)


def paged_variants() -> Iterator[Variant]:
    """Those over pages, as an engine takes them: 16 keys each, with the telemetry."""
    for single in (False, True):
        for gate in (False, True):
            yield Variant(gate=gate, stats=True, single=single, page=16)
    for size, dtype in ((80, torch.bfloat16), (256, torch.bfloat16), (128, torch.float32)):
        yield Variant(size=size, dtype=dtype, stats=True, page=16)
    yield Variant(rows=decode.MAX_ROWS, stats=True, page=16)
    yield Variant(groups=3, stats=True, page=16)
    yield Variant(stats=True, page=64)
