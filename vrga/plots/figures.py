"""Pictures of where the model looked (extra `plot`: matplotlib).

Every function returns a matplotlib figure; `save` writes it. They are readable in grey and for
colour-blind eyes: lines differ in style, maps in lightness, and marks have an outline.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from vrga.intervals import pearson
from vrga.method.region import Region
from vrga.plots.pictures import (
    COLORS,
    OUTLINE,
    images_of,
    legend,
    mask_of,
    overlay,
    picture,
    plain,
    trend,
    word,
)
from vrga.recording.row_images import fitted
from vrga.recording.trace import Trace


def region_figure(
    images: list[Image.Image], region: Region, *, title: str = "", answers: dict | None = None
) -> Figure:
    """The relevance map over each image of a row, and the outline of its region T.

    All images of the row share one scale: the brightest cell is the highest of the whole row.

    Args:
        images: the row's images in order, of any size; of a video its frames.
        region: the row's region, from `patch.region[row]`.
        title: a line above, e.g. the question.
        answers: lines below, by name.

    Returns:
        A matplotlib figure with the image beside the image with the map, per image.

    Raises:
        ValueError: not as many images as the region has grids, nor, of a video, a multiple.
    """
    images = fitted(images, region)
    if not images:
        raise ValueError("the region is of a row without an image")
    figure = Figure(figsize=(7, 3.6 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), 2, squeeze=False)
    heats = [relevance.float().numpy() for relevance in region.map]
    top = max(heat.max() for heat in heats)
    for (bare, marked), image, grid, heat in zip(axes, images, region.grids, heats, strict=True):
        picture(bare, image, grid)
        picture(marked, image, grid, heat, mask_of(region, grid), top)
        bare.set_title("image", fontsize=9)
        marked.set_title("relevance (bright) and region T (outline)", fontsize=9)
    lines = [title] if title else []
    lines += [f"{name}: {text}" for name, text in (answers or {}).items()]
    if lines:
        figure.suptitle("\n".join(map(plain, lines)), fontsize=10)
    return figure


def token_figure(
    trace: Trace,
    tokens: Sequence[int] | None = None,
    row: int = 0,
    *,
    heads: Tensor | None = None,
    columns: int = 6,
) -> Figure:
    """Where some heads look from each of some tokens, over the image.

    Args:
        trace: recorded with `maps`; its images, see `Trace.attach`, are drawn below the maps.
        tokens: generated tokens, counted from 0; None is up to twelve, evenly spread.
        row: of the batch.
        heads: bool [L, H]; None is the row's visual heads.
        columns: panels side by side.

    Returns:
        A matplotlib figure with one panel per token and image; each is as bright as it can be.

    Raises:
        ValueError: tokens that were not recorded, heads without maps, or a row that the trace
            does not have.
    """
    maps, steps = trace.map_of(row, heads), trace.steps_of(row)
    grids = trace.regions[row].grids
    if tokens is None:
        tokens = [steps[i] for i in sorted({int(x) for x in np.linspace(0, len(steps) - 1, 12)})]
    missing = [token for token in tokens if token not in steps]
    if missing or not tokens:
        raise ValueError(f"tokens {missing} were not recorded; there are {steps[0]} to {steps[-1]}")
    images = images_of(trace, row)
    columns = min(columns, len(tokens))
    lines = -(-len(tokens) // columns)
    height = 1.6 * max(grid.h / grid.w for grid in grids) + 0.35
    size = 1.6 * columns, height * lines * len(grids)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(lines * len(grids), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for place, token in enumerate(tokens):
        parts = maps[steps.index(token)].split([grid.h * grid.w for grid in grids])
        top, looked = float(maps[steps.index(token)].max()), trace.region_at(row, token)
        for i, (part, grid, image) in enumerate(zip(parts, grids, images, strict=True)):
            axis = axes[place // columns * len(grids) + i, place % columns]
            axis.set_axis_on()
            picture(
                axis, image, grid, part.view(grid.h, grid.w).numpy(), mask_of(looked, grid), top
            )
            if i == 0:
                axis.set_title(plain(word(trace, row, token)), fontsize=8)
    return figure


def trend_figure(trace: Trace, row: int = 0, *, heads: Tensor | None = None) -> Figure:
    """Where attention went, step by step: image, region, question, generated text.

    Args:
        trace: from `patch.record()` without `watch`.
        row: of the batch.
        heads: bool [L, H], e.g. `patch.region[row].visual`; None is the mean over all.

    Returns:
        A matplotlib figure of shares of attention over generated tokens; <back> spans are shaded.

    Raises:
        ValueError: an empty trace, a row that it does not have, or one that does not tell the
            question from generated text: with watched cells, of a hard mask or of an ablation.
    """
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axis = figure.subplots()
    trend(axis, trace, row, heads)
    legend(figure, axis)
    return figure


def compare_figure(
    base: Trace,
    steered: Trace,
    token: int | None = None,
    row: int = 0,
    *,
    heads: Tensor | None = None,
) -> Figure:
    """Two runs: side by side where they look on the image, and below, on one axis for both, how
    much of the attention the region and the image get.

    Args:
        base, steered: recorded with `maps`.
        token: the generated token to look from; None is the mean over all.
        row: of the batch.
        heads: bool [L, H]; None is the visual heads.

    Raises:
        ValueError: as of `token_figure`.
    """
    traces = {"base": base, "steered": steered}
    for trace in traces.values():
        trace.steps_of(row)  # raises for a row that is not there
    count = max(len(trace.regions[row].grids) for trace in traces.values())
    figure = Figure(figsize=(8, 3.2 * count + 2.6), layout="constrained")
    axes = figure.subplots(count + 1, 2, squeeze=False, height_ratios=[3.2] * count + [2.2])
    for column, (name, trace) in enumerate(traces.items()):
        steps, region = trace.steps_of(row), trace.region_at(row, 0 if token is None else token)
        if token is not None and token not in steps:
            raise ValueError(f"token {token} was not recorded in the {name} run")
        maps = trace.map_of(row, heads)
        shown = maps.mean(0) if token is None else maps[steps.index(token)]
        parts = shown.split([grid.h * grid.w for grid in region.grids])
        for axis in axes[:count, column]:
            axis.set_axis_off()
        for axis, part, grid, image in zip(
            axes[:, column], parts, region.grids, images_of(trace, row), strict=False
        ):
            axis.set_axis_on()
            heat = part.view(grid.h, grid.w).numpy()
            picture(axis, image, grid, heat, mask_of(region, grid), float(shown.max()))
        said = "mean over all tokens" if token is None else word(trace, row, token)
        axes[0, column].set_title(plain(f"{name}, {said}"), fontsize=10)
    chosen = {
        name: trace.regions[row].visual if heads is None else heads
        for name, trace in traces.items()
    }
    for axis, measure in zip(axes[count], ("region", "image"), strict=True):
        overlay(axis, traces, row, chosen, measure)
        if token is not None:
            axis.axvline(token + 1, color="0.6", linewidth=1, zorder=0)
    axes[count, 1].set_ylabel("")
    legend(figure, axes[count, 0])
    return figure


def atlas_figure(region: Region, *, title: str = "") -> Figure:
    """R, H_img and EFR of every head at the question: layers down, heads across.

    Visual heads are outlined, background heads crossed. The scales end at the 2nd and 98th
    percentile.

    Raises:
        ValueError: a row without an image.
    """
    _check_heads(region)
    layers, heads = region.visual.shape
    figure = Figure(figsize=(9.5, max(2.2, min(6.0, 2.6 * layers / heads + 0.9))))
    figure.set_layout_engine("constrained")
    panels = {"R, image focus": "focus", "H_img, nats": "entropy", "EFR = H_img / R": "efr"}
    for axis, (name, field) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        values = getattr(region.heads, field).numpy()
        low, high = np.percentile(values, (2, 98))
        drawn = axis.imshow(values, cmap="cividis", vmin=low, vmax=high, aspect="auto")
        figure.colorbar(drawn, ax=axis, extend="both", shrink=0.9)
        for layer, head in region.visual.nonzero().tolist():
            for color, width in OUTLINE:
                corner = (head - 0.5, layer - 0.5)
                axis.add_patch(Rectangle(corner, 1, 1, fill=False, color=color, linewidth=width))
        crossed = region.background.nonzero()
        axis.plot(crossed[:, 1], crossed[:, 0], "x", color="white", markersize=4)
        axis.set_title(name, fontsize=10)
        axis.set(xlabel="head", ylabel="layer" if field == "focus" else "")
    if title:
        figure.suptitle(plain(title), fontsize=10)
    return figure


def scatter_figure(region: Region, *, title: str = "") -> Figure:
    """H_img against R of every head, and how they correlate (Pearson's r, 95 % interval).

    Raises:
        ValueError: a row without an image.
    """
    _check_heads(region)
    focus, entropy = (x.flatten().numpy() for x in (region.heads.focus, region.heads.entropy))
    r, low, high = pearson(focus, entropy)
    figure = Figure(figsize=(4.6, 3.8), layout="constrained")
    axis = figure.subplots()
    visual = region.visual.flatten().numpy()
    axis.plot(focus[~visual], entropy[~visual], "o", color=COLORS[0], markersize=4, alpha=0.6,
              label="other heads")  # fmt: skip
    axis.plot(focus[visual], entropy[visual], "^", color=COLORS[1], markersize=8,
              markeredgecolor="black", label="visual heads")  # fmt: skip
    axis.set(xlabel="R, image focus", ylabel="H_img, nats")
    axis.legend(fontsize=8)
    lines = [plain(title)] if title else []
    lines.append(f"Pearson r = {r:.2f} (95 %: {low:.2f} to {high:.2f}), {len(focus)} heads")
    axis.set_title("\n".join(lines), fontsize=10)
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG (or by the path's ending); the folder is made if missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without an ending matplotlib would add one, and the path returned would not be there.
    figure.savefig(path, dpi=150, format=None if path.suffix else "png")
    return path


def _check_heads(region: Region) -> None:
    if not bool(region.heads.focus.isfinite().all()):
        raise ValueError("the region is of a row without an image, whose heads have no R and H_img")
