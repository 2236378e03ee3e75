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

    def at(self, row: Tensor) -> HeadStatistics:
        """Of several rows, [L, H, Q], those of one for each head, int64 [L, H, 1]."""
        return HeadStatistics(*(_at(x, row) for x in (self.focus, self.entropy, self.efr)))


@dataclass(frozen=True)
class ImageSums:
    """What the attention of query rows adds up to, of every head; float [..., H] each.

    Args:
        total: attention on all keys, which is 1.
        mass: attention on the image.
        entropy: H_img in nats, of the attention renormalised over the image.
    """

    total: Tensor
    mass: Tensor
    entropy: Tensor

    @property
    def mass_entropy(self) -> Tensor:
        """H_mass = -sum_I a log a in nats, of the attention that is not renormalised."""
        # With a = share (mass + EPS), as `image_sums` has it.
        held = self.mass + EPS
        return held * self.entropy - self.mass * held.log()

    def at(self, row: Tensor) -> ImageSums:
        """See `HeadStatistics.at`."""
        return ImageSums(*(_at(x, row) for x in (self.total, self.mass, self.entropy)))

    def cpu(self) -> ImageSums:
        """The same on the CPU."""
        return ImageSums(self.total.cpu(), self.mass.cpu(), self.entropy.cpu())


def _at(values: Tensor, row: Tensor) -> Tensor:
    return values.gather(-1, row).squeeze(-1)


def image_sums(rows: Tensor, image: Tensor, absent: Tensor | None = None) -> ImageSums:
    """What attention rows add up to on the image I: mass = sum_I a, and H_img = -sum_I s log s,
    of the shares s = a / mass.

    Args:
        rows: attention probabilities, float [..., H, S]; zero on keys the query does not see.
        image: positions of the image tokens, int64 [n] or [..., 1, n].
        absent: True where `image` is filled up, because samples have images of several sizes; bool
            of its shape, or None.
    """
    on_image = rows.gather(-1, image.expand(*rows.shape[:-1], -1))
    if absent is not None:
        on_image.masked_fill_(absent, 0)
    mass = on_image.sum(-1)
    share = on_image.div_(mass[..., None] + EPS)
    return ImageSums(rows.sum(-1), mass, -torch.xlogy(share, share).sum(-1))


def head_statistics(rows: Tensor, image: Tensor, keys: int | Tensor) -> HeadStatistics:
    """Statistics of attention rows (paper, section "visual heads").

    Args:
        rows: attention probabilities, float [L, H, S]; zero on keys the query does not see.
        image: positions of the image tokens, int64 [n].
        keys: number of keys over which the mean attention is taken; one number, or [L].
    """
    return statistics_of(image_sums(rows, image), keys, len(image))


def statistics_of(sums: ImageSums, keys: int | Tensor, images: int | Tensor) -> HeadStatistics:
    """Phase 1, step 1: R, H_img and EFR of heads [L, H] from what their rows add up to.

    R = mean(a over I) / mean(a over visible keys) = (mass / |I|) / (1 / S); EFR = H_img / R; see
    `head_statistics`. `images`: number of image keys among `keys`, likewise; 0 makes R 0. Of
    several rows, [L, H, Q], both are [L, Q].
    """
    mass, entropy = sums.mass, sums.entropy
    keys, images = (torch.as_tensor(x, device=mass.device) for x in (keys, images))
    if mass.ndim == 3:
        keys, images = keys.expand(len(mass), -1)[:, None], images.expand(len(mass), -1)[:, None]
    else:
        keys, images = keys.view(-1, 1), images.view(-1, 1)
    focus = (mass / images.clamp_min(1)) / (sums.total / keys + EPS)
    return HeadStatistics(focus, entropy, entropy / (focus + EPS))


def visual_heads(stats: HeadStatistics, config: VRGAConfig) -> Tensor:
    """Step 2: H_v = {EFR <= its 5th percentile and R >= its 95th}, bool [L, H]; with no such head,
    those of R alone."""
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
    """Step 3: H_b = {R < 0.01} in the lowest tenth of the layers, bool [L, H]: heads that look past
    the image, and show where attention sinks sit."""
    # "The lowest tenth of the layers" is at least one layer, also in a model of fewer than ten.
    layers = max(1, int(config.background_layers * len(stats.focus)))
    chosen = stats.focus < config.background_focus
    chosen[layers if config.background_layers else 0 :] = False
    return chosen


def normalised(attention: Tensor) -> Tensor:
    """Attention on the image as shares of it, which sum to 1; zeros stay zeros. Float [n]."""
    return attention / (attention.sum() + EPS)


def difference_map(visual: Tensor, background: Tensor, weight: float) -> Tensor:
    """Step 4: norm(relu(norm(mean_Hv a) - weight norm(mean_Hb a))), the map over I; float [n].

    Args:
        visual, background: mean attention of H_v and H_b on the image, float [n]; zeros for no
            head.
    """
    return normalised((normalised(visual) - weight * normalised(background)).relu())


def choose_ablated(
    config: VRGAConfig, focus: Tensor, mass: Tensor, mass_entropy: Tensor, random: torch.Generator
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
        entropy = mass_entropy / (mass + EPS) + (mass + EPS).log()
        above = focus > focus.median(1, keepdim=True).values
        score = torch.where(above, entropy / (focus + EPS), torch.inf)
    lowest = score.topk(count, largest=False)
    chosen = torch.zeros_like(focus, dtype=torch.bool)
    return chosen.scatter(1, lowest.indices, lowest.values < torch.inf)
