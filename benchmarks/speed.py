"""Tables of what was timed and counted, from the JSON files in benchmarks/results/ alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.timing import RESULTS

VARIANTS = ("Q1 groups 2", "Q1 groups 2 single", "Q8 groups 2", "Q1 groups 3")


def results(suite: str) -> Iterator[tuple[dict, dict]]:
    """(environment, extra_info) of every benchmark of a suite, device by device."""
    for path in sorted(RESULTS.glob(f"{suite}-*.json")):
        run = json.loads(path.read_text())
        for benchmark in run["benchmarks"]:
            yield run["environment"], benchmark["extra_info"]


def where(environment: dict) -> str:
    versions = ", ".join(f"{k} {environment[k]}" for k in ("torch", "triton", "transformers"))
    return f"{environment['device']}, {environment['cores']} cores, {versions}"


def spread(value: dict) -> str:
    """A ratio with its quartiles."""
    return f"{value['median']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def both(value: dict) -> str:
    """A ratio with its quartiles, and that of the fastest."""
    return f"{spread(value)}; {value['fastest']:.3f}"


def generation() -> str:
    """Patched over unpatched, per case."""
    cases: dict[tuple[str, str], dict] = {}
    for environment, found in results("generate"):
        if "case" in found and not found.get("proof"):
            cases.setdefault((where(environment), found["case"]), {}).update(found)
    lines, last = [], None
    for (device, name), found in cases.items():
        if "ratio_per_token" not in found:
            continue  # a run of the memory benchmark alone
        if device != last:
            last = device
            lines += [
                f"{device}:",
                "",
                "| case | time per token | time to first token | peak memory | pairs of tokens, "
                "of prefills |",
                "| --- | --- | --- | --- | --- |",
            ]
        memory = found.get("ratio")
        lines.append(
            f"| {name}, {found['keys']} keys | {spread(found['ratio_per_token'])} | "
            f"{spread(found['ratio_first_token'])} | "
            f"{format(memory['median'], '.4f') if memory else 'not run'} | "
            f"{found['ratio_per_token']['n']}, {found['ratio_first_token']['n']} |"
        )
    return "\n".join(lines)


def contenders() -> str:
    """Time of every contender over that of plain attention as torch chooses it, on a CPU."""
    lines, device = [], None
    for environment, found in results("kernel"):
        if "kv_bytes" not in found or found["interpreted"]:
            continue
        if where(environment) != device:
            device = where(environment)
            columns = ["case", "contender", "gates", "time / sdpa"]
            lines += [f"{device}:", "", row(columns), row(["---"] * len(columns))]
        base = found["contenders"]["sdpa"]["seconds"]["median"]
        for name, measured in found["contenders"].items():
            if "unsupported" not in measured and name != "sdpa":
                time = measured["seconds"]["median"]
                gates = "yes" if measured["gates"] else "no"
                lines.append(row([found["case"], name, gates, f"{time / base:.2f}"]))
    return "\n".join(lines)


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def engine() -> str:
    """What takes turns in vLLM, by model, over the unsteered engine."""
    names = {
        "static": "steered, sparing (static gate)",
        "paper": "steered, paper (static gate)",
        "dynamic": "steered, published (dynamic gate)",
        "transformers base": "transformers, not steered",
        "transformers paper": "transformers, paper",
    }
    lines = ["| model | | over vLLM unsteered | rounds |", "| --- | --- | --- | --- |"]
    for model, run in json.loads((RESULTS / "engine.json").read_text()).items():
        for name, told in run["speed"].items():
            rounds = run["settings"]["rounds"]
            lines.append(f"| {model} | {names[name]} | {spread(told)} | {rounds} |")
    return "\n".join(lines)


def host() -> str:
    """Host work of a launch."""
    run = json.loads((RESULTS / "host.json").read_text())
    return (
        f"A kept launch takes {run['ratio']:.2f} times the host work of one that Triton binds anew "
        f"({where(run['environment'])})."
    )


def compiled() -> str:
    """Registers and so on of the variants at the 7B shape."""
    run = json.loads((RESULTS / "compiled.json").read_text())
    lines = [
        f"triton {run['environment']['triton']}:",
        "",
        "| 28/4 heads, d 128, bf16 | arch | registers | spills | shared | blocks per SM | "
        "K/V loads | instructions a key |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in run["kernels"]:
        head, _, variant = row["variant"].partition(" bf16 ")
        if row["kernel"] == "decode" and head == "28/4 d128" and variant in VARIANTS:
            width = max(int(w) for w in row["loads"])
            loop = row["loop"]
            each = loop["instructions"] * loop["warps"] / loop["keys"]
            lines.append(
                f"| {variant} | sm_{row['arch']} | {row['registers']} | {row['spills']} | "
                f"{row['shared']} | {row['blocks']} | {width} bytes | {each:.1f} |"
            )
    return "\n".join(lines)


def trace() -> str:
    """Time per token, recorded over not recorded."""
    run = json.loads((RESULTS / "trace.json").read_text())
    lines = [
        f"{where(run['environment'])}; {run['case']}, {run['keys']} keys:",
        "",
        "| recorded | time per token over that of the same run not recorded |",
        "| --- | --- |",
    ]
    return "\n".join(lines + [row([k, spread(v)]) for k, v in run["ratio_per_token"].items()])


def steps() -> str:
    """Time and operators of a step, over those of the unpatched model."""
    run = json.loads((RESULTS / "steps.json").read_text())
    lines = [
        f"{where(run['environment'])}; {run['case']}, up to {run['keys']} keys:",
        "",
        "| | time per token; of the fastest, pairs | of a prompt | operators of a token | bytes in "
        "and out of them |",
        "| --- | --- | --- | --- | --- |",
    ]
    base = run["operators_per_token"]["unpatched"]
    prompts = run["ratio_per_prompt"]  # of those whose prompt is read in a way of its own
    for name, one in run["ratio_per_token"].items():
        counted = run["operators_per_token"][name]
        first = f"{both(prompts[name])}, {prompts[name]['n']}" if name in prompts else "not timed"
        lines.append(
            row([name, f"{both(one)}, {one['n']}", first,
                 f"{counted['operators'] - base['operators']:+}",
                 f"{counted['bytes'] / base['bytes'] - 1:+.2%}"])
        )  # fmt: skip
    return "\n".join(lines)


def instructions() -> str:
    """Instructions of a token and of a prompt, over those of the unpatched model."""
    if not (RESULTS / "instructions.json").exists():
        return "Nothing yet: not counted since this was written."
    run = json.loads((RESULTS / "instructions.json").read_text())
    whole, (low, high) = str(run["layers"]), run["depths"]
    tokens, prompts = run["per_token"], run["per_prompt"]
    lines = [
        f"{where(run['environment'])}, {run['kernels']} kernels; {run['case']}, {run['tokens']} "
        f"tokens; {run['layers']} layers, from {low} and {high}:",
        "",
        "| | of a token | more than unpatched | in each layer | of a prompt |",
        "| --- | --- | --- | --- | --- |",
    ]
    base = tokens["unpatched"]
    for name, one in tokens.items():
        if one is base:
            continue
        more = {depth: one[depth] - base[depth] for depth in one}
        layer = (more[str(high)] - more[str(low)]) / (high - low)
        first = ""
        if name in prompts:
            first = f"{prompts[name][whole] / prompts['unpatched'][whole]:.4f}"
        lines.append(
            row([name, f"{one[whole] / base[whole]:.4f}", f"{more[whole] / 1e6:+.2f} M",
                 f"{layer / 1e6:+.3f} M", first])
        )  # fmt: skip
    return "\n".join(lines)


def attention() -> str:
    """One layer's attention at a step over torch's own, on a CPU."""
    run = json.loads((RESULTS / "attention.json").read_text())
    ways = list(next(iter(run["ratios"].values())))
    lines = [
        f"{where(run['environment'])}:",
        "",
        row(["shape", *ways]),
        row(["---"] * (len(ways) + 1)),
    ]
    for shape, found in run["ratios"].items():
        lines.append(row([shape, *(both(found[way]) for way in ways)]))
    return "\n".join(lines)


def accounting() -> str:
    """Time spent on telling what a pass is, and on noting it."""
    run = json.loads((RESULTS / "accounting.json").read_text())
    share, time = run["share"], run["microseconds"]["median"]
    return (
        f"Accounting takes at most {share['median']:.2%} of a token's time, or {time:.0f} µs "
        f"({run['device']}, {run['cores']} cores, torch {run['torch']}, transformers "
        f"{run['transformers']}; the {run['shape']} text shape, {run['steered']} steered tokens)."
    )


def growth() -> str:
    """What a prompt's length does to both arms: times as ratios, memory in bytes."""
    lines = []
    for path in sorted(RESULTS.glob("growth*.json")):
        run = json.loads(path.read_text())
        lines += [
            *([""] if lines else []),
            f"{where(run['environment'])}; the {run['shape']} text shape, batch {run['batch']}:",
            "",
            "| keys | prefill, patched / unpatched | token, patched / unpatched | prefill's peak "
            "above the weights, unpatched | patched, more by | pairs of prefills, of tokens |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for found in run["lengths"]:
            plain, patched = (found["prefill"][arm]["bytes"] for arm in ("unpatched", "patched"))
            first, later = found["ratio_first_token"], found["ratio_per_token"]
            ratios = " | ".join(  # one pair tells nothing
                spread(one) if one["n"] > 1 else "not measured" for one in (first, later)
            )
            lines.append(
                f"| {found['keys']} | {ratios} | {plain / 1e6:,.1f} MB | "
                f"{(patched - plain) / 1e3:,.1f} kB | {first['n']}, {later['n']} |"
            )
    return "\n".join(lines)


def plot(path: Path) -> None:
    """Ratios of the generation suite, one bar per case and measure."""
    from matplotlib.figure import Figure

    cases = [
        found
        for _, found in results("generate")
        if "ratio_per_token" in found and not found.get("proof")
    ]
    figure = Figure(figsize=(7, 1 + 0.6 * len(cases)), layout="constrained")
    axis = figure.subplots()
    hatches = {"ratio_per_token": "", "ratio_first_token": "//"}
    for offset, (name, hatch) in enumerate(hatches.items()):
        values = [found[name] for found in cases]
        places = [i + 0.36 * offset for i in range(len(cases))]
        middles = [v["median"] for v in values]
        errors = [
            [m - v["low"] for m, v in zip(middles, values, strict=True)],
            [v["high"] - m for m, v in zip(middles, values, strict=True)],
        ]
        label = name.removeprefix("ratio_").replace("_", " ")
        axis.barh(places, middles, 0.32, xerr=errors, label=label, hatch=hatch, color="0.75",
                  edgecolor="black")  # fmt: skip
    axis.axvline(1, color="black", linewidth=1)
    axis.set_yticks(range(len(cases)), [found["case"] for found in cases])
    axis.set_xlabel("patched / unpatched, median and quartiles")
    axis.legend(loc="lower right")
    figure.savefig(path, dpi=120)
