"""The pages' tables of answers: what steering changed in what the small models say.

Each is made from results.json files of the commands, which write tables of single runs; these
stand several runs beside each other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from benchmarks.timing import RESULTS
from vrga.analysis import closer as closer_look
from vrga.analysis.recovery import CONFIGS, FORMER
from vrga.demo.data import PROMPTS
from vrga.demo.show import table
from vrga.evaluation.wording import markdown, percent, share
from vrga.intervals import Interval, paired_difference

SPLITS = ("clean", "noise", "similar", "crowded")
HARDER = ("noise", "similar", "crowded", "large", "long", "vast")  # of the recovery table
# Of the README's table: configurations of the recovery runs, and what they are called there.
SUMMARY = (("published", "published numbers"), ("sparing", "sparing numbers"))


def read(name: str) -> dict:
    """A result by its name, without ".json"."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def demo() -> str:
    """What steering did on the embedded model."""
    run = read("demo")
    found = {prompt: run["prompts"][prompt] for prompt in PROMPTS}
    region = found["direct"]["region"]
    return (
        f"{table(found, run['questions'], run['split']).markdown()}\n\n"
        f"Split {run['split']}. The true cell lies in T in {percent(region['hit'])}, the map peaks "
        f"on it in {percent(region['peak'])}; T covers {100 * region['coverage']:.0f} % of the "
        "image."
    )


def lookback() -> str:
    """Prompts and ways of steering, on each split of the embedded model's questions."""
    answers, looks = [], []
    for split in SPLITS:
        arms = read(f"lookback-{split}")["arms"]
        for prompt in ("direct", "cot", "back"):
            off, *others = (
                arms[f"{prompt}/{name}"] for name in ("off", "always", "back", "back+relocate")
            )
            changes = (percent(one["against_off"]["accuracy"], "+") for one in others)
            answers.append([split, prompt, percent(off["accuracy"]), *changes])
            figures = [share(off[x]) for x in ("rrar", "image_inside", "image_outside")]
            figures += [share(others[1]["image_inside"]), share(others[2]["rrar"])]
            written = f"{100 * off['stats']['trigger_rate']:.1f} %"
            looks.append([split, prompt, written, *figures])
    first = ("questions", "prompt", "without VRGA", "always", "inside `<back>`")
    second = ("questions", "prompt", "writes `<back>`", "RRAR", "image, inside", "image, outside")
    return "\n\n".join([
        markdown((*first, "and found anew there"), answers),
        markdown((*second, "inside, VRGA there", "RRAR, found anew"), looks),
    ])  # fmt: skip


def uncertain() -> str:
    """Steering where the model is uncertain, beside always; and how the threshold was chosen."""
    rows = []
    for path in sorted((RESULTS / "uncertain").glob("answers-*.json")):
        run = read(f"uncertain/{path.stem}")
        asked = run["settings"]["questions"]
        names = list(run["arms"])
        for prompt in dict.fromkeys(name.split("/")[0] for name in names):
            own = {name.split("/")[1]: run["arms"][name] for name in names if prompt in name}
            config = run["settings"]["arms"][f"{prompt}/uncertain"]
            changes = [
                percent(own[x]["against_off"]["accuracy"], "+") if x in own else ""
                for x in ("always", "back", "uncertain")
            ]
            cells = [f"{config['gain']:g}", percent(own["off"]["accuracy"]), *changes]
            cells += [percent(own["uncertain"]["against_always"]["accuracy"], "+")]
            cells += [f"{100 * own['uncertain']['steered']:.0f} %"]
            rows.append([f"{run['settings']['split']}, {prompt}: {asked:,}", *cells])
    tuned = []
    for path in sorted((RESULTS / "uncertain").glob("tune-*.json")):
        run = read(f"uncertain/{path.stem}")
        for name, one in run["tuning"].items():
            change = one["against_off"]
            told = "" if change is None else percent(change["accuracy"], "+")
            where = f"{run['settings']['split']}, {run['settings']['prompt']}"
            tuned.append([where, name.split("=")[-1], percent(one["accuracy"]), told])
    answers = (
        "questions", "gain", "without VRGA", "always", "inside `<back>`", "uncertain",
        "less always", "steps steered",
    )  # fmt: skip
    chosen = ("validation questions", "from so many nats on", "accuracy", "against off")
    return f"{markdown(answers, rows)}\n\n{markdown(chosen, tuned)}"


def evaluation() -> str:
    """Both arms of `vrga eval` on the grid task."""
    rows = []
    for split in ("noise", "similar"):
        found = read(f"eval-grid-{split}")["tasks"]["vrga_grid"]
        base, steered = found["arms"]["base"], found["arms"]["vrga"]
        change, scores = found["difference"], (base["score"], steered["score"])
        speed = steered["samples_per_second"] / base["samples_per_second"]
        cells = [*map(percent, scores), percent(change["score"], "+"), f"{change['p']:.2g}"]
        rows.append([split, change["pairs"], *cells, f"{speed:.2f}"])
    columns = ("without VRGA", "with VRGA", "difference", "p", "speed, VRGA / off")
    return markdown(("questions", "samples", *columns), rows)


def analyses() -> str:
    """The paper's phenomena, on each split of the embedded model's questions."""

    runs = {name: [read(f"analyze/{name}-{split}") for split in SPLITS]
            for name in ("heads", "ablate", "rrar", "dispersion")}  # fmt: skip

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
    told = ([name, *map(pick, runs[analysis])] for name, analysis, pick in rows)
    return markdown(("", *SPLITS), told)


def recovery() -> str:
    """What steering wins back, to the region found and to the true one, over training seeds."""
    head = [
        "questions, training seeds", "config", "VRGA", "by seed", "to the true region", "by seed",
        "true cell in T", "T covers", "wrong color, letter, none",
    ]  # fmt: skip
    runs = ((s, p, recovery_runs(s, p)) for s in HARDER for p in ("cot", "direct"))
    return markdown(head, (row for one in runs for row in _recovery(*one)))


def recovery_runs(split: str, prompt: str) -> list[dict]:
    """The runs of a split and prompt, one for each training seed, in the order of seeds.

    Those of before outcomes were told apart are left out: what pooling needs is not in them.
    """
    name = f"recovery-{split}" if prompt == "cot" else f"recovery-{split}-{prompt}"
    folder = RESULTS / "analyze"
    paths = [folder / f"{name}.json", *sorted(folder.glob(f"{name}-seed*.json"))]
    runs = [json.loads(path.read_text()) for path in paths if path.exists()]
    return [run for run in runs if "outcomes" in run]


def _recovery(split: str, prompt: str, runs: Sequence[dict]) -> Iterator[list[str]]:
    """Rows of one split; figures over all questions of all seeds."""
    if not runs:
        return
    off = [run["off"][0] for run in runs]
    counts = {run["settings"]["questions"] for run in runs}
    (each,) = counts  # means over seeds are means over questions
    name = f"{split}, {prompt}: {len(runs)} x {each:,}"
    base = [f"{percentage(off)} right", span(off), "", "", "", "", _wrong(runs)]
    yield [name, "without VRGA", *base]
    names = {config: FORMER.get(config, config) for config in runs[0]["configs"]}
    for config in sorted(names, key=lambda config: list(CONFIGS).index(names[config])):
        own = [run["configs"][config] for run in runs]
        cells = [name, names[config]]
        for kind, flips in (("change", "flips"), ("bound", "flips_of_bound")):
            cells += [percent(pooled([one[flips] for one in own]), "+")]
            cells += [span([one[kind][0] for one in own], "+")]
        cells += [percentage([one["hit"][0] for one in own])]
        yield [*cells, f"{100 * np.mean([one['coverage'] for one in own]):.0f} %", _wrong(own)]


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
    rows = []
    for path in sorted((RESULTS / "closer").glob("*.json")):
        run = read(f"closer/{path.stem}")
        seeds, asked = len(run["models"]), run["pooled"]["questions"]
        questions = f"{path.stem}: {seeds} x {asked // seeds:,}"
        rows += [[questions, *cells] for cells in closer_look.rows(run["pooled"])]
    return markdown(("questions", *closer_look.COLUMNS), rows)


def summary() -> str:
    """The README's few lines: what steering to the region changes, over all training seeds."""
    rows = []
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
        rows.append(cells)
    return markdown(["questions", "without VRGA", *(x for _, x in SUMMARY), "true region"], rows)
