"""Pictures of what the analyses found; shapes and fills differ, so that grey prints do as well."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from vrga.intervals import Interval
from vrga.plots.marks import mark, points

BLUE, ORANGE = "#0072B2", "#D55E00"  # Okabe and Ito's, which differ for colour-blind eyes
LABELS = {
    "image": "attention on the image",
    "box": "attention on the box",
    "spread": "spread $H_{img}$, nats",
}


def heads_figure(found: dict) -> Figure:
    """R against H_img of every head, means over the questions; darker: more often in H_v.

    Args:
        found: what `heads.figures` gives.
    """
    focus, entropy, chosen = (np.array(found[x]) for x in ("focus", "entropy", "chosen"))
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    scatter, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    marks = scatter.scatter(
        focus.ravel(),
        entropy.ravel(),
        c=chosen.ravel(),
        s=36,
        cmap="Blues",
        vmin=0,
        vmax=max(chosen.max(), 1e-9),
        edgecolors="black",
        linewidths=0.7,
    )
    figure.colorbar(marks, ax=scatter, label="share of questions in $H_v$")
    scatter.set(
        xlabel="image focus R",
        ylabel="image entropy $H_{img}$, nats",
        title=f"r = {found['r_over_means'][0]:.2f} over the {focus.size} heads' means",
    )
    often = np.argsort(-chosen, axis=None, kind="stable")[:12]
    order = [place for place in often if chosen.flat[place] > 0]
    names = [f"{place // focus.shape[1]}.{place % focus.shape[1]}" for place in order]
    bars.barh(range(len(order)), chosen.flat[order], color=BLUE, edgecolor="black")
    bars.set(
        yticks=range(len(order)),
        yticklabels=names,
        xlim=(0, 1),
        ylabel="layer.head",
        xlabel="share of questions in $H_v$",
        title=f"overlap {found['overlap'][0]:.2f}, "
        f"by chance {found['overlap_of_random_heads'][0]:.2f}",
    )
    bars.invert_yaxis()
    for axis in (scatter, bars):
        axis.title.set_fontsize(9)
        axis.tick_params(labelsize=8)
    return figure


def bars_figure(
    bars: Mapping[str, Sequence[float | None]], marked: Collection[str], title: str, told: str
) -> Figure:
    """Shares as bars with their intervals, some of them marked by colour and hatching.

    Args:
        bars: (value, low, high) by name, a share of 1; marked: names; told: what they are, behind
            which "95 % intervals" stands.
    """
    figure = Figure(figsize=(7, 0.4 * len(bars) + 1.2), layout="constrained")
    axis = figure.subplots()
    values = 100 * np.array(list(bars.values()), dtype=float)  # None, as JSON has it, is NaN
    spread = np.abs(values[:, 1:] - values[:, :1]).T
    axis.barh(
        range(len(bars)), values[:, 0], xerr=spread, edgecolor="black",
        color=[BLUE if name in marked else "#999999" for name in bars],
        hatch=["//" if name in marked else "" for name in bars],
    )  # fmt: skip
    axis.set(
        yticks=range(len(bars)), yticklabels=list(bars), xlim=(0, 100), title=title,
        xlabel=f"{told}, 95 % intervals",
    )  # fmt: skip
    axis.invert_yaxis()
    return figure


def ablate_figure(arms: Mapping[str, dict]) -> Figure:
    """Accuracy of each arm with its interval; filled: visual heads; line: no head ablated."""
    figure = Figure(figsize=(6.5, 1.0 + 0.32 * len(arms)), layout="constrained")
    axis = figure.subplots()
    for place, (name, one) in enumerate(arms.items()):
        filled = name.endswith("visual") or name == "none"
        fill = "black" if filled else "white"
        mark(axis, one["accuracy"], place, factor=100, across=True, fill=fill)
    axis.axvline(100 * next(iter(arms.values()))["accuracy"][0], color="0.6", linewidth=1, zorder=0)
    names = [f"{name} ({round(one['heads'], 1):g} heads)" for name, one in arms.items()]
    axis.set(
        xlabel="accuracy, %",
        xlim=(-3, 103),
        yticks=range(len(arms)),
        yticklabels=[name.replace("low_focus", "low focus") for name in names],
    )
    axis.tick_params(labelsize=8)
    axis.invert_yaxis()
    return figure


def rrar_figure(prompts: Mapping[str, dict]) -> Figure:
    """RRAR of each prompt: all answers, right ones and wrong ones."""
    figure = Figure(figsize=(1.6 + 1.2 * len(prompts), 3.4), layout="constrained")
    axis = figure.subplots()
    parts = {"all": ("s", "0.5"), "right": ("o", "black"), "wrong": ("o", "white")}
    for column, one in enumerate(prompts.values()):
        for shift, (part, (shape, fill)) in zip((-0.2, 0, 0.2), parts.items(), strict=True):
            key = "rrar" if part == "all" else part
            if not np.isnan(one[key][0]):
                mark(axis, one[key], column + shift, shape=shape, fill=fill)
    for part, (shape, fill) in parts.items():
        axis.plot([], [], shape, color="black", markerfacecolor=fill, label=part)
    axis.set(
        ylabel="RRAR",
        ylim=(0, None),
        xticks=range(len(prompts)),
        xticklabels=list(prompts),
        xlim=(-0.5, len(prompts) - 0.5),
    )
    axis.set_axisbelow(True)
    axis.grid(axis="y", color="0.9")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def dispersion_figure(courses: Mapping[str, Mapping[str, Sequence[Interval]]]) -> Figure:
    """Each figure over the answer, unsteered and steered, for visual heads and for all heads."""
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.subplots(2, len(LABELS), sharex=True)
    for row, heads in zip(axes, ("visual", "all"), strict=True):
        for axis, (name, label) in zip(row, LABELS.items(), strict=True):
            for (arm, parts), color, style in zip(
                courses[f"{name}_{heads}"].items(), (BLUE, ORANGE), ("-o", "--^"), strict=True
            ):
                value, low, high = np.array(parts, dtype=float).T
                place = (np.arange(len(value)) + 0.5) / len(value)
                axis.fill_between(place, low, high, color=color, alpha=0.2, linewidth=0)
                axis.plot(
                    place, value, style, color=color, markersize=4, label=_ARMS[arm],
                    markerfacecolor="white" if arm == "on" else color,
                )  # fmt: skip
            axis.set_title(f"{label}\n{heads} heads", fontsize=9)
            axis.tick_params(labelsize=8)
            if name != "spread":
                axis.set_ylim(0, None)
    for axis in axes[-1]:
        axis.set(xlabel="position in the answer", xlim=(0, 1))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure


_ARMS = {"off": "without VRGA", "on": "with VRGA"}


def recovery_figure(configs: Mapping[str, dict]) -> Figure:
    """Differences of accuracy from the unsteered model: region found (filled) and true (hollow).

    Args:
        configs: name -> what `recovery.figures` gives of it.
    """
    figure = Figure(figsize=(7, 1.0 + 0.45 * len(configs)), layout="constrained")
    axis = figure.subplots()
    kinds = (("change", "region found", BLUE, BLUE), ("bound", "true region", ORANGE, "white"))
    for shift, (kind, label, color, fill) in zip((-0.14, 0.14), kinds, strict=True):
        for place, one in enumerate(configs.values()):
            mark(
                axis, one[kind], place + shift, factor=100, across=True, color=color, fill=fill,
                label=label if place == 0 else None,
            )  # fmt: skip
    points(axis)
    axis.set(yticks=range(len(configs)), yticklabels=list(configs))
    axis.invert_yaxis()
    axis.legend(fontsize=8)
    return figure


def change_figure(tuning: Mapping[str, Interval], held_out: Mapping[str, Interval]) -> Figure:
    """Differences of accuracy from the unpatched model, with their 95 % intervals.

    Args:
        tuning, held_out: config's name -> interval; drawn with hollow and with filled marks.
    """
    rows = {**tuning, **held_out}
    figure = Figure(figsize=(7, 0.9 + 0.3 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for place, (name, interval) in enumerate(rows.items()):
        fill = "black" if name in held_out else "white"
        mark(axis, interval, place, factor=100, across=True, fill=fill)
    points(axis, "accuracy against the unpatched model")
    axis.set(yticks=range(len(rows)), yticklabels=list(rows))
    axis.tick_params(labelsize=8)
    axis.invert_yaxis()
    return figure
