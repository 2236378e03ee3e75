"""The answer to one prompt: what goes on, step by step, once the prompt is through."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vrga.annotations import ModelOutput
from vrga.hf.inputs import ForwardInputs
from vrga.hf.prompt_reader import on_cpu
from vrga.steering.account import Account
from vrga.steering.decode_step import DecodeStep
from vrga.steering.located import Located
from vrga.steering.passes import SteeringError
from vrga.steering.steps import GAIN, OFF, SINGLE, Steps


class Answer:
    """What the steps behind one prompt do, and what became of them.

    Args:
        located: the prompt.

    Attributes:
        step: what attention layers do at each; None where they do what the unpatched model does.
        timeline: of the rows' regions; account: of the steps.
    """

    def __init__(self, located: Located):
        self._located, self.timeline = located, located.timeline
        self.account = Account(located)
        self.step: DecodeStep | None = None

    @property
    def steps(self) -> list[Steps]:
        """What became of the steps, row by row."""
        return self.account.steps(self.step)

    def next_step(self, past: int, inputs: ForwardInputs) -> None:
        """Begin a pass behind `past` keys.

        Raises:
            SteeringError: it has other rows than the prompt.
        """
        ids, tokens = inputs.ids, inputs.width
        ledger = self.account.ledger
        given = None if ids is None else len(ids)
        if given not in (None, ledger.rows):
            raise SteeringError(
                f"the cache's prompt has {ledger.rows} rows, and this pass has {given}: rows "
                "of the cache were chosen or repeated, so it is not known which region is whose; "
                "fill a cache with these rows, or switch the patch off (patch.enabled = False)"
            )
        step, single = self.step, self._located.config.reproduces and tokens > 1
        if step is None:
            ledger.note(past, tokens, GAIN)
            return
        if self.timeline.forget_from(past):  # of rejected drafts
            step.steer_to(self.timeline.now)
        step.begin(past, ids, tokens)
        if not step.applied:
            ledger.note(past, tokens, GAIN)
        elif single:
            ledger.note(past, tokens, SINGLE)
        else:
            ledger.note(past, tokens, *step.chosen_rows)
        opened = step.choice.opened_on_host(past)
        if opened is not None:
            step.probe = self._located.asked.probe_at(opened, self._located.kernels, past)
            if step.probe is not None:
                step.probe.begin(past, self._located.host.holds(inputs))

    def pass_by(self, past: int, ids: Tensor | None, tokens: int) -> None:
        """A pass of `tokens` tokens goes by while the patch is switched off."""
        self.account.ledger.note(past, tokens, OFF)
        if self.step is not None and self.step.spans is not None and ids is not None:
            self.step.spans.advance(ids, past)

    def begin_compiled(self, ids: Tensor | None, *, off: bool) -> None:
        """Begin a compiled step, whose tokens are int64 [B, 1]: the state of its prompt stands.

        Args:
            off: whether the patch is switched off.

        Raises:
            RuntimeError: steps of this configuration cannot be compiled.
        """
        (self.account.off if off else self.account.ran).add_(1)
        if self.step is not None and not off:
            self.step.begin_compiled(ids)

    @on_cpu
    def relocate(self, reached: int) -> None:
        """Steer rows whose region is to be found anew to what this pass's token looks at.

        Args:
            reached: keys in the cache.
        """
        step = self.step
        if step is None or step.probe is None:
            return
        probe, step.probe = step.probe, None
        located = self._located
        length = located.asked.prompt.image.shape[1]
        found_by = located.asked.regions(probe, probe.query, located.config, located.host)
        for row, found in found_by.items():
            # Generated tokens are no image; the other rows' masks end with the prompt.
            found = replace(found, mask=found.mask[:length], image=found.image[:length])
            self.timeline.turn(row, found, opened=probe.query[row], position=reached)
        step.steer_to(self.timeline.now)

    def reorder(self, beams: Tensor, reached: int) -> None:
        """What decides, and regions that were found anew, follow their beams, int64 [B].

        Args:
            reached: keys in the cache.
        """
        step = self.step
        if step is None:
            return
        for followed in (step.spans, step.uncertainty):
            if followed is not None:
                followed.reorder(beams)
        if not self.timeline.relocated:
            return  # all beams of a row still look at one region
        if self.timeline.reorder(beams.tolist(), reached):
            step.steer_to(self.timeline.now)

    def begin_anew(self, start: int) -> None:
        """The end of the prompt comes once more; the answer begins behind `start` keys."""
        self.account.ledger.begin(start)
        if self.step is not None and self.step.uncertainty is not None:
            self.step.uncertainty.forget_from(0)

    def hear(self, logits: Tensor | None, reached: int) -> None:
        """The model's logits of a pass that has ended: the newest are what the next tokens are
        drawn from.

        Args:
            logits: [B, K, V] of the pass's last K tokens, or None where there are none.
            reached: keys in the cache.
        """
        if self.step is None or self.step.uncertainty is None or logits is None:
            return
        visible, last = self._located.asked.prompt.visible, logits[:, -1:].flatten(0, 1)
        if reached == visible.shape[1] and not bool(visible[:, -1].all()):
            # Padded on the right, as a loop by hand may: each row's own last token.
            places = torch.arange(reached, device="cpu")
            own = torch.where(visible, places, -1).amax(1) - (reached - logits.shape[1])
            if bool((own < 0).any()):
                return
            last = logits[torch.arange(len(own), device=logits.device), own.to(logits.device)]
        if len(last):
            self.step.uncertainty.hear(last, reached - 1)

    def hear_compiled(self, output: ModelOutput) -> None:
        """What the whole model returned of a compiled step."""
        if self.step is not None and self.step.uncertainty is not None:
            self.step.uncertainty.hear_compiled(output.logits[:, -1])

    def settle(self) -> None:
        """Compute what waits to be measured."""
        if self.step is not None and self.step.meter is not None:
            self.step.meter.settle()

    def stop_measuring(self) -> None:
        """The recording is over: let go of what it held, the cache among it."""
        if self.step is not None:
            self.step.meter = None
            self.step = self.step if self.step.applied else None
