"""Tables of what was timed and counted, from the JSON files in benchmarks/results/ alone."""

from __future__ import annotations

import json
from collections.abc import Iterator

from benchmarks.timing import RESULTS, both, spread, table

VARIANTS = (
    "Q1 groups 2", "Q1 groups 2 single", "Q8 groups 2", "Q1 groups 3",
    "Q1 groups 2 stats pages of 16", "Q1 groups 2 single stats pages of 16",
    "Q8 groups 2 stats pages of 16", "Q1 groups 3 stats pages of 16",
)  # fmt: skip


def read(name: str) -> dict:
    """A result by its name, without ".json"."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def where(environment: dict) -> str:
    versions = ", ".join(f"{k} {environment[k]}" for k in ("torch", "triton", "transformers"))
    return f"{environment['device']}, {environment['cores']} cores, {versions}"


def contenders() -> str:
    """Time of every contender over that of plain attention as torch chooses it, on a CPU."""
    head, parts = ["case", "contender", "gates", "time / sdpa"], []
    for path in sorted(RESULTS.glob("kernel-*.json")):
        run = read(path.stem)
        cases = (one["extra_info"] for one in run["benchmarks"])
        shown = [one for one in cases if "kv_bytes" in one and not one["interpreted"]]
        if shown:
            rows = (row for one in shown for row in _ratios(one))
            parts.append(f"{where(run['environment'])}:\n\n{table(head, rows)}")
    return "\n".join(parts)


def _ratios(found: dict) -> Iterator[list[str]]:
    base = found["contenders"]["sdpa"]["seconds"]["median"]
    for name, measured in found["contenders"].items():
        if "unsupported" not in measured and name != "sdpa":
            time = measured["seconds"]["median"]
            gates = "yes" if measured["gates"] else "no"
            yield [found["case"], name, gates, f"{time / base:.2f}"]


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
    run = read("host")
    return (
        f"A kept launch takes {run['ratio']:.2f} times the host work of one that Triton binds anew "
        f"({where(run['environment'])})."
    )


def compiled() -> str:
    """Registers and so on of the variants at the 7B shape."""
    run, rows = read("compiled"), []
    for one in run["kernels"]:
        shape, _, variant = one["variant"].partition(" bf16 ")
        if one["kernel"] == "decode" and shape == "28/4 d128" and variant in VARIANTS:
            width = max(int(w) for w in one["loads"])
            loop = one["loop"]
            each = loop["instructions"] * loop["warps"] / loop["keys"]
            cells = (one[x] for x in ("registers", "spills", "shared", "blocks"))
            rows.append([variant, f"sm_{one['arch']}", *cells, f"{width} bytes", f"{each:.1f}"])
    head = ["28/4 heads, d 128, bf16", "arch", "registers", "spills", "shared", "blocks per SM",
            "K/V loads", "instructions a key"]  # fmt: skip
    return f"triton {run['environment']['triton']}:\n\n{table(head, rows)}"


def trace() -> str:
    """Time per token, recorded over not recorded."""
    run = read("trace")
    head = ["recorded", "time per token over that of the same run not recorded"]
    rows = ([name, spread(one)] for name, one in run["ratio_per_token"].items())
    told = f"{where(run['environment'])}; {run['case']}, {run['keys']} keys:"
    return f"{told}\n\n{table(head, rows)}"


def steps() -> str:
    """Time and operators of a step, over those of the unpatched model."""
    run, rows = read("steps"), []
    base = run["operators_per_token"]["unpatched"]
    prompts = run["ratio_per_prompt"]  # of those whose prompt is read in a way of its own
    for name, one in run["ratio_per_token"].items():
        counted = run["operators_per_token"][name]
        first = f"{both(prompts[name])}, {prompts[name]['n']}" if name in prompts else "not timed"
        rows.append([name, f"{both(one)}, {one['n']}", first,
                     f"{counted['operators'] - base['operators']:+}",
                     f"{counted['bytes'] / base['bytes'] - 1:+.2%}"])  # fmt: skip
    head = ["", "time per token; of the fastest, pairs", "of a prompt", "operators of a token",
            "bytes in and out of them"]  # fmt: skip
    told = f"{where(run['environment'])}; {run['case']}, up to {run['keys']} keys:"
    return f"{told}\n\n{table(head, rows)}"


def instructions() -> str:
    """Instructions of a token and of a prompt, over those of the unpatched model."""
    if not (RESULTS / "instructions.json").exists():
        return "Nothing yet: not counted since this was written."
    run, rows = read("instructions"), []
    whole, (low, high) = str(run["layers"]), run["depths"]
    tokens, prompts = run["per_token"], run["per_prompt"]
    base = tokens["unpatched"]
    for name, one in tokens.items():
        if one is base:
            continue
        more = {depth: one[depth] - base[depth] for depth in one}
        layer = (more[str(high)] - more[str(low)]) / (high - low)
        first = ""
        if name in prompts:
            first = f"{prompts[name][whole] / prompts['unpatched'][whole]:.4f}"
        rows.append([name, f"{one[whole] / base[whole]:.4f}", f"{more[whole] / 1e6:+.2f} M",
                     f"{layer / 1e6:+.3f} M", first])  # fmt: skip
    told = (
        f"{where(run['environment'])}, {run['kernels']} kernels; {run['case']}, {run['tokens']} "
        f"tokens; {run['layers']} layers, from {low} and {high}:"
    )
    head = ["", "of a token", "more than unpatched", "in each layer", "of a prompt"]
    return f"{told}\n\n{table(head, rows)}"


def attention() -> str:
    """One layer's attention at a step over torch's own, on a CPU."""
    run = read("attention")
    ways = list(next(iter(run["ratios"].values())))
    rows = ([shape, *(both(one[way]) for way in ways)] for shape, one in run["ratios"].items())
    return f"{where(run['environment'])}:\n\n{table(['shape', *ways], rows)}"


def accounting() -> str:
    """Time spent on telling what a pass is, and on noting it."""
    run = read("accounting")
    share, time = run["share"], run["microseconds"]["median"]
    return (
        f"Accounting takes at most {share['median']:.2%} of a token's time, or {time:.0f} µs "
        f"({run['device']}, {run['cores']} cores, torch {run['torch']}, transformers "
        f"{run['transformers']}; the {run['shape']} text shape, {run['steered']} steered tokens)."
    )


def growth() -> str:
    """What a prompt's length does to both arms: times as ratios, memory in bytes."""
    head = ["keys", "prefill, patched / unpatched", "token, patched / unpatched",
            "prefill's peak above the weights, unpatched", "patched, more by",
            "pairs of prefills, of tokens"]  # fmt: skip
    parts = []
    for path in sorted(RESULTS.glob("growth*.json")):
        run, rows = read(path.stem), []
        for found in run["lengths"]:
            plain, patched = (found["prefill"][arm]["bytes"] for arm in ("unpatched", "patched"))
            times = found["ratio_first_token"], found["ratio_per_token"]
            # One pair tells nothing.
            told = (spread(one) if one["n"] > 1 else "not measured" for one in times)
            rows.append([found["keys"], *told, f"{plain / 1e6:,.1f} MB",
                         f"{(patched - plain) / 1e3:,.1f} kB",
                         ", ".join(str(one["n"]) for one in times)])  # fmt: skip
        told = f"{where(run['environment'])}; the {run['shape']} text shape, batch {run['batch']}:"
        parts.append(f"{told}\n\n{table(head, rows)}")
    return "\n\n".join(parts)
