"""The account of one prompt's answer: what became of its steps, and whether all are there."""

from __future__ import annotations

import torch
from torch import Tensor

from vrga.hf.versions import VERSION
from vrga.steering.chosen_rows import opening
from vrga.steering.decode_step import DecodeStep
from vrga.steering.located import Located
from vrga.steering.passes import SteeringError
from vrga.steering.steps import (
    EMPTY,
    GAIN,
    IMAGELESS,
    OFF,
    SHALLOW,
    UNSURE,
    Ledger,
    Steps,
    answer_ends,
)


class Account:
    """What became of the steps behind one prompt.

    Args:
        located: the prompt.

    Attributes:
        ledger: notes of the steps.
        said: ids of the answer, int64 [B, T], where generate() returned them.
        ran, off: compiled steps that have run, counted by themselves, and those of them that ran
            while the patch was switched off; int64 [1] on the device.
    """

    def __init__(self, located: Located):
        self._located = located
        opens = opening(located.config)
        self.ledger = Ledger(len(located.timeline.now), located.reached, opens)
        self.said: Tensor | None = None
        device = located.asked.device
        self.ran, self.off = torch.zeros(2, 1, dtype=torch.int64, device=device).unbind()
        for counter in (self.ran, self.off):
            torch._dynamo.mark_static_address(counter)

    def _count_compiled(self, step: DecodeStep | None) -> None:
        """Note the steps that compiled code ran, by its own count; waits for the device."""
        ran, off = int(self.ran), int(self.off)
        if not ran + off:
            return
        left = {OFF: torch.full((self.ledger.rows,), off)}
        if step is not None and step.applied:
            left |= {step.choice.reason: step.left}
        else:
            left |= {GAIN: torch.full((self.ledger.rows,), ran)}
        self.ledger.note_compiled(ran + off, left)

    def steps(self, step: DecodeStep | None) -> list[Steps]:
        """What became of the answer's steps, row by row.

        Args:
            step: what attention layers do at them.
        """
        self._count_compiled(step)
        ends, timeline = None, self._located.timeline
        if self.said is not None and len(self.said) == self.ledger.rows:
            ends = answer_ends(self.said, set(self._located.options.ends))
        found = self.ledger.of_rows(ends)
        config = self._located.config
        chosen = config.method == "ablation" and config.ablate != "given"
        idle = chosen and config.first_layer >= self._located.host.shape[0]
        for row, region in enumerate(timeline.now):
            # A region found anew may be empty where the first was not, and the other way round.
            if not region.grids:
                found[row] = found[row].all_left_alone(IMAGELESS)
            elif config.boosts and not timeline.relocated and not region.mask.any():
                unsure = region.certainty < config.abstain
                found[row] = found[row].all_left_alone(UNSURE if unsure else EMPTY)
            elif idle:
                found[row] = found[row].all_left_alone(SHALLOW)
        return found

    def check_sum(self, expected: int, beams: bool, step: DecodeStep | None) -> None:
        """Every step must be accounted for.

        Args:
            expected: steps of the answer so far; a search with beams may have gone on behind it.
            step: what attention layers do at them.

        Raises:
            SteeringError: it is not.
        """
        if not any(self._located.asked.prompt.grids):
            return
        self._count_compiled(step)
        # Drafts may have gone on behind the answer; its last token is never a query.
        self.ledger.forget_from(self.ledger.start + expected)
        passed = self.ledger.passed
        if passed == expected or (beams and passed > expected):
            return
        raise SteeringError(
            f"{expected + 1} tokens were generated, in {expected} steps; the patch saw {passed} "
            f"(transformers {VERSION}): the answer was not, or not wholly, "
            "steered. Something ran the model without the patch's hooks, such as code compiled "
            "before vrga.patch(model) (torch.compile, model.compile()), or cut the cache: compile "
            "after patching, generate without your own compilation, or run `vrga doctor`"
        )
