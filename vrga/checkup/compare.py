"""Comparing what a patched model does with the plain loops."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

import vrga
from vrga.checkup.models import Subject
from vrga.checkup.plain_look import Look, look
from vrga.checkup.trial import Fault, Skipped
from vrga.config import VRGAConfig
from vrga.method.region import Region

TOKENS = 5  # of each answer: the prompt's and four decode steps
HALF = (torch.float16, torch.bfloat16)
# What lies so near a threshold, as a share of it, may fall on either side of it by rounding.
MARGINS = {torch.float16: 0.1, torch.bfloat16: 0.3}


class Comparison:
    """A model, what it generates, and what it should.

    Args:
        subject: the model, unpatched, and what it is asked.
        impl: of `vrga.patch`.
    """

    def __init__(self, subject: Subject, impl: str = "auto"):
        self.subject, self.model, self.impl = subject, subject.model, impl
        self.one = {
            name: value.to(subject.device) for name, value in subject.rows[0].inputs.items()
        }
        self._kept: dict[tuple, Tensor] = {}
        self._attention: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def generate(self, inputs: dict[str, Tensor], **options) -> tuple[Tensor, Tensor]:
        """Greedy generation that never stops early: new tokens [B, T] and logits [B, T, V].

        Images are no answer: a random model might give the token of one.
        """
        options = dict(max_new_tokens=TOKENS, min_new_tokens=TOKENS) | options
        out = self.model.generate(
            **inputs, do_sample=False, suppress_tokens=self.subject.vision_tokens,
            return_dict_in_generate=True, output_logits=True, **options,
        )  # fmt: skip
        return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)

    def patched(
        self, config: VRGAConfig, inputs: dict[str, Tensor], impl: str | None = None, **options
    ) -> tuple[Tensor, Tensor, list[Region]]:
        """What a patched model generates, and its regions."""
        with vrga.patch(self.model, config, impl=impl or self.impl) as patch:
            tokens, logits = self.generate(inputs, **options)
            return tokens, logits, patch.region

    @cached_property
    def own(self) -> tuple[Tensor, Tensor]:
        """What the unpatched model generates from the first prompt."""
        return self.generate(self.one)

    @cached_property
    def rounding(self) -> tuple[float, float]:
        """Largest difference between unpatched model and loops; largest logit."""
        tokens, logits = self.own
        wanted = self.loops(0, tokens[0].tolist())
        return distance(logits[0], wanted), float(wanted.abs().max())

    @property
    def tolerance(self) -> float:
        """Differences of logits that are rounding."""
        rounding, scale = self.rounding
        return max(5 * rounding, 1e-4 * scale)

    def loops(
        self,
        row: int,
        tokens: list[int],
        config: VRGAConfig | None = None,
        found: Look | None = None,
    ) -> Tensor:
        """The loops' logits for an answer; kept, since most checks bring the same one."""
        steered = found and (config, frozenset(found.visual), frozenset(found.region))
        key = row, tuple(tokens), steered
        if key not in self._kept:
            asked = self.subject.rows[row]
            self._kept[key] = self.subject.loops.logits(asked, tokens, config, found)
        return self._kept[key]

    def look(self, row: int, config: VRGAConfig, visual: set | None = None) -> Look:
        """Where a prompt's question looks, by the loops."""
        if row not in self._attention:
            self._attention[row] = self.subject.loops.attention(self.subject.rows[row])
        return look(*self._attention[row], self.subject.rows[row].pictures, config, visual)

    def check_region(self, row: int, found: Region, config: VRGAConfig, pads: int = 0) -> float:
        """Compare a region with that of the loops; the largest difference of the maps."""
        asked = self.subject.rows[row]
        if found.query - pads != asked.query:
            raise Fault(
                f"row {row}: the patch took token {found.query - pads} for the end of the "
                f"question, which is token {asked.query}"
            )
        if not asked.pictures:
            if found.mask.any():
                raise Fault(f"row {row} has no image, but a region")
            return 0.0
        margin = MARGINS.get(self.subject.dtype, 1e-4)
        own, visual = self.look(row, config), pairs(found.visual)
        for at in visual ^ own.visual:
            focus, efr = own.head_focus[at], own.efr[at]
            if abs(focus - own.high) > margin * own.high and abs(efr - own.low) > margin * own.low:
                raise Fault(
                    f"row {row}: head {at} of layer {at[0]} is "
                    f"{'' if at in visual else 'not '}a visual head, by the loops it is "
                    f"{'not' if at in visual else 'one'}"
                )
        if visual != own.visual:
            own = self.look(row, config, visual)
        image = [position for picture in asked.pictures for position in picture.positions]
        ratio = dict(zip(image, own.ratio, strict=True))
        focus = set((found.focus - pads).tolist())
        wrong = [
            place for place in focus ^ own.focus
            if not abs(ratio.get(place, float("nan")) - own.threshold) <= margin * own.threshold
        ]  # fmt: skip
        region = positions(found, pads)
        if wrong or (focus == own.focus and region != own.region):
            raise Fault(
                f"row {row}: T is {sorted(region)}, by the loops {sorted(own.region)}; before "
                f"dilation {sorted(focus)}, by the loops {sorted(own.focus)}"
            )
        told = torch.cat([part.flatten() for part in found.map])
        return distance(told, torch.from_numpy(own.map))

    def check_logits(
        self, row: int, tokens: Tensor, logits: Tensor, config: VRGAConfig, found: Region,
        pads: int = 0,
    ) -> float:  # fmt: skip
        """Compare a row's steered logits [T, V] with the loops; the largest difference.

        The loops steer to the region that the patch says it found, so that a wrong region shows
        where regions are compared, and here only what was done with it.
        """
        asked, answer = self.subject.rows[row], tokens.tolist()
        unsteered = self.loops(row, answer)
        if asked.pictures:
            own = self.look(row, config, pairs(found.visual))
            wanted = self.loops(row, answer, config, replace(own, region=positions(found, pads)))
        else:
            wanted = unsteered
        difference, effect = distance(logits, wanted), distance(wanted, unsteered)
        rounding, told = self.tolerance, f"row {row}: the logits differ by {difference:.1e}"
        if asked.pictures and self.subject.dtype in HALF:
            self._check_share(told, logits, wanted, unsteered)
        elif not difference <= rounding:
            if asked.pictures and distance(logits, unsteered) <= rounding:
                told += " because nothing is steered: they are those of the unpatched model"
            else:
                told += (
                    f" from the loops, where rounding explains {rounding:.1e} and steering changes "
                    f"them by {effect:.1e}"
                )
            raise Fault(told, difference)
        elif asked.pictures and effect < 4 * rounding:
            by_loops = self.loops(row, answer, config, self.look(row, config))
            wanted_effect = distance(by_loops, unsteered)
            if wanted_effect >= 4 * rounding:
                raise Fault(
                    f"row {row}: steering to the region that the patch tells of changes nothing, "
                    f"to that of the loops it changes the logits by {wanted_effect:.1e}",
                    wanted_effect,
                )
            raise Skipped(
                f"with this prompt, steering changes the logits by {effect:.1e}, which cannot be "
                f"told from rounding ({rounding:.1e})"
            )
        return difference

    def _check_share(self, told: str, logits: Tensor, wanted: Tensor, unsteered: Tensor) -> None:
        """In half precision: how much of what steering should change has changed.

        Rounding moves single logits as far as steering does, but not in the same direction.
        """
        changed, wanted = (x.cpu().double()[1:] - unsteered[1:] for x in (logits, wanted))
        tokens, own = self.own
        noise = own[0].cpu().double() - self.loops(0, tokens[0].tolist())
        if not wanted.any():
            raise Fault(
                f"{told} at most: steering to the region that the patch tells of does nothing"
            )
        if float(wanted.square().mean()) < float(noise.square().mean()):
            raise Skipped(
                f"with this prompt, steering cannot be told from rounding in {self.subject.dtype}"
            )
        share = float((changed * wanted).sum() / (wanted * wanted).sum())
        if not 0.7 <= share <= 1.3:
            raise Fault(
                f"{told} from the loops; of what steering should have changed, {share:.0%} has",
                distance(logits, unsteered + torch.nn.functional.pad(wanted, (0, 0, 1, 0))),
            )

    def follows(self, config: VRGAConfig, **options) -> float:
        """Generate from the first prompt and compare region and steps with the loops."""
        tokens, logits, regions = self.patched(config, self.one, **options)
        self.check_region(0, regions[0], config)
        return self.check_logits(0, tokens[0], logits[0], config, regions[0])


def distance(found: Tensor, wanted: Tensor) -> float:
    """Largest absolute difference; NaN where something is not a number."""
    return float((found.detach().cpu().double() - wanted.detach().cpu().double()).abs().max())


def same(found: Tensor, wanted: Tensor, told: str = "") -> float:
    """0 where both are equal bit for bit; a Fault otherwise."""
    if torch.equal(found, wanted):
        return 0.0
    figure = distance(found, wanted)
    raise Fault(" ".join(filter(None, (f"the logits differ by {figure:.1e}", told))), figure)


def pairs(heads: Tensor) -> set[tuple[int, int]]:
    """Heads bool [L, H] as pairs (layer, head)."""
    return set(map(tuple, heads.nonzero().tolist()))


def positions(region: Region, pads: int) -> set[int]:
    """T as positions in the row without its `pads` tokens of padding."""
    return set((region.mask.nonzero().flatten() - pads).tolist())
