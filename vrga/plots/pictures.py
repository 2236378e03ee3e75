"""What figures are made of: a picture under a map, lines of attention, and how they look."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image
from torch import Tensor

from vrga.heat import heat_colors, outline
from vrga.images import to_rgb
from vrga.method.prompt import Grid
from vrga.method.region import Region
from vrga.recording.trace import Trace

# Okabe and Ito's colours, which differ for colour-blind eyes; the line styles differ in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "black")
STYLES = {"image": "-", "region": "--", "question": "-.", "generated": ":"}
# Black outline over white: it stands out on any image, in grey and for colour-blind eyes.
OUTLINE = (("white", 3.5), ("black", 1.5))
FEW = 3  # points that are marked, as a line through them is short or none


def picture(
    axis: Axes,
    image: Image.Image | None,
    grid: Grid,
    heat: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    top: float | None = None,
) -> None:
    """An image (or white) under a map [h, w], glowing where it reaches `top`, and an outline."""
    image = Image.new("RGB", (grid.w, grid.h), "white") if image is None else to_rgb(image)
    axis.imshow(image, extent=(0, grid.w, grid.h, 0))
    # Cells are square where the image's own proportions are those of its token grid.
    square = abs(image.width * grid.h - image.height * grid.w) < max(image.size)
    axis.set(xticks=[], yticks=[], aspect="equal" if square else "auto")
    if heat is not None:
        top = heat.max() if top is None else top
        shade = heat_colors(heat / max(top, 1e-12))
        axis.imshow(shade, extent=(0, grid.w, grid.h, 0), interpolation="nearest")
    if mask is not None:
        for color, width in OUTLINE:
            for (x0, y0), (x1, y1) in outline(mask):
                axis.plot((x0, x1), (y0, y1), color=color, linewidth=width)


def trend(axis: Axes, trace: Trace, row: int, heads: Tensor | None) -> None:
    """Lines of attention over tokens, <back> spans shaded."""
    trace.check_filled()
    if trace.question is None:
        method = trace.config.get("method")
        advice = "record it with patch.record(), without watch, around a call of generate"
        if method in ("released_mask", "ablation"):
            advice = f"method={method!r} does not measure them apart; vrga and released do"
        raise ValueError(f"the trace has no attention on question and generated text: {advice}")
    heads = None if heads is None else heads[trace.layers]
    tokens = np.array(trace.steps_of(row)) + 1
    for (name, style), color in zip(STYLES.items(), COLORS, strict=True):
        shares = getattr(trace, name)[: len(tokens), :, row]  # [steps, L, H]
        mean = shares.mean((1, 2)) if heads is None else shares[:, heads].mean(1)
        mark = "o" if len(tokens) <= FEW else None
        axis.plot(tokens, mean.numpy(), style, color=color, label=name, marker=mark)
    _axes_of_tokens(axis, trace, row, int(tokens[-1]))


def overlay(
    axis: Axes, traces: Mapping[str, Trace], row: int, heads: Mapping[str, Tensor], measure: str
) -> None:
    """A share of attention in several runs, each with a line of its own on one axis.

    Args:
        traces: by name, the unsteered one first; heads: bool [L, H] of each.
        measure: of `SHARES`.
    """
    last = 1
    for (name, trace), style, color in zip(
        traces.items(), ("--", "-"), ("black", COLORS[1]), strict=True
    ):
        tokens = np.array(trace.steps_of(row)) + 1
        shares = getattr(trace, measure)[: len(tokens), :, row][:, heads[name][trace.layers]]
        mark = "o" if len(tokens) <= FEW else None  # one point is no line
        axis.plot(tokens, shares.mean(1).numpy(), style, color=color, label=name, marker=mark)
        last = max(last, int(tokens[-1]))
    _axes_of_tokens(axis, trace, row, last)  # the steered run's spans
    axis.set_title(f"on the {measure}", fontsize=10)


def _axes_of_tokens(axis: Axes, trace: Trace, row: int, last: int) -> None:
    """Tokens from 1 on across, shares from 0 on upwards; sane for a single token too. A trace's
    <back> spans are shaded."""
    steps = trace.steps_of(row)
    for first, end in trace.spans(row):
        place = steps[first] + 0.5, steps[end - 1] + 1.5
        axis.axvspan(*place, color="0.85", zorder=0, label="<back>")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axis.set(xlabel="generated token", ylabel="share of attention")
    top = max(1.08 * axis.dataLim.ymax, 1e-3)  # above the highest share, also of equal ones
    axis.set(xlim=(0.5, last + 0.5), ylim=(0, min(top, 1.02)))


def legend(figure: Figure, axis: Axes) -> None:
    """One entry for each kind of line and shade of an axis, above the figure."""
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), fontsize=8, loc="outside upper center", ncols=5)


def images_of(trace: Trace, row: int) -> list[Image.Image | None]:
    """The row's images, None for each where the trace has none."""
    if trace.images is None:
        return [None] * len(trace.regions[row].grids)
    return [*trace.images[row]]


def mask_of(region: Region, grid: Grid) -> np.ndarray:
    """T on one of its grids, bool [h, w]."""
    return region.mask[grid.index].view(grid.h, grid.w).numpy()


def word(trace: Trace, row: int, token: int) -> str:
    """The token's number, from 1 as on the axes, and its text, short and on one line."""
    texts = [] if trace.texts is None else trace.texts[row]
    text = repr(texts[token])[1:-1] if token < len(texts) else ""
    return f"{token + 1}: {text[:16]}"


def plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")
