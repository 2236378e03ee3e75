"""What the heads did, step by step, without output_attentions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vrga.kernels.reference import ENTROPY, GATE, GROUP, MASS

CHUNK = 64  # steps that a recorder makes room for at a time


class Recorder:
    """Takes the kernel's statistics during decoding, into memory made for many steps; no sync.

    Attributes:
        opened, closed: weight of each group of keys under an open and a shut gate, for reading
            the statistics, which are those of attention before steering.
        question: whether groups 2 and 3 are the prompt's text, of the question and other.
        inside: rows inside a <back> span at each step, bool [B], where spans are followed.
        steps: forward passes recorded so far.
    """

    def __init__(self):
        self._slots: list[dict[int, Tensor]] = []  # step -> layer -> [B, H, Q, 3 + groups]
        self._room: dict[tuple, list[Tensor]] = {}
        self.opened = self.closed = (1.0, 1.0)
        self.question = False
        self.inside: list[Tensor] = []

    @property
    def steps(self) -> int:
        return len(self._slots)

    def take(self, layer: int, query: Tensor) -> Tensor:
        """A buffer for one layer of the current step, float32 [B, H, Q, 3 + groups]."""
        if not self._slots or layer in self._slots[-1]:
            self._slots.append({})
        batch, heads, rows, _ = query.shape
        shape = (batch, heads, rows, GROUP + len(self.opened))
        room = self._room.setdefault((layer, shape), [])
        if not room:
            chunk = torch.empty(CHUNK, *shape, dtype=torch.float32, device=query.device)
            room.extend(reversed(chunk.unbind()))
        self._slots[-1][layer] = room.pop()
        return self._slots[-1][layer]

    def stacked(self) -> Tensor:
        """All steps, float32 [steps, L, B, H, 3 + groups], on the CPU; last query rows."""
        layers = range(len(self._slots[0]))
        # One copy from each device, not one for each step and layer.
        found = [torch.stack([step[i][:, :, -1] for step in self._slots]).cpu() for i in layers]
        return torch.stack(found, 1)


@dataclass
class Trace:
    """Attention of each decode step as it was after steering, on the CPU; empty until filled.

    Every tensor is float32 [steps, L, B, H]. Step 0 is the forward pass whose query is the first
    generated token; of a pass with several query rows the last one counts.

    Args:
        image: mass on the image tokens.
        region: mass on the region T (with `VRGAConfig.ablation`: on the image).
        watched: mass on the watched cells; None without `watch`.
        question: mass on the question's text, from the last image or marker before it up to its
            last token; None with `watch`, and for the hard mask and ablations.
        prompt: mass on the prompt's other text, likewise.
        generated: mass on generated tokens, likewise.
        entropy: H_mass in nats, before steering.
        spread: H_img in nats, before steering: the entropy of attention over the image's tokens.
        gate: 1 where the gate was open.
        inside: whether each row was inside a <back> span, bool [steps, B]; None where the patch
            has no tokenizer, or was given no token ids.
    """

    image: Tensor | None = None
    region: Tensor | None = None
    watched: Tensor | None = None
    question: Tensor | None = None
    prompt: Tensor | None = None
    generated: Tensor | None = None
    entropy: Tensor | None = None
    spread: Tensor | None = None
    gate: Tensor | None = None
    inside: Tensor | None = None

    def fill(self, recorder: Recorder) -> None:
        """Read what a recorder took; nothing when no step was steered or measured."""
        if not recorder.steps:
            return
        stats = recorder.stacked()
        self.entropy, self.gate = stats[..., ENTROPY], stats[..., GATE]
        # a = mass * share, so H_mass = mass (H_img - log mass).
        mass = stats[..., MASS].clamp_min(1e-12)
        self.spread = self.entropy / mass + mass.log()
        opened, closed = torch.tensor(recorder.opened), torch.tensor(recorder.closed)
        weight = torch.where(self.gate[..., None] > 0, opened, closed)
        before = stats[..., GROUP:]
        # Group 0 holds the keys off the image and, for the boost, the image outside T.
        rest = (stats[..., MASS] - before[..., 1:].sum(-1)).clamp_min(0) * weight[..., 0]
        after = before * weight
        total = after.sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
        after, rest = after / total[..., None], rest / total
        if len(recorder.inside) == recorder.steps:
            self.inside = torch.stack(recorder.inside).cpu()
        if recorder.question:
            # Before steering, group 0 is the image outside T and what was generated.
            outside = (stats[..., MASS] - before[..., 1]).clamp_min(0) * weight[..., 0]
            outside = outside / total
            self.region, self.question, self.prompt = after[..., 1:].unbind(-1)
            self.image = outside + self.region
            self.generated = (after[..., 0] - outside).clamp_min(0)
            return
        self.image = rest + after[..., 1:].sum(-1)
        self.region = after[..., 1::2].sum(-1)
        self.watched = after[..., 2:].sum(-1) if after.shape[-1] == 4 else None
