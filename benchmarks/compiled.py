"""What the compiler makes of every shipped variant of the kernels, without a GPU.

    python -m benchmarks.compiled [--json FILE] [--arch 80|90] [--no-loops]

Prints registers, spills, shared memory, blocks per multiprocessor, the width of the K/V loads, and
the instructions that a program spends on a key, for sm_80 and sm_90. The compiler is the one inside
the installed triton. What follows from it for a GPU: `benchmarks.predicted`.
"""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from benchmarks import sass
from benchmarks.timing import write
from benchmarks.variants import TYPES, Variant, paged_variants, variants
from vrga.kernels import decode, launch, probe

ARCHITECTURES = (80, 90)
POINTERS = {
    "p_flags": "*i32",
    "p_table": "*i32",
    "p_images": "*i32",
    "p_extent": "*i32",
    "p_gate": "*u8",
    "p_stats": "*fp32",
    "p_part": "*fp32",
    "p_acc": "*fp32",
    "p_last": "*i32",
    "p_hidden": "*u8",
}
INTEGERS = {"S", "F", "SPLITS", "KEYS", "OFFSET", "ROWS"}
# Strides that are multiples of 16 elements in any cache; the others may be anything.
ALIGNED = {"s_qb", "s_qh", "s_qq", "s_kb", "s_kh", "s_kn", "s_vb", "s_vh", "s_vn"}
# (shared memory, registers) of a multiprocessor.
LIMITS = {80: (164 * 1024, 65536), 90: (228 * 1024, 65536)}
RESERVED = 1024  # bytes of shared memory that each block costs beyond its own


@dataclass(frozen=True)
class Report:
    """What the compiler says of one variant on one architecture.

    Args:
        registers: per thread.
        spills: bytes of local memory per thread.
        shared: bytes of shared memory per block.
        blocks: blocks that fit on a multiprocessor at once.
        loads: bytes of each load -> how many of them the code holds. Of the decode kernel, its
            asynchronous copies to shared memory: K and V come by these; those of flags and page
            numbers are 4 bytes wide. Of the others, all loads from global memory.
        loop: of the decode kernel, its loop over keys in machine code; None if not looked at.
    """

    kernel: str
    variant: str
    arch: int
    registers: int
    spills: int
    shared: int
    blocks: int
    loads: dict[int, int]
    loop: sass.Loop | None


def compile_decode(variant: Variant, arch: int) -> CompiledKernel:
    """Compile the main kernel of a variant for sm_`arch`."""
    constants = _constants(variant) | dict(
        DTYPE=launch.DTYPES[variant.dtype], PRECISION="ieee", SINGLE=variant.single
    )
    options = decode.launch_options(constants["BD"], variant.dtype, paged=variant.page > 0)
    constants["BN"] = options.pop("BN")
    return _compile(decode.decode_kernel, variant, constants, arch, options)


def compile_merge(variant: Variant, arch: int) -> CompiledKernel:
    """Compile the kernel that merges a variant's splits."""
    constants = _constants(variant) | dict(BS=decode.MERGE_SPLITS)
    return _compile(decode.merge_kernel, variant, constants, arch, {"num_warps": 4})


def compile_probe(variant: Variant, arch: int) -> CompiledKernel:
    """Compile the kernel of the prefill's probe rows."""
    constants = probe.probe_constants(
        variant.heads // variant.kv_heads, variant.size, variant.dtype
    ) | dict(DTYPE=launch.DTYPES[variant.dtype], PRECISION="ieee")
    return _compile(probe.probe_kernel, variant, constants, arch, {"num_warps": 4})


def _constants(variant: Variant) -> dict:
    return decode.kernel_constants(
        variant.heads, variant.kv_heads, variant.rows, variant.size, variant.groups,
        extent=variant.extent, gate=variant.gate, stats=variant.stats, page=variant.page,
    )  # fmt: skip


def _compile(kernel, variant: Variant, constants: dict, arch: int, options: dict):
    types, aligned = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name] = "constexpr"
        elif name.startswith("p_"):
            types[name] = POINTERS.get(name, f"*{TYPES[variant.dtype]}")
            if kernel is probe.probe_kernel and name == "p_out":
                types[name] = "*fp32"
            aligned[(index,)] = [["tt.divisibility", 16]]
        elif name.startswith("s_") or name in INTEGERS:
            types[name] = "i32"
            if name in ALIGNED:
                aligned[(index,)] = [["tt.divisibility", 16]]
        else:
            types[name] = "fp32"
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, types, constexprs=values, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of local memory, of each thread."""
    told = sass.cuobjdump(cubin, "-res-usage")
    registers, stack, local = (
        int(re.search(rf"{key}:(\d+)", told)[1]) for key in ("REG", "STACK", "LOCAL")
    )
    return registers, stack + local


def resident(registers: int, shared: int, warps: int, arch: int) -> int:
    """Programs that fit on a multiprocessor at once."""
    memory, registry = LIMITS[arch]
    # Registers are handed out to warps in units of 256.
    per_warp = -(-registers * 32 // 256) * 256
    return min(memory // (shared + RESERVED), registry // (per_warp * warps), 32)


def report(
    compiled: CompiledKernel, name: str, variant: Variant, arch: int, loops: bool = True
) -> Report:
    """Read a compiled kernel's resources from its machine code.

    Args:
        loops: whether to look for its loop over keys, too, which is most of the work.
    """
    registers, spills = usage(compiled.asm["cubin"])
    shared, warps = compiled.metadata.shared, compiled.metadata.num_warps
    copies = re.findall(
        r"cp\.async\.c[ag]\.shared\.global \[[^\]]*\], \[[^\]]*\], (\w+)", compiled.asm["ptx"]
    )
    widths = [int(width, 0) for width in copies]
    if not widths:  # as 32-bit words in a vector; or smaller ones
        plain = re.findall(
            r"ld\.global(?:\.\w+::\w+)*\.(?:v(\d)\.)?[bfsu](\d+)", compiled.asm["ptx"]
        )
        widths = [int(count or 1) * int(bits) // 8 for count, bits in plain]
    loop = None
    if loops and name == "decode":
        key_bytes = 2 * triton.next_power_of_2(variant.size) * variant.dtype.itemsize
        loop = sass.key_loop(sass.disassembled(compiled.asm["cubin"]), key_bytes, warps)
    return Report(
        name, str(variant), arch, registers, spills, shared,
        resident(registers, shared, warps, arch), dict(sorted(Counter(widths).items())), loop,
    )  # fmt: skip


def main() -> None:
    """Compile everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--arch", type=int, choices=ARCHITECTURES, help="this one alone")
    parser.add_argument("--no-loops", action="store_true", help="do not count instructions")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("unset TRITON_INTERPRET: the interpreter compiles nothing")
    table = Table(title=f"triton {triton.__version__}")
    for column in Report.__dataclass_fields__:
        table.add_column("per key" if column == "loop" else column)
    reports = []
    for arch in [arguments.arch] if arguments.arch else ARCHITECTURES:
        for variant in (*variants(), *paged_variants()):
            built = [("decode", compile_decode(variant, arch))]
            if not variant.single:
                built.append(("merge", compile_merge(variant, arch)))
            flags = variant.extent, variant.gate, variant.stats, variant.single, variant.page
            plain = not any(flags)
            if plain and variant.rows == 1 and variant.groups == 2:  # the rest it does not know
                built.append(("probe", compile_probe(variant, arch)))
            reports += [
                report(kernel, name, variant, arch, not arguments.no_loops)
                for name, kernel in built
            ]
    for row in reports:
        cells = asdict(row) | {"loop": row.loop and f"{row.loop.per_key:.1f}"}
        table.add_row(*(str(value) for value in cells.values()))
    Console(width=120).print(table)
    write(arguments.json, {"kernels": [asdict(row) for row in reports]})


if __name__ == "__main__":
    main()
