"""One prompt on one model, from its first forward pass to the last step of its answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vrga.config import VRGAConfig
from vrga.hf.announced_prompt import AnnouncedPrompt
from vrga.hf.cache import KeyCache
from vrga.hf.host import Host
from vrga.hf.inputs import ForwardInputs
from vrga.hf.prompt_reader import PromptReader, on_cpu
from vrga.kernels.api import Kernels
from vrga.method.prompt import Prompt
from vrga.method.region import Region
from vrga.steering.answer import Answer
from vrga.steering.asked_prompt import AskedPrompt
from vrga.steering.decode_step import DecodeStep
from vrga.steering.located import Located
from vrga.steering.passes import Progress, SteeringError
from vrga.steering.probe import Probe
from vrga.steering.record_block import Recording
from vrga.steering.settings import Options
from vrga.steering.step_setup import StepSetup

if TYPE_CHECKING:
    from vrga.steering.generate_call import GenerateCall


class Run:
    """One prompt: what was found in it, and what its answer's steps do.

    Args:
        host: the model; reader: of its prompts; options: of the user; owner: who follows it.

    Attributes:
        reached: keys that the cache holds after the current pass; end: when the prompt is through.
        cached: whether there is a cache.
        in_call: whether it is of a call of generate(); thread: that it began in.
        looked_for_bias: passes whose masks were looked at for finite biases.
    """

    def __init__(self, host: Host, reader: PromptReader, options: Options, owner: object):
        self.host, self.reader, self.options, self.owner = host, reader, options, owner
        self.in_call = False
        self.thread = threading.current_thread()
        self._opens_answer = False  # whether the prompt ends where an answer begins
        self._asked: AskedPrompt | None = None
        self._found: dict[int, Region] = {}  # of rows whose question has come, amid the prompt
        self._probe: Probe | None = None  # of the prompt
        self._answer: Answer | None = None
        self._kernels = Kernels(options.impl)
        self.reached = self.end = 0
        self.cached = False
        self._cache: Callable[[], object] = lambda: None
        self._reordered: KeyCache | None = None
        self.looked_for_bias = 0

    @property
    def config(self) -> VRGAConfig:
        """The configuration in force for this prompt."""
        return self.options.config

    @property
    def asked(self) -> AskedPrompt:
        """The prompt and its questions; known from `begin` on."""
        assert self._asked is not None
        return self._asked

    @property
    def prompt(self) -> Prompt:
        """What its tokens are; likewise."""
        return self.asked.prompt

    @property
    def is_located(self) -> bool:
        """Whether the prompt is through, so that there are regions, and an answer."""
        return self._answer is not None

    @property
    def answer(self) -> Answer:
        """What goes on behind the prompt, once it is through."""
        assert self._answer is not None
        return self._answer

    @property
    def step(self) -> Probe | DecodeStep | None:
        """What attention layers do in the current pass: a `Probe` while the prompt is read, a
        `DecodeStep` behind it, None where they do what the unpatched model does."""
        return self._probe if self._answer is None else self._answer.step

    @property
    def regions(self) -> list[Region]:
        """What the rows are steered to, once they are located."""
        return self.answer.timeline.now

    @property
    def told(self) -> list[str]:
        """What was found in a prompt that is through, in some words."""
        told = []
        for row, region in enumerate(self.regions[:1]):
            heads, total = int(region.visual.sum()), region.visual.numel()
            told.append(f"{heads} of {total} heads")
            told.append(f"T {int(region.mask.sum())} of {int(region.image.sum())} tokens")
            told.append(str(self.answer.steps[row]))
        if len(self.regions) > 1:
            told.append(f"and {len(self.regions) - 1} more rows")
        return told

    @property
    def progress(self) -> Progress:
        """How far its prompt is."""
        stepped = self._answer is not None and self._answer.account.ledger.passed > 0
        begun = self.in_call or stepped or self._opens_answer
        last = -1 if self._asked is None else self._asked.last_query
        return Progress(self.reached, self.end, last, begun)

    @property
    def cache(self) -> KeyCache | None:
        """Its cache; None where there was none, or it is gone."""
        found = self._cache()
        return None if found is None else KeyCache(found)

    # --- the prompt ---

    def begin(
        self,
        inputs: ForwardInputs,
        past: int,
        announced: AnnouncedPrompt | None,
        held: Prompt | None,
    ) -> None:
        """Read the prompt and set up the probe of its query rows.

        Args:
            inputs: of the first pass, behind `past` keys.
            held: the prompt that the cache holds already, or None.

        Raises:
            ValueError: images and grids that do not match, or a query that cannot be probed.
        """
        asked = self._asked = AskedPrompt.read(
            inputs, past, announced, held,
            reader=self.reader, host=self.host, options=self.options,
        )  # fmt: skip
        self.end, self.reached = asked.end, past + inputs.width
        with torch.device("cpu"):
            self._probe = asked.probe(self.config, self._kernels, past)
            self._begin_probe(inputs, past)

    def _begin_probe(self, inputs: ForwardInputs, past: int) -> None:
        if self._probe is not None:
            self._probe.begin(past, self.host.holds(inputs))

    def end_with(self, end: int, past: int, width: int) -> None:
        """The end of the prompt comes, or comes again, behind its question: `width` tokens behind
        `past` keys. The region stays, and nothing is steered before the prompt's `end`."""
        self.end, self.reached = end, past + width
        if self._answer is not None:
            self._answer.begin_anew(end)

    def go_on(self, inputs: ForwardInputs, past: int) -> None:
        """A further piece of the prompt comes, behind `past` keys."""
        self.reached = past + inputs.width
        self._begin_probe(inputs, past)

    def pass_is_through(
        self, cache: KeyCache | None, recording: Recording | None, call: GenerateCall | None
    ) -> None:
        """A pass ended: bind the cache, find the regions of the questions in it, and after the
        prompt's last piece set up the steering.

        Args:
            recording: of this thread, or None; call: of generate(), that is running in it, or None.

        Raises:
            SteeringError: the cache holds other keys than have gone through the model.
        """
        if cache is not None:
            self._bind(cache)
        elif not self.cached:
            self.reached = max(self.reached, self.end)  # nothing to go on with
        if self._probe is not None:
            queries = self.asked.query.tolist()
            self._found |= self.asked.regions(self._probe, queries, self.config, self.host)
            self._probe.close()
        if not self.is_located and self.progress.complete:
            if call is not None and call.options.beams:
                self._follow_beams()
            self._locate(recording, call)

    def _bind(self, cache: KeyCache) -> None:
        if not cache.static and cache.length != self.reached:
            raise SteeringError(
                f"the cache holds {cache.length} keys after a pass that ends at token "
                f"{self.reached}: the keys are not kept as they were made (gradient checkpointing "
                "in train mode drops them, an eviction method removes some, an adapter's virtual "
                "tokens come first): call model.eval(), use a cache that keeps all keys, or "
                "switch the patch off (patch.enabled = False)"
            )
        if cache.run is not self:
            cache.run = self
            self._cache, self.cached = cache.reference(), True

    @on_cpu
    def _locate(self, recording: Recording | None, call: GenerateCall | None) -> None:
        """Put the rows' regions together, and set up the steering."""
        probe, self._probe = self._probe, None
        located = Located.of(
            self.asked, self._found, self.reached,
            host=self.host, reader=self.reader, options=self.options, kernels=self._kernels,
        )  # fmt: skip
        self._found = {}
        answer = self._answer = Answer(located)
        self._opens_answer = call is None and self.reader.opens_answer(self.prompt)
        if probe is not None:
            takes = recording is not None and recording.takes(self, call)
            cache = self.cache if self._reordered is None else None
            recording = recording if takes else None
            answer.step = StepSetup(located, probe, recording, cache, call is not None).step()

    # --- the answer ---

    def check_config(self, config: VRGAConfig) -> None:
        """The answer is gone on with as its prompt was read.

        Args:
            config: in force now.

        Raises:
            ValueError: it was set since, by whoever goes on with the answer.
        """
        if self.config is not config and self.config != config:
            raise ValueError(
                "patch.config was set since the prompt of this cache was read, by whose numbers "
                "its region was found: set it before the prompt, or set back the one it had"
            )

    def next_step(self, past: int, inputs: ForwardInputs) -> None:
        """Begin a decode pass behind `past` keys."""
        self.reached = past + inputs.width
        self.answer.next_step(past, inputs)

    def pass_by(self, past: int, ids: Tensor | None, tokens: int) -> None:
        """A decode pass goes by while the patch is switched off."""
        self.reached = past + tokens
        self.answer.pass_by(past, ids, tokens)

    def _follow_beams(self) -> None:
        """Let the answer follow its beams, as the cache does; until `forget_beams`."""
        cache = self.cache
        if cache is not None and self._reordered is None:
            self._reordered = cache
            cache.on_reorder(self._reorder)

    def _reorder(self, beams: Tensor) -> None:
        if self._answer is not None:
            self._answer.reorder(beams, self.reached)

    def forget_beams(self) -> None:
        """The search is over."""
        if self._reordered is not None:
            self._reordered.off_reorder()
            self._reordered = None
