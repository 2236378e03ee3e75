"""One call of generate() on a patched model."""

from __future__ import annotations

import torch
from torch import Tensor

from vrga.hf.announced_prompt import AnnouncedPrompt
from vrga.hf.generate_options import GenerateOptions
from vrga.hf.versions import VERSION
from vrga.recording.waiting import CHUNK
from vrga.steering.decode_step import DecodeStep
from vrga.steering.passes import SteeringError
from vrga.steering.record_block import Recording
from vrga.steering.run import Run


class GenerateCall:
    """What is known of a call while it runs, and dropped with it.

    Args:
        options: of the call; recording: that it is part of, or None.
        outer: the call that it is made in, by an assistant or a logits processor, or None.

    Attributes:
        run: the run of its prompt; None until its first forward pass.
    """

    def __init__(
        self, options: GenerateOptions, recording: Recording | None, outer: GenerateCall | None
    ):
        self.options, self._recording, self.outer = options, recording, outer
        self.run: Run | None = None
        assert options.inputs is not None  # without any, generate() itself says what it misses
        self._inputs, self._width = options.inputs, options.inputs.width
        self._announced = AnnouncedPrompt(options.inputs)
        self._end = 0
        self._chosen = 0

    @property
    def announced(self) -> AnnouncedPrompt | None:
        """The prompt that its first pass begins; None behind that pass."""
        return None if self.run is not None else self._announced

    def begin(self, run: Run, past: int) -> None:
        """Its first pass comes, behind `past` keys, of this run."""
        self.run, self._end, run.in_call = run, self._announced.end(past), True

    def between(self, ids: Tensor, scores: object, **kwargs) -> Tensor:
        """A criterion that stops nothing, called when a token was chosen.

        It sees the newest tokens before generate() waits for the device anyway, so that the next
        pass need not; and it computes what compiled steps left to be computed.
        """
        run = self.run
        step = None if run is None else run.step
        if run is not None and isinstance(step, DecodeStep):
            beams, spans = self.options.beams, step.spans
            if spans is not None and not beams and len(ids) == len(spans.state):
                spans.look_ahead(ids[:, -1:], ids.shape[1] - 1)
            self._chosen += 1
            if self._chosen % CHUNK == 0 and self._recording is not None:
                run.answer.settle()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    def end(self, output: object) -> None:
        """It is through: hear the answer, and account for its steps.

        Raises:
            SteeringError: the patch saw no prompt, or steps are missing.
        """
        sequences = output if isinstance(output, Tensor) else getattr(output, "sequences", None)
        if self.run is None:
            raise SteeringError(
                "generate() returned, but the patch saw no prompt (transformers "
                f"{VERSION}): nothing was steered. The model runs without the "
                "patch's hooks, such as in code compiled before vrga.patch(model) (torch.compile, "
                "model.compile()), or in a generate() of another library that does not call it: "
                "undo that, or run `vrga doctor`"
            )
        if not self.options.own or not isinstance(sequences, Tensor):
            return  # somebody else's generate(), which may return or draw what it likes
        run, given = self.run, self._inputs
        # Of embeddings, generate() returns the new tokens alone.
        said = sequences if given.ids is None else sequences[:, self._width :]
        if self._recording is not None and self._recording.run is run:
            run.answer.settle()
            if not self.options.beams:
                self._recording.recorder.hear(given, said, set(run.options.ends))
        if run.is_located:
            known = self._end == run.answer.account.ledger.start and not self.options.beams
            run.answer.account.said = said if known else None
            expected = self._end - run.answer.account.ledger.start + said.shape[1] - 1
            run.answer.account.check_sum(expected, self.options.beams, run.answer.step)

    def close(self) -> None:
        """However it ended."""
        if self.run is not None:
            self.run.forget_beams()
