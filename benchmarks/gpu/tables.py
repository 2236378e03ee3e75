"""Tables and a figure of what was measured on GPUs; every row names the commit it is of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.gpu.case import ROOT
from benchmarks.gpu.foreseen import foreseen, seconds_on
from benchmarks.gpu.store import FILE, gathered, newest, read, where
from benchmarks.gpu.targets import PINNED, copy_of, fastest
from benchmarks.gpu.targets import table as targets
from benchmarks.timing import spread, table

PICTURES = ROOT / "docs" / "pictures"
# Counters of Nsight Compute, and what they are called in the predictions.
FORESEEN = {
    "smsp__inst_executed.sum": "instructions",
    "dram__bytes_read.sum": "kv_bytes",
    "launch__registers_per_thread": "registers",
    "launch__grid_size": "programs",
}
NONE = "Nothing yet: no GPU has been at hand since this was written. What it is meant to reach:"


def micro(value: dict) -> str:
    return f"{value['median'] * 1e6:.1f}"


def exactness(lines: Sequence[dict]) -> str:
    held = [line for line in lines if line["status"] == "done"]
    worst = max(held, key=lambda one: one["result"]["error"] / one["result"]["allowed"],
                default=None)  # fmt: skip
    told = f"{len(held)} of {len(lines)} cases are exact ({commits(lines)})."
    if worst is not None:
        found = worst["result"]
        told += (
            f" Nearest to its bound is `{worst['id']}`: off by {found['error']:.1e} of "
            f"{found['allowed']:.1e}."
        )
    return told


def doctor(lines: Sequence[dict]) -> str:
    rows = []
    for line in lines:
        for check in line["result"]["checks"]:
            why = "" if check["status"] == "holds" else check["why"]
            rows.append([check["name"], check["status"], why, line["commit"]])
    return table(["check", "", "why", "commit"], rows)


def kernel(lines: Sequence[dict], copy: float | None) -> str:
    """Times of the kernel beside its baselines."""
    head = ["shape", "KV, MB", "dynamic, µs", "static, µs", "no flags, µs", "predicted, µs",
            "fastest pinned SDPA", "dynamic / it", "SDPA, µs", "with bias, µs", "host, µs",
            "of copy", "commit"]  # fmt: skip
    rows = []
    for line in lines:
        found, own = line["result"], line["result"]["contenders"]
        if "ours, static gate" not in own:
            continue
        name, best = fastest(own)
        foreseen = seconds_on(line["device"], line["id"].removeprefix("kernel/"))
        ours = own["ours"]
        rows.append([
            line["id"].removeprefix("kernel/"), f"{found['kv_bytes'] / 1e6:.0f}",
            *(_time(own, one) for one in ("ours", "ours, static gate", "ours, flags off")),
            "" if foreseen is None else f"{foreseen * 1e6:.1f}",
            "" if best is None else f"{name.removeprefix('sdpa ')}: {micro(best['seconds'])}",
            "" if best is None
            else f"{ours['seconds']['median'] / best['seconds']['median']:.2f}",
            _time(own, "sdpa"), _time(own, "sdpa + bias"), micro(ours["host_seconds"]),
            "" if copy is None else f"{ours['bytes_per_second'] / copy:.0%}", line["commit"],
        ])  # fmt: skip
    return table(head, rows)


def others(lines: Sequence[dict]) -> str:
    """What users would write, over our kernel."""
    rows = []
    for line in lines:
        own = line["result"]["contenders"]
        for name, found in own.items():
            shown = name in ("flex attention", "ours in torch", "two-pass torch", "per-head loop")
            if shown and "ratio" in found:
                shape = line["id"].removeprefix("kernel/")
                rows.append([shape, name, micro(found["seconds"]), spread(found["ratio"]),
                             line["commit"]])  # fmt: skip
    return table(["shape", "contender", "µs", "over our kernel", "commit"], rows)


def _time(own: dict, name: str) -> str:
    return micro(own[name]["seconds"]) if "seconds" in own.get(name, {}) else ""


def ratios(of: str, absolute: str) -> Callable[[Sequence[dict]], str]:
    """A table of ratios to the unpatched arm."""

    def made(lines: Sequence[dict]) -> str:
        rows = []
        for line in lines:
            found = line["result"]
            compiled = {True: "yes", False: "no"}.get(found.get("compiled"), "")
            for arm, value in found[of].items():
                base = 1e3 * found[absolute]["unpatched"]["median"]
                rows.append([line["id"], found["keys"], arm, compiled, f"{base:.2f}",
                             spread(value), line["commit"]])  # fmt: skip
        head = ["case", "keys", "gate", "compiled", "unpatched, ms", "patched / unpatched"]
        return table([*head, "commit"], rows)

    return made


def memory(lines: Sequence[dict]) -> str:
    rows = []
    for line in lines:
        peaks = line["result"]["bytes"]
        for arm, peak in peaks.items():
            if arm != "unpatched":
                extra = (peak - peaks["unpatched"]) / 1e6
                rows.append([line["id"], line["result"]["keys"], arm,
                             f"{peaks['unpatched'] / 1e9:.2f}", f"{extra:+.1f}",
                             line["commit"]])  # fmt: skip
    return table(["case", "keys", "gate", "unpatched, GB", "patched, MB more", "commit"], rows)


def recording(lines: Sequence[dict]) -> str:
    rows = [
        [line["id"], name, spread(value), line["commit"]]
        for line in lines
        for name, value in line["result"]["ratio_per_token"].items()
    ]
    return table(["case", "recorded", "time per token / not recorded", "commit"], rows)


def profile(lines: Sequence[dict]) -> str:
    rows = []
    for line in lines:
        found = line["result"]
        first = found["kernels"][0] if found["kernels"] else ["", 0.0, 0]
        rows.append([line["id"], f"{found['device_microseconds']:.0f}",
                     f"{found['host_microseconds']:.0f}", f"{found['launches']:.0f}",
                     f"`{first[0][:40]}` {first[1]:.0f}", line["commit"]])  # fmt: skip
    head = ["case", "device, µs a step", "host, µs", "launches", "longest kernel, µs", "commit"]
    return table(head, rows)


def counters(lines: Sequence[dict]) -> str:
    """Counters of the kernel beside what was predicted of it."""
    rows = []
    for line in lines:
        told = foreseen(line["id"].removeprefix("counters/")) or {}
        for name, metrics in line["result"]["counters"].items():
            for metric, value in metrics.items():
                known = told.get(FORESEEN.get(metric, ""), "") if "decode" in name else ""
                rows.append([line["id"], name, metric, value, known, line["commit"]])
    return table(["case", "kernel", "counter", "value", "predicted", "commit"], rows)


def tests(lines: Sequence[dict]) -> str:
    rows = [[line["id"], line["result"]["said"], line["commit"]] for line in lines]
    return table(["tests", "pytest says", "commit"], rows)


def commits(lines: Sequence[dict]) -> str:
    return "commit " + ", ".join(dict.fromkeys(line["commit"] for line in lines))


MADE = {
    "doctor": ("Check-up", doctor),
    "eager": ("Time per token", ratios("ratio_per_token", "seconds_per_token")),
    "static": ("Time per token, static cache", ratios("ratio_per_token", "seconds_per_token")),
    "prefill": ("Prompt", ratios("ratio_first_token", "seconds_to_first_token")),
    "memory": ("Peak memory", memory),
    "recording": ("Recording", recording),
    "profile": ("One decode step", profile),
    "counters": ("Counters", counters),
    "tests": ("Tests", tests),
}


def picture(name: str) -> str:
    """The file of a device's figure."""
    return f"gpu-{'-'.join(name.lower().split())}.png"


def device(lines: Sequence[dict], pictures: Path) -> Iterator[str]:
    """Everything of one device and set of versions."""
    first = lines[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    yield f"**{first['device']}**, {versions}."
    groups: dict[str, list[dict]] = {}
    for line in lines:
        groups.setdefault(line["group"], []).append(line)
    done = {name: [one for one in own if one["status"] == "done"] for name, own in groups.items()}
    copy = copy_of(lines)
    yield targets(done, copy)
    if "exactness" in groups:
        yield exactness(groups["exactness"])
    if copy is not None:
        yield f"Copy bandwidth: {copy / 1e12:.2f} TB/s ({commits(done['bandwidth'])})."
    if done.get("kernel"):
        yield f"Kernel, one decode step of one layer; {', '.join(PINNED)} pinned:"
        yield kernel(done["kernel"], copy)
        yield others(done["kernel"])
        drawn = pictures / picture(first["device"])
        if drawn.exists():
            yield f"![share of the copy bandwidth over cache size]({pictures.name}/{drawn.name})"
    for name, (title, make) in MADE.items():
        if done.get(name):
            yield f"{title}:"
            yield make(done[name])
    failed = [line for line in lines if line["status"] != "done"]
    if failed:
        yield "Failed, hung, or wrong:"
        yield table(["case", "", "said", "commit"], [
            [one["id"], one["status"], one["error"].replace("|", "\\|"), one["commit"]]
            for one in failed
        ])  # fmt: skip


def text(folder: Path, pictures: Path = PICTURES) -> str:
    """All tables of the lines in a folder, device by device.

    Args:
        pictures: where figures are; shown, if they have been drawn.

    Raises:
        ValueError: as of `store.gathered`.
    """
    if not (folder / FILE).exists() or not read(folder / FILE):
        return f"{NONE}\n\n{targets({}, None)}"
    devices: dict[tuple, list[dict]] = {}
    for line in newest(gathered([folder])):
        devices.setdefault(where(line), []).append(line)
    return "\n\n".join(part for lines in devices.values() for part in device(lines, pictures))


def figure(lines: Sequence[dict], folder: Path) -> list[Path]:
    """The kernel's share of the copy bandwidth over the size of the cache, one file a device."""
    from matplotlib.figure import Figure

    written = []
    for name in dict.fromkeys(line["device"] for line in lines):
        own = [line for line in lines if line["device"] == name]
        copy = copy_of(own)
        kernels = [one for one in own if one["group"] == "kernel" and one["status"] == "done"
                   and "ours, static gate" in one["result"]["contenders"]]  # fmt: skip
        if copy is None or not kernels:
            continue
        drawn = Figure(figsize=(7, 4), layout="constrained")
        axis = drawn.subplots()
        sizes = [one["result"]["kv_bytes"] for one in kernels]
        for label, marker in (("ours", "o"), ("fastest pinned SDPA", "x"), ("sdpa", "+")):
            shares = []
            for one in kernels:
                contenders = one["result"]["contenders"]
                found = fastest(contenders)[1] if "fastest" in label else contenders.get(label)
                known = found is not None and "bytes_per_second" in found
                shares.append(found["bytes_per_second"] / copy if known else float("nan"))
            axis.plot(sizes, shares, marker, color="black", label=label, fillstyle="none")
        axis.axhline(0.8, color="0.6", linewidth=1)
        axis.set_xscale("log")
        axis.set_xlabel("keys and values, bytes")
        axis.set_ylabel("share of the copy bandwidth")
        axis.set_title(name)
        axis.legend()
        path = folder / picture(name)
        drawn.savefig(path, dpi=120)
        written.append(path)
    return written
