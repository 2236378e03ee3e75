"""Draw the house: `python docs/house.py`, which module imports which, from the imports.

A box is a package or a module of vrga/; what it imports stands below it, but for what follows: a
room that is imported by another that is imported. Imports inside functions
and under TYPE_CHECKING do not count: those are made when they are needed, and these never.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vrga"
HERE = Path(__file__).parent / "pictures"
# The two wings that have a boundary: who knows transformers, and who knows Triton.
COLORS = {"hf": "#F0C9A4", "kernels": "#BBD6EA"}
APART = ("demo",)  # a package whose modules stand on several floors
WIDTH = 8  # boxes in a line


def room_of(name: str) -> str | None:
    """The room of a module by its full name: a package below vrga, or a module of vrga itself."""
    parts = name.split(".")
    if parts[0] != "vrga" or len(parts) < 2:
        return None
    return ".".join(parts[1:3] if parts[1] in APART else parts[1:2])


def imported(path: Path) -> Iterator[str]:
    """Full names of what a file imports when it is imported itself."""
    waiting = [ast.parse(path.read_text("utf-8"))]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif not isinstance(node, (ast.FunctionDef, ast.Lambda)) and not _for_types(node):
                waiting.append(node)


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def rooms(package: Path = PACKAGE) -> dict[str, set[str]]:
    """room -> rooms that it imports."""
    files = {}
    # vrga/kernels is a link, which rglob does not follow.
    for path in sorted({*package.rglob("*.py"), *(package / "kernels").glob("*.py")}):
        parts = path.relative_to(package.parent).with_suffix("").parts
        files[path] = room_of(".".join(part for part in parts if part != "__init__"))
    files = {path: room for path, room in files.items() if room is not None}
    found: dict[str, set[str]] = {room: set() for room in files.values()}
    for path, room in files.items():
        targets = {room_of(name) for name in imported(path)} & found.keys()
        found[room] |= targets - {room, *APART}
    return {room: own for room, own in found.items() if room not in ("__main__", *APART)}


def floors(house: Mapping[str, set[str]]) -> dict[str, int]:
    """room -> its floor: one above the highest that it imports, and 0 where it imports none.

    Raises:
        graphlib.CycleError: rooms that import each other in a circle.
    """
    level: dict[str, int] = {}
    for room in graphlib.TopologicalSorter(house).static_order():
        level[room] = max([level[one] + 1 for one in house[room]], default=0)
    return level


def direct(house: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The same without what follows: an import of something that another import brings anyway."""
    brought: dict[str, set[str]] = {}
    for room in graphlib.TopologicalSorter(house).static_order():
        brought[room] = house[room].union(*(brought[one] for one in house[room]))
    return {
        room: {one for one in below if not any(one in brought[other] for other in below)}
        for room, below in house.items()
    }


def house_figure(house: Mapping[str, set[str]]) -> Figure:
    """Boxes on floors, a line from each room down to what it imports; what follows is left out."""
    level = floors(house)
    lines: list[list[str]] = []  # from the ground: a full floor goes on in a second line
    for floor in range(max(level.values()) + 1):
        inside = sorted(room for room, own in level.items() if own == floor)
        lines += [inside[i : i + WIDTH] for i in range(0, len(inside), WIDTH)]
    place = {
        room: ((i + 0.5) * WIDTH / len(line), y)
        for y, line in enumerate(lines)
        for i, room in enumerate(line)
    }
    figure = Figure(figsize=(10, 0.6 * len(lines) + 0.2), layout="constrained")
    axis = figure.subplots()
    axis.set(xlim=(0, WIDTH), ylim=(-0.5, len(lines) - 0.5))
    axis.set_axis_off()
    for room, below in direct(house).items():
        for other in below:
            axis.plot(*zip(place[room], place[other], strict=True), color="0.7", linewidth=0.8)
    for room, (x, y) in place.items():
        package = (PACKAGE / room).is_dir()
        box = {"boxstyle": "round,pad=0.35", "facecolor": COLORS.get(room, "#E4E4E4" if package
               else "white"), "edgecolor": "black", "linewidth": 0.8}  # fmt: skip
        axis.text(x, y, f"{room}/" if package else room, ha="center", va="center", bbox=box,
                  fontsize=8, weight="bold" if package else "normal")  # fmt: skip
    return figure


def main(folder: Path = HERE) -> None:
    """Write the picture into a folder."""
    folder.mkdir(exist_ok=True)
    house_figure(rooms()).savefig(folder / "house.png", dpi=110)


if __name__ == "__main__":
    main()
