"""Pictures of where the model looked (extra `plot`: matplotlib); one of each kind a function."""

from vrga.plots.figures import (
    atlas_figure,
    compare_figure,
    region_figure,
    save,
    scatter_figure,
    token_figure,
    trend_figure,
)

__all__ = [
    "atlas_figure",
    "compare_figure",
    "region_figure",
    "save",
    "scatter_figure",
    "token_figure",
    "trend_figure",
]
