"""What the kernel and the patch are meant to reach on a GPU, held against what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks import timing

PINNED = (
    "sdpa flash", "sdpa flash, packed rows", "sdpa cudnn", "sdpa cudnn, packed rows",
    "sdpa efficient, packed rows",
)  # fmt: skip
LARGE = 134_000_000  # bytes of keys and values from which bandwidth is the measure
SHORT = 8192  # keys up to which launch and latency are


@dataclass(frozen=True)
class Target:
    """One aim.

    Args:
        told: in words.
        figures: (case, figure) of all lines that it is about, and the copy bandwidth.
        limit: what the worst figure may be.
        least: whether it may be no less, rather than no more.
    """

    told: str
    figures: Callable[[Mapping[str, Sequence[dict]], float | None], list[tuple[str, float]]]
    limit: float
    least: bool = False
    unit: str = ""


def fastest(contenders: Mapping[str, dict]) -> tuple[str, dict | None]:
    """Name and times of the fastest pinned SDPA; ("", None) where none ran."""
    ran = {name: contenders[name] for name in PINNED if "seconds" in contenders.get(name, {})}
    if not ran:
        return "", None
    name = min(ran, key=lambda one: ran[one]["seconds"]["median"])
    return name, ran[name]


def copy_of(lines: Sequence[dict]) -> float | None:
    """Copy bandwidth measured on the same device, bytes per second."""
    found = [line for line in lines if line["group"] == "bandwidth" and line["status"] == "done"]
    return found[-1]["result"]["bytes_per_second"]["copy"]["median"] if found else None


def _kernels(done: Mapping[str, Sequence[dict]]) -> list[dict]:
    return [one for one in done.get("kernel", ()) if "static_over_off" in one["result"]]


def _share(done, copy):
    return [
        (one["id"], one["result"]["contenders"]["ours"]["bytes_per_second"] / copy)
        for one in _kernels(done)
        if copy and one["result"]["kv_bytes"] >= LARGE
    ]


def _short(done, copy):
    found = []
    for one in _kernels(done):
        batch, keys = (int(part[1:]) for part in one["id"].split()[1:3])
        if batch == 1 and keys <= SHORT:
            found.append((one["id"], _median(one, "ours") * 1e6))
    return found


def _pinned(done, copy):
    found = [(one, fastest(one["result"]["contenders"])[1]) for one in _kernels(done)]
    return [(one["id"], _median(one, "ours") / best["seconds"]["median"])
            for one, best in found if best]  # fmt: skip


def _static(done, copy):
    return [(one["id"], one["result"]["static_over_off"]["median"]) for one in _kernels(done)]


def _median(line: dict, name: str) -> float:
    return line["result"]["contenders"][name]["seconds"]["median"]


def _tokens(group: str):
    def figures(done, copy):
        return [
            (f"{one['id']}, {arm} gate", value["median"])
            for one in done.get(group, ())
            if group == "eager" or one["result"]["compiled"]
            for arm, value in one["result"]["ratio_per_token"].items()
        ]

    return figures


TARGETS = (
    Target("share of the copy bandwidth at 134 MB of keys and values and more: 0.80 at least",
           _share, 0.80, least=True),
    Target("batch 1 and up to 8192 keys: 15 µs at most, better 10", _short, 15, unit=" µs"),
    Target("over the fastest pinned SDPA: 1.05 at most", _pinned, 1.05),
    Target("static gate over the same kernel without flags: 1.01 at most", _static, 1.01),
    Target("time per token, patched over unpatched, not compiled: 1.00 at most",
           _tokens("eager"), 1.00),
    Target("time per token, patched over unpatched, compiled: 0.95 at most",
           _tokens("static"), 0.95),
)  # fmt: skip


def table(done: Mapping[str, Sequence[dict]], copy: float | None) -> str:
    """Every target, its worst figure, and whether it is met.

    Args:
        done: lines with a result, by group; copy: bytes per second.
    """
    rows = []
    for target in TARGETS:
        found = target.figures(done, copy)
        if not found:
            rows.append([target.told, "not measured", "", ""])
            continue
        case, figure = (min if target.least else max)(found, key=lambda one: one[1])
        good = [figure >= target.limit if target.least else figure <= target.limit
                for _, figure in found]  # fmt: skip
        met = f"{sum(good)} of {len(good)}"
        rows.append([target.told, met, f"{figure:.3g}{target.unit}", case])
    return timing.table(["target", "met", "worst", "at"], rows)
