"""What the heads did, step by step, without output_attentions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vrga.kernels.reference import ENTROPY, GATE, GROUP, MASS


class Recorder:
    """Takes the kernel's statistics during decoding; small tensors on the device, no host sync.

    Attributes:
        opened, closed: weight of each group of keys under an open and a shut gate, for reading
            the statistics, which are those of attention before steering.
    """

    def __init__(self):
        self.steps: list[dict[int, Tensor]] = []
        self.opened = self.closed = (1.0, 1.0)

    def take(self, layer: int, query: Tensor) -> Tensor:
        """A buffer for one layer of the current step, float32 [B, H, Q, 3 + groups]."""
        if not self.steps or layer in self.steps[-1]:
            self.steps.append({})
        batch, heads, rows, _ = query.shape
        shape = (batch, heads, rows, GROUP + len(self.opened))
        buffer = torch.empty(shape, dtype=torch.float32, device=query.device)
        self.steps[-1][layer] = buffer
        return buffer

    def stacked(self) -> Tensor:
        """All steps, float32 [steps, L, B, H, 3 + groups], on the CPU; last query rows."""
        layers = range(len(self.steps[0]))
        return torch.stack(
            [torch.stack([step[i][:, :, -1].cpu() for i in layers]) for step in self.steps]
        )


@dataclass
class Trace:
    """Attention of each decode step as it was after steering, on the CPU; empty until filled.

    Every tensor is float32 [steps, L, B, H]. Step 0 is the forward pass whose query is the first
    generated token; of a pass with several query rows the last one counts.

    Args:
        image: mass on the image tokens.
        region: mass on the region T (with `VRGAConfig.ablation`: on the image).
        watched: mass on the watched cells; None without `watch`.
        entropy: H_mass in nats, before steering.
        gate: 1 where the gate was open.
    """

    image: Tensor | None = None
    region: Tensor | None = None
    watched: Tensor | None = None
    entropy: Tensor | None = None
    gate: Tensor | None = None

    def fill(self, recorder: Recorder) -> None:
        """Read what a recorder took; nothing when no step was steered or measured."""
        if not recorder.steps:
            return
        stats = recorder.stacked()
        self.entropy, self.gate = stats[..., ENTROPY], stats[..., GATE]
        opened, closed = torch.tensor(recorder.opened), torch.tensor(recorder.closed)
        weight = torch.where(self.gate[..., None] > 0, opened, closed)
        before = stats[..., GROUP:]
        # Group 0 holds the keys off the image and, for the boost, the image outside T.
        rest = (stats[..., MASS] - before[..., 1:].sum(-1)).clamp_min(0) * weight[..., 0]
        after = before * weight
        total = after.sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
        after, rest = after / total[..., None], rest / total
        self.image = rest + after[..., 1:].sum(-1)
        self.region = after[..., 1::2].sum(-1)
        self.watched = after[..., 2:].sum(-1) if after.shape[-1] == 4 else None
