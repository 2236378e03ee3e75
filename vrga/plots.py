"""Pictures of where the model looked (extra `plot`: matplotlib)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from vrga.region import Region
from vrga.trace import Trace

# Okabe and Ito's colours, which differ for colour-blind eyes; the line styles differ in grey.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "black")
# Black outline over white: it stands out on any image, in grey and for colour-blind eyes.
_OUTLINE = (("white", 3.5), ("black", 1.5))


def region_figure(
    images: list[Image.Image], region: Region, *, title: str = "", answers: dict | None = None
) -> Figure:
    """The relevance map over each image of a row, and the outline of its region T.

    Args:
        images: the row's images in order, of any size.
        region: the row's region, from `patch.region[row]`.
        title: a line above, e.g. the question.
        answers: lines below, by name.

    Returns:
        A matplotlib figure with the image beside the image with the map, per image.

    Raises:
        ValueError: not as many images as the region has.
    """
    if len(images) != len(region.map) or not images:
        raise ValueError(f"{len(images)} images given; the region has {len(region.map)}")
    figure = Figure(figsize=(7, 3.6 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), 2, squeeze=False)
    for (plain, marked), image, relevance, grid in zip(
        axes, images, region.map, region.grids, strict=True
    ):
        mask = region.mask[grid.index].view(grid.h, grid.w).numpy()
        for axis in (plain, marked):
            axis.imshow(image, extent=(0, grid.w, grid.h, 0))
            axis.set(xticks=[], yticks=[], aspect="equal" if _square(image, grid) else "auto")
        heat = relevance.float().numpy()
        # The map darkens what was not looked at, so that the image's colours stay true.
        shade = np.zeros((*heat.shape, 4))
        shade[..., 3] = 0.65 * (1 - heat / max(heat.max(), 1e-12))
        marked.imshow(shade, extent=(0, grid.w, grid.h, 0), interpolation="nearest")
        for color, width in _OUTLINE:
            for (x0, y0), (x1, y1) in _edges(mask):
                marked.plot((x0, x1), (y0, y1), color=color, linewidth=width)
        plain.set_title("image", fontsize=9)
        marked.set_title("relevance (bright) and region T (outline)", fontsize=9)
    lines = [title] if title else []
    lines += [f"{name}: {text}" for name, text in (answers or {}).items()]
    if lines:
        figure.suptitle("\n".join(lines).replace("$", r"\$"), fontsize=10)
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
        ValueError: an empty trace, or one that measured watched cells instead.
    """
    if trace.question is None:
        raise ValueError(
            "the trace has no attention on question and generated text: record it with "
            "patch.record(), without watch, around a call of generate"
        )
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axis = figure.subplots()
    styles = {"image": "-", "region": "--", "question": "-.", "generated": ":"}
    for (name, style), color in zip(styles.items(), _COLORS, strict=True):
        shares = getattr(trace, name)[:, :, row]  # [steps, L, H]
        mean = shares.mean((1, 2)) if heads is None else shares[:, heads].mean(1)
        axis.plot(range(1, len(mean) + 1), mean.numpy(), style, color=color, label=name)
    inside = [] if trace.inside is None else trace.inside[:, row].int().tolist()
    edges = np.diff([0, *inside, 0])
    for start, end in zip(np.nonzero(edges > 0)[0], np.nonzero(edges < 0)[0], strict=True):
        axis.axvspan(start + 0.5, end + 0.5, color="0.85", zorder=0, label="<back>")
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), fontsize=8, loc="outside upper center", ncols=5)
    axis.set(xlabel="generated token", ylabel="share of attention", ylim=(0, None))
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG (or by the path's ending); the folder is made if missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _square(image: Image.Image, grid) -> bool:
    """Whether the image's own proportions are those of its token grid."""
    return abs(image.width * grid.h - image.height * grid.w) < max(image.width, image.height)


def _edges(mask: np.ndarray) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The outline of True cells: segments ((x0, y0), (x1, y1)) on the grid lines."""
    padded = np.pad(mask, 1)
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    edges = [((x, y), (x + 1, y)) for y, x in zip(rows.tolist(), columns.tolist(), strict=True)]
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    return edges + [
        ((x, y), (x, y + 1)) for y, x in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
