"""What a kernel's machine code says of its inner loop: instructions, loads and keys of a round."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(\S+)([^;]*);")
LOADS = re.compile(r"(?:LDGSTS|LDG)\b")
MATRIX = re.compile(r"[HQIDG]*MMA\b")
WIDE = 8  # bytes from which a load is of keys or values; those of flags are narrower


@dataclass(frozen=True)
class Loop:
    """The loop over keys of one program.

    Args:
        instructions: of each warp in a round.
        keys: that a round goes through; bytes: of keys and values that it asks for.
        matrix: instructions of the matrix units among them; exponentials, barriers: likewise.
        warps: of a program.
    """

    instructions: int
    keys: int
    bytes: int
    matrix: int
    exponentials: int
    barriers: int
    warps: int

    @property
    def per_key(self) -> float:
        """Warp instructions of a program for each key."""
        return self.instructions * self.warps / self.keys


def cuobjdump(cubin: bytes, option: str) -> str:
    """What the tool prints of a cubin."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        return subprocess.run([str(TOOLS / "cuobjdump"), option, str(file)], capture_output=True,
                              text=True, check=True).stdout  # fmt: skip


def disassembled(cubin: bytes) -> list[tuple[int, str, str]]:
    """(address, opcode, operands) of every instruction of a cubin.

    Raises:
        ValueError: cuobjdump printed nothing that looks like one.
    """
    text = cuobjdump(cubin, "-sass")
    found = [(int(at, 16), code, rest.strip()) for at, code, rest in LINE.findall(text)]
    if not found:
        raise ValueError(f"cuobjdump -sass printed no instruction: {text[:200]!r}")
    return found


def width(opcode: str) -> int:
    """Bytes that one thread loads by an instruction.

    >>> width("LDGSTS.E.BYPASS.128"), width("LDG.E"), width("LDG.E.U8.CONSTANT")
    (16, 4, 1)
    """
    for part in opcode.split(".")[1:]:
        if part in ("64", "128"):
            return int(part) // 8
        if part in ("U8", "S8"):
            return 1
        if part in ("U16", "S16"):
            return 2
    return 4


def key_loop(code: list[tuple[int, str, str]], key_bytes: int, warps: int) -> Loop:
    """The innermost loop that loads keys and values.

    Args:
        code: as of `disassembled`.
        key_bytes: of one key and its value in a tile, padding included.

    Raises:
        ValueError: no loop loads anything, or a round holds no whole number of keys.
    """
    ends = []
    for at, opcode, operands in code:
        target = re.search(r"0x([0-9a-f]+)", operands)
        if opcode.startswith("BRA") and target and int(target[1], 16) < at:
            ends.append((int(target[1], 16), at))
    loops = []
    for first, last in ends:
        inner = any((a, b) != (first, last) and first <= a and b <= last for a, b in ends)
        body = [opcode for at, opcode, _ in code if first <= at <= last]
        wide = [width(one) for one in body if LOADS.match(one) and width(one) >= WIDE]
        if wide and not inner:
            loops.append((32 * warps * sum(wide), body))
    if not loops:
        raise ValueError("no loop of this kernel loads from global memory")
    size, body = max(loops, key=lambda found: found[0])
    if size % key_bytes:
        raise ValueError(f"a round loads {size} bytes, no multiple of a key's {key_bytes}")
    return Loop(
        instructions=len(body),
        keys=size // key_bytes,
        bytes=size,
        matrix=sum(bool(MATRIX.match(one)) for one in body),
        exponentials=sum(one.startswith("MUFU.EX2") for one in body),
        barriers=sum(one.startswith("BAR.") for one in body),
        warps=warps,
    )
