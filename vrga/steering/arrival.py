"""A forward pass that comes, and what is known of it when it is told what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vrga.hf.announced_prompt import AnnouncedPrompt
from vrga.hf.inputs import ForwardInputs
from vrga.hf.prompt_reader import PromptReader
from vrga.steering.generate_call import GenerateCall
from vrga.steering.passes import Pass, what_is
from vrga.steering.run import Run


@dataclass(frozen=True)
class Arrival:
    """A forward pass before the multimodal model.

    Args:
        inputs: of the pass; run: that its cache belongs to, or None.
        call: of generate(), that it is in, or None.
        announced: the prompt that was told of and has not come yet, or None.
    """

    inputs: ForwardInputs
    run: Run | None
    call: GenerateCall | None = None
    announced: AnnouncedPrompt | None = None

    @property
    def held(self) -> int | None:
        """Keys in the cache before the pass; None without a cache."""
        cache, run, announced = self.inputs.cache, self.run, self.announced
        if cache is None:
            return None
        if not cache.static or run is None:
            return cache.length
        # Within generate() nobody clears the cache between steps; asked for its length, one on a
        # GPU would have to be waited for, and a compiled step would have to leave its graph.
        unasked = self.call is not None or torch.compiler.is_compiling()
        if announced is None and self.inputs.width == 1 and run.progress.complete and unasked:
            return run.reached
        length = cache.length
        # Older versions count a static cache's keys in one row, without padding.
        if length and announced is not None and announced.whole(length):
            return announced.width - self.inputs.width
        return length

    def what(self, reader: PromptReader, ends: Callable[[], set[int]]) -> Pass:
        """What the pass is.

        Args:
            reader: of prompts, which tells whether words open a turn; ends: makes the ids
                that end one.

        Raises:
            SteeringError: it cannot be what it seems.
        """
        inputs, run, call, announced = self.inputs, self.run, self.call, self.announced
        return what_is(
            inputs.width,
            held=self.held,
            progress=None if run is None else run.progress,
            announced=None if announced is None else announced.end,
            # Asked for where tokens follow a prompt, not at every step.
            opens_turn=lambda: reader.opens_turn(inputs, ends(), announced is not None),
            brings_images=inputs.brings_images,
            in_call=call is not None,
            may_cut=call is None or call.options.drafts,
        )
