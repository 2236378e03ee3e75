"""Write the pages' tables, and one plot, from the measured results: python -m benchmarks.table

Every table stands between two comment lines of one page, README.md or one of docs/, and is made
from the JSON files in benchmarks/results/ alone. `--check` changes nothing and fails if a page
differs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks import versions as record
from benchmarks.timing import RESULTS, ROOT
from vrga.analysis.recovery import CONFIGS, FORMER
from vrga.demo.fine.arms import TOLD
from vrga.evaluation.wording import percent, share
from vrga.intervals import Interval, paired_difference

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SPLITS = ("clean", "noise", "similar", "crowded")
HARDER = ("noise", "similar", "crowded", "large", "long", "vast")  # of the recovery table
# Of the README's table: configurations of the recovery runs, and what they are called there.
SUMMARY = (("published", "published numbers"), ("sparing", "sparing numbers"))
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
    """Time of every contender over that of plain attention as torch chooses it.

    From a GPU also microseconds, host time per call, and the share of the copy bandwidth measured
    in the same run at which keys and values were read.
    """
    lines, device, copy = [], None, {}
    for environment, found in results("kernel"):
        if "bytes_per_second" in found:
            copy[where(environment)] = found["bytes_per_second"]["copy"]
    for environment, found in results("kernel"):
        if "kv_bytes" not in found or found["interpreted"]:
            continue
        on_gpu = "graph_seconds" in found["contenders"]["sdpa"]
        if where(environment) != device:
            device = where(environment)
            columns = ["case", "contender", "gates", "time / sdpa"]
            columns += ["time, µs", "host time, µs", "of copy bandwidth"] if on_gpu else []
            lines += [f"{device}:", "", row(columns), row(["---"] * len(columns))]
        base = _time(found["contenders"]["sdpa"])
        for name, measured in found["contenders"].items():
            if "unsupported" in measured:
                continue
            time = _time(measured)
            cells = [found["case"], name, "yes" if measured["gates"] else "no"]
            cells += [f"{time / base:.2f}"]
            if on_gpu:
                share = measured["bytes_per_second"] / copy[device]
                host = measured["host_seconds"]["median"]
                cells += [f"{time * 1e6:.1f}", f"{host * 1e6:.1f}", f"{share:.0%}"]
            if name != "sdpa" or on_gpu:
                lines.append(row(cells))
    return "\n".join(lines)


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _time(measured: dict) -> float:
    return measured.get("graph_seconds", measured["seconds"])["median"]


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
        "K/V loads |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in run["kernels"]:
        head, _, variant = row["variant"].partition(" bf16 ")
        if row["kernel"] == "decode" and head == "28/4 d128" and variant in VARIANTS:
            width = max(int(w) for w in row["loads"])
            lines.append(
                f"| {variant} | sm_{row['arch']} | {row['registers']} | {row['spills']} | "
                f"{row['shared']} | {row['blocks']} | {width} bytes |"
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
        "| | time per token | pairs | operators | bytes in and out of them |",
        "| --- | --- | --- | --- | --- |",
    ]
    base = run["operators_per_token"]["unpatched"]
    for name, one in run["ratio_per_token"].items():
        counted = run["operators_per_token"][name]
        lines.append(
            row([name, spread(one), str(one["n"]), f"{counted['operators'] - base['operators']:+}",
                 f"{counted['bytes'] / base['bytes'] - 1:+.2%}"])
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
        lines.append(row([shape, *(spread(found[way]) for way in ways)]))
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


def demo() -> str:
    """What steering did on the embedded model."""
    run = json.loads((RESULTS / "demo.json").read_text())
    lines = [
        "| prompt | measure | without VRGA | with VRGA | difference |",
        "| --- | --- | --- | --- | --- |",
    ]
    for prompt, found in run["prompts"].items():
        for name, text in (("accuracy", percent), ("rrar", share)):
            off, on, change = (found[name][arm] for arm in ("off", "on", "difference"))
            lines.append(
                f"| {prompt} | {name.replace('rrar', 'RRAR')} | {text(off)} | "
                f"{text(on)} | {text(change, '+')} |"
            )
    region = run["prompts"]["direct"]["region"]
    lines += [
        "",
        f"The true cell lies in T in {percent(region['hit'])}, the map peaks on it in "
        f"{percent(region['peak'])}; T covers {100 * region['coverage']:.0f} % of the image.",
    ]
    return "\n".join(lines)


def lookback() -> str:
    """Prompts and ways of steering, on each split of the embedded model's questions."""
    answers = [
        "| questions | prompt | without VRGA | always | inside `<back>` | and found anew there |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    looks = [
        "| questions | prompt | writes `<back>` | RRAR | image, inside | image, outside | "
        "inside, VRGA there | RRAR, found anew |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for split in SPLITS:
        arms = json.loads((RESULTS / f"lookback-{split}.json").read_text())["arms"]
        for prompt in ("direct", "cot", "back"):
            off, *others = (
                arms[f"{prompt}/{name}"] for name in ("off", "always", "back", "back+relocate")
            )
            changes = (percent(one["against_off"]["accuracy"], "+") for one in others)
            answers.append(
                f"| {split} | {prompt} | {percent(off['accuracy'])} | {' | '.join(changes)} |"
            )
            looks.append(
                f"| {split} | {prompt} | {100 * off['stats']['trigger_rate']:.1f} % | "
                f"{share(off['rrar'])} | {share(off['image_inside'])} | "
                f"{share(off['image_outside'])} | {share(others[1]['image_inside'])} | "
                f"{share(others[2]['rrar'])} |"
            )
    return "\n".join([*answers, "", *looks])


def evaluation() -> str:
    """Both arms of `vrga eval` on the grid task."""
    lines = [
        "| questions | samples | without VRGA | with VRGA | difference | p | speed, VRGA / off |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for split in ("noise", "similar"):
        found = json.loads((RESULTS / f"eval-grid-{split}.json").read_text())["tasks"]["vrga_grid"]
        base, steered = found["arms"]["base"], found["arms"]["vrga"]
        change = found["difference"]
        speed = steered["samples_per_second"] / base["samples_per_second"]
        lines.append(
            f"| {split} | {change['pairs']} | {percent(base['score'])} | "
            f"{percent(steered['score'])} | {percent(change['score'], '+')} | {change['p']:.2g} | "
            f"{speed:.2f} |"
        )
    return "\n".join(lines)


def analyses() -> str:
    """The paper's phenomena, on each split of the embedded model's questions."""

    def cells(analysis: str, pick: Callable[[dict], str], splits: Sequence[str] = SPLITS) -> str:
        runs = {
            split: json.loads((RESULTS / "analyze" / f"{analysis}-{split}.json").read_text())
            for split in splits
        }
        return " | ".join(pick(runs[split]) if split in runs else "" for split in SPLITS)

    def ordered(expected: str) -> Callable[[dict], str]:
        return lambda run: share(
            next(x for x in run["order"] if x["expected"] == expected)["difference"], "+"
        )

    def trend(figure: str, heads: str, of: str = "slope") -> Callable[[dict], str]:
        wanted = {"figure": figure, "heads": heads, "arm": "off"}
        return lambda run: share(
            next(x for x in run["trends"] if wanted.items() <= x.items())[of], "+"
        )

    rows = [
        ("r of R and H_img over heads", "heads", lambda run: share(run["r_over_means"], "+")),
        ("accuracy without random heads less without visual heads, chosen per step", "ablate",
         lambda run: percent(run["arms"]["step visual"]["below_random"], "+")),
        ("the same, H_v of the prefill", "ablate",
         lambda run: percent(run["arms"]["prefill visual"]["below_random"], "+")),
        ("RRAR, direct less reasoning", "rrar", ordered("cot < direct")),
        ("RRAR, guided less direct", "rrar", ordered("direct < guided")),
        ("RRAR, right less wrong, direct", "rrar",
         lambda run: share(run["prompts"]["direct"]["right_minus_wrong"], "+")),
        ("attention on the image, trend over a chain", "dispersion", trend("image", "all")),
        ("its spread H_img in nats, trend", "dispersion", trend("spread", "all")),
        ("attention on the box in visual heads, trend", "dispersion", trend("box", "visual")),
        ("the same, last tenth of the chain less first", "dispersion",
         trend("box", "visual", "last_less_first")),
    ]  # fmt: skip
    lines = [f"| | {' | '.join(SPLITS)} |", "| --- |" + " --- |" * len(SPLITS)]
    lines += [f"| {name} | {cells(analysis, pick)} |" for name, analysis, pick in rows]
    return "\n".join(lines)


def recovery() -> str:
    """What steering wins back, to the region found and to the true one, over training seeds."""
    parts = [
        text
        for split in HARDER
        for prompt in ("cot", "direct")
        if (text := _recovery(split, prompt, recovery_runs(split, prompt)))
    ]
    head = [
        "questions, training seeds", "config", "VRGA", "by seed", "to the true region", "by seed",
        "true cell in T", "T covers", "wrong color, letter, none",
    ]  # fmt: skip
    return "\n".join([row(head), row(["---"] * len(head)), *parts])


def recovery_runs(split: str, prompt: str) -> list[dict]:
    """The runs of a split and prompt, one for each training seed, in the order of seeds.

    Those of before outcomes were told apart are left out: what pooling needs is not in them.
    """
    name = f"recovery-{split}" if prompt == "cot" else f"recovery-{split}-{prompt}"
    folder = RESULTS / "analyze"
    paths = [folder / f"{name}.json", *sorted(folder.glob(f"{name}-seed*.json"))]
    runs = [json.loads(path.read_text()) for path in paths if path.exists()]
    return [run for run in runs if "outcomes" in run]


def _recovery(split: str, prompt: str, runs: Sequence[dict]) -> str:
    """Rows of one split; figures over all questions of all seeds."""
    if not runs:
        return ""
    off = [run["off"][0] for run in runs]
    counts = {run["settings"]["questions"] for run in runs}
    (each,) = counts  # means over seeds are means over questions
    name = f"{split}, {prompt}: {len(runs)} x {each:,}"
    base = [f"{percentage(off)} right", span(off), "", "", "", "", _wrong(runs)]
    lines = [row([name, "without VRGA", *base])]
    names = {config: FORMER.get(config, config) for config in runs[0]["configs"]}
    for config in sorted(names, key=lambda config: list(CONFIGS).index(names[config])):
        own = [run["configs"][config] for run in runs]
        cells = [name, names[config]]
        for kind, flips in (("change", "flips"), ("bound", "flips_of_bound")):
            cells += [percent(pooled([one[flips] for one in own]), "+")]
            cells += [span([one[kind][0] for one in own], "+")]
        cells += [percentage([one["hit"][0] for one in own])]
        cells += [f"{100 * np.mean([one['coverage'] for one in own]):.0f} %", _wrong(own)]
        lines.append(row(cells))
    return "\n".join(lines)


def pooled(flips: Sequence[dict]) -> Interval:
    """The paired difference over the questions of several runs, with its bootstrap interval."""
    gained, lost, of = (sum(one[x] for one in flips) for x in ("gained", "lost", "of"))
    change = np.zeros(of)
    change[:gained], change[gained : gained + lost] = 1, -1
    return paired_difference(change, np.zeros(of))


def percentage(values: Sequence[float]) -> str:
    """A mean of shares."""
    return f"{100 * np.mean(values):.1f} %"


def span(values: Sequence[float], sign: str = "") -> str:
    """Lowest to highest share."""
    return f"{100 * min(values):{sign}.1f} to {100 * max(values):{sign}.1f}"


def _wrong(found: Sequence[dict]) -> str:
    """Means over runs of the shares of wrong answers by kind."""
    kinds = ("color", "letter", "none")
    shares = [np.mean([one["outcomes"]["wrong"][kind][0] for one in found]) for kind in kinds]
    return ", ".join(f"{100 * one:.1f}" for one in shares) + " %"


def closer() -> str:
    """What finding a place and zooming wins, arm by arm, on each split that was asked."""
    lines = [
        "| questions | | right | less asked once | visual tokens |",
        "| --- | --- | --- | --- | --- |",
    ]
    for path in sorted((RESULTS / "closer").glob("*.json")):
        run = json.loads(path.read_text())
        found = run["pooled"]
        seeds = len(run["models"])
        questions = f"{path.stem}: {seeds} x {found['questions'] // seeds:,}"
        for arm in (arm for arm in TOLD if arm in found["accuracy"]):
            hits = found["accuracy"][arm]
            change = "" if arm == "once" else percent(found["less_once"][arm], "+")
            tokens = f"{found['visual_tokens'][arm]:.0f}"
            lines.append(row([questions, TOLD[arm], percent(hits), change, tokens]))
    return "\n".join(lines)


def versions() -> str:
    """What was run with which transformers, and when."""
    lines = [
        "| transformers | tests | passed | failed | skipped | torch | Python | on |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    suites = {
        "core": "`make test-versions`",
        "all": "`make test`",
        "latest": "`make latest`, the newest of everything",
    }
    for run in record.kept():
        packages = run["packages"]
        lines.append(
            f"| {packages['transformers']} | {suites[run['suite']]} | {run['passed']} | "
            f"{run['failed']} | {run['skipped']} | {packages['torch'].split('+')[0]} | "
            f"{run['python']} | {run['date']} |"
        )
    return "\n".join(lines)


def summary() -> str:
    """The README's few lines: what steering to the region changes, over all training seeds."""
    lines = [row(["questions", "without VRGA", *(told for _, told in SUMMARY), "true region"])]
    lines.append(row(["---"] * (len(SUMMARY) + 3)))
    for split in HARDER:
        runs = recovery_runs(split, "cot")
        if not runs:
            continue
        configs = [{FORMER.get(k, k): v for k, v in run["configs"].items()} for run in runs]
        own = {name: [one[name] for one in configs] for name, _ in SUMMARY}
        flips = [(name, "flips") for name, _ in SUMMARY] + [(SUMMARY[-1][0], "flips_of_bound")]
        cells = [f"{split}, {len(runs)} x {runs[0]['settings']['questions']:,}"]
        cells += [f"{percentage([run['off'][0] for run in runs])} right"]
        cells += [percent(pooled([one[kind] for one in own[name]]), "+") for name, kind in flips]
        lines.append(row(cells))
    return "\n".join(lines)


TABLES = {
    "summary": summary,
    "analyses": analyses,
    "recovery": recovery,
    "demo": demo,
    "evaluation": evaluation,
    "lookback": lookback,
    "generation": generation,
    "contenders": contenders,
    "host": host,
    "compiled": compiled,
    "trace": trace,
    "steps": steps,
    "attention": attention,
    "accounting": accounting,
    "closer": closer,
    "versions": versions,
}


def markers(name: str) -> tuple[str, str]:
    """The lines that a table stands between."""
    return f"<!-- {name}: python -m benchmarks.table -->", f"<!-- end {name} -->"


def filled(pages: Mapping[Path, str]) -> dict[Path, str]:
    """Pages with every table made anew.

    Raises:
        ValueError: a table that stands in no page, or in several places.
    """
    new = dict(pages)
    for name, make in TABLES.items():
        start, end = markers(name)
        pattern = f"{re.escape(start)}.*?{re.escape(end)}"
        found = [(path, old) for path, text in pages.items()
                 for old in re.findall(pattern, text, re.DOTALL)]  # fmt: skip
        if len(found) != 1:
            where = ", ".join(path.name for path, _ in found) or "no page"
            raise ValueError(
                f"the lines {start} and {end} stand in {where}; they must stand once in one of "
                f"{', '.join(path.name for path in pages)}"
            )
        ((path, old),) = found
        new[path] = new[path].replace(old, f"{start}\n{make()}\n{end}")
    return new


def renew(pages: Sequence[Path] = PAGES) -> list[Path]:
    """Write every table anew; the pages that changed."""
    old = {path: path.read_text() for path in pages}
    new = filled(old)
    changed = [path for path in pages if new[path] != old[path]]
    for path in changed:
        path.write_text(new[path])
    return changed


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


def main() -> int:
    """0, or 1 if `--check` found a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if different")
    arguments = parser.parse_args()
    if arguments.check:
        old = {path: path.read_text() for path in PAGES}
        return int(filled(old) != old)
    renew()
    plot(RESULTS / "generate.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
