"""How heads look at the image: focus R, image entropy, EFR; visual and background heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vrga.config import VRGAConfig


EPS = 1e-12


@dataclass(frozen=True)
class HeadStatistics:
    """One query row's statistics of every head, float32 [L, H] each.

    Args:
        focus: R, mean attention on the image / mean attention on all visible keys.
        entropy: H_img in nats, of the attention renormalised over the image.
        efr: entropy-focus ratio H_img / R; low means it looks hard, at little.
    """

    focus: Tensor
    entropy: Tensor
    efr: Tensor


def head_statistics(
    rows: Tensor, image: Tensor, keys: int | Tensor, images: int | Tensor | None = None
) -> HeadStatistics:
    """Statistics of attention rows (paper, section "visual heads").

    Args:
        rows: attention probabilities, float [L, H, S]; zero on keys the query does not see.
        image: positions of the image tokens, int64 [n].
        keys: number of keys over which the mean attention is taken; one number, or [L].
        images: number of image keys among them, likewise; 0 makes R 0. None: all n.
    """
    images = len(image) if images is None else images
    keys, images = (torch.as_tensor(x, device=rows.device).view(-1, 1) for x in (keys, images))
    on_image = rows[..., image]  # [L, H, n]
    mass = on_image.sum(-1)
    focus = (mass / images.clamp_min(1)) / (rows.sum(-1) / keys + EPS)
    share = on_image / (mass[..., None] + EPS)
    entropy = -torch.xlogy(share, share).sum(-1)
    return HeadStatistics(focus, entropy, entropy / (focus + EPS))


def visual_heads(stats: HeadStatistics, config: VRGAConfig) -> Tensor:
    """H_v, bool [L, H]: EFR in the lowest and R in the highest percentile; else R alone."""
    low, high = percentiles(stats, config)
    focused = stats.focus.double() >= high
    chosen = focused & (stats.efr.double() <= low)
    return torch.where(chosen.any(), chosen, focused)


def percentiles(stats: HeadStatistics, config: VRGAConfig) -> tuple[Tensor, Tensor]:
    """The thresholds of EFR and R over all heads, linearly interpolated, float64 scalars."""
    efr, focus = stats.efr.double().flatten(), stats.focus.double().flatten()
    return (
        torch.quantile(efr, config.efr_percentile / 100),
        torch.quantile(focus, config.focus_percentile / 100),
    )


def background_heads(stats: HeadStatistics, config: VRGAConfig) -> Tensor:
    """H_b, bool [L, H]: heads of the first layers that look past the image."""
    # "The lowest tenth of the layers" is at least one layer, also in a model of fewer than ten.
    layers = max(1, int(config.background_layers * len(stats.focus)))
    chosen = stats.focus < config.background_focus
    chosen[layers if config.background_layers else 0 :] = False
    return chosen


def mean_map(rows: Tensor, heads: Tensor, image: Tensor) -> Tensor:
    """Mean attention of the chosen heads on the image, normalised to sum 1; zeros for no head.

    Args:
        rows: float [L, H, S]; heads: bool [L, H]; image: int64 [n].

    Returns:
        float [n].
    """
    if not heads.any():
        return rows.new_zeros(len(image))
    chosen = rows[heads][:, image].mean(0)
    return chosen / (chosen.sum() + EPS)


def difference_map(
    rows: Tensor, visual: Tensor, background: Tensor, image: Tensor, weight: float
) -> Tensor:
    """relu(norm(mean over H_v) - weight * norm(mean over H_b)), renormalised; float [n]."""
    looked = mean_map(rows, visual, image)
    kept = (looked - weight * mean_map(rows, background, image)).relu()
    return kept / (kept.sum() + EPS)


def choose_ablated(
    config: VRGAConfig,
    focus: Tensor,
    mass: Tensor,
    mass_entropy: Tensor,
    random: torch.Generator,
) -> Tensor:
    """Heads of one layer to ablate, bool [B, H] (paper, head ablation).

    Args:
        focus: R; mass: attention on the image; mass_entropy: H_mass in nats; [B, H] each.
    """
    count = min(config.heads, focus.shape[1])
    if config.ablate == "low_focus":
        score = focus
    elif config.ablate == "random":
        score = torch.rand(focus.shape, generator=random).to(focus.device)
    else:
        # H_img from the sums at hand: a = mass * share, so H_mass = mass (H_img - log mass).
        entropy = mass_entropy / (mass + 1e-12) + (mass + 1e-12).log()
        above = focus > focus.median(1, keepdim=True).values
        score = torch.where(above, entropy / (focus + 1e-12), torch.inf)
    lowest = score.topk(count, largest=False)
    chosen = torch.zeros_like(focus, dtype=torch.bool)
    return chosen.scatter(1, lowest.indices, lowest.values < torch.inf)
