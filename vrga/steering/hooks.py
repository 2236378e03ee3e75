"""The hooks on a patched model: before and behind its passes, and in the place of generate()."""

from __future__ import annotations

import copy

import torch
from torch import nn

from vrga.hf.announced_prompt import AnnouncedPrompt
from vrga.hf.attention import KEYWORD
from vrga.hf.cache import cache_among
from vrga.hf.host import Host
from vrga.hf.inputs import ForwardInputs
from vrga.hf.logits import logits_of
from vrga.hf.prompt_reader import PromptReader
from vrga.steering.arrival import Arrival
from vrga.steering.chosen_rows import check_singly
from vrga.steering.decode_step import DecodeStep
from vrga.steering.forward_pass import ForwardPass
from vrga.steering.generate_call import GenerateCall
from vrga.steering.passes import Pass, SteeringError, check_compiled
from vrga.steering.probe import Probe
from vrga.steering.record_block import Recording
from vrga.steering.run import Run
from vrga.steering.settings import Options, Settings
from vrga.steering.thread_state import ThreadState


class Hooks:
    """The hooks of one patch.

    Args:
        host: the model; reader: of its prompts; settings: what the patch has set, read at every
            pass.

    Attributes:
        recording: the block of `Patch.record` that is open, or None.
    """

    def __init__(self, host: Host, reader: PromptReader, settings: Settings):
        self._host, self._reader, self.settings = host, reader, settings
        self._here = ThreadState(host.cache_name)
        self._last: Run | None = None  # of the last prompt in any thread
        self.recording: Recording | None = None

    def attach(self) -> None:
        """Put them on the model; raises as `Attachment.attach`."""
        names = "before", "behind", "inject", "after", "hear"
        hooks = {name: getattr(self, name) for name in names}
        self._host.attachment.attach(hooks, self.generate)

    def detach(self) -> None:
        """Take them off. Doing it twice does nothing."""
        self._host.attachment.detach()
        self._here.passing = None

    def __deepcopy__(self, memo: dict) -> Hooks:
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        own = {name: value for name, value in vars(self).items() if name != "_last"}
        vars(twin).update({k: copy.deepcopy(v, memo) for k, v in own.items()}, _last=None)
        return twin

    def __reduce__(self) -> str | tuple:
        return self.settings.__reduce__()  # which says why not

    @property
    def run(self) -> Run | None:
        """The last prompt of this thread, or a later one of a thread that has ended."""
        own, last = self._here.run, self._last
        if own is None or (last is not None and not last.thread.is_alive()):
            return last
        return own

    @property
    def located(self) -> Run | None:
        """The same, where it is through."""
        return self.run if self.run is not None and self.run.is_located else None

    def announce(self, announced: AnnouncedPrompt) -> None:
        """A prompt comes, in a loop by hand."""
        self._here.announced = announced

    def generate(self, *args, **kwargs) -> object:
        """generate() of the patched model: resolve its options, follow it, account for it."""
        if not self.settings.enabled:
            return self._host.generate(args, kwargs, None)
        options = self._host.options(args, kwargs)
        if options.inputs is None:
            return self._host.generate(args, kwargs, None)  # which says what it misses
        if options.drafts:
            check_singly(self.settings.config)
        self._host.check_parts()
        self._host.attachment.set_aside_compiled()
        here, outer = self._here, self._here.call
        call = here.call = GenerateCall(options, self.recording, outer)
        here.announced = None
        config = self.settings.config
        followed = self.recording is not None or "back" in (config.when, config.relocate)
        try:
            output = self._host.generate(args, kwargs, call.between if followed else None)
        finally:
            here.call = outer
            call.close()
        if call.run is not None:
            here.run = self._last = call.run
        if call.run is not None or (self.settings.enabled and self._host.attachment.is_attached):
            call.end(output)
        return output

    # --- before the multimodal model, and behind it ---

    def before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Before the multimodal model: decide what this forward pass is."""
        if torch.compiler.is_compiling():
            self._compiled_step(args, kwargs)
            return None
        here, call = self._here, self._here.call
        here.passing = here.through = None
        if not self.settings.enabled:
            self._pass_by(args, kwargs)
            return None
        self._host.attachment.check()
        inputs = self._host.read(args, kwargs)
        run = None if inputs.cache is None else self._mine(inputs.cache.run)
        announced = here.announced if call is None else call.announced
        arrival = Arrival(inputs, run, call, announced)
        found = arrival.what(self._reader, lambda: self._ends)
        if found.kind == "split":
            return self._split(module, inputs, found)
        self._enter(arrival, found)
        return None

    @property
    def _ends(self) -> set[int]:
        """Ids that end a turn, as this call has them."""
        call = self._here.call
        return self._host.end_tokens | (set() if call is None else call.options.end_tokens)

    def _mine(self, run: Run | None) -> Run | None:
        """A run, if it is of this patch: another's, or of one taken off, is a prompt not seen."""
        return run if run is not None and run.owner is self else None

    def _enter(self, arrival: Arrival, found: Pass) -> ForwardPass:
        """A pass of one kind begins."""
        here, call = self._here, self._here.call
        inputs, run, announced = arrival.inputs, arrival.run, arrival.announced
        held = run.prompt if run is not None and found.past else None
        answering = run is not None and run.progress.answering
        if found.kind == "prompt":
            options = Options.of(self.settings, self._ends)
            run = Run(self._host, self._reader, options, self)
        assert run is not None  # a prompt alone comes without one
        if announced is not None:
            here.announced = None
            if call is not None:
                call.begin(run, found.past)
        if found.kind == "prompt":
            run.begin(inputs, found.past, announced, held)
        elif found.kind == "piece":
            run.go_on(inputs, found.past)
        elif found.kind == "rest":
            end = run.end
            if not answering:
                assert announced is not None  # else it is not known to be a rest
                end = announced.end(found.past)
            run.end_with(end, found.past, inputs.width)
        else:
            if call is None or announced is not None:
                run.check_config(self.settings.config)
            run.next_step(found.past, inputs)
        passing = here.passing = ForwardPass(run, found, inputs)
        return passing

    def _compiled_step(self, args: tuple, kwargs: dict) -> None:
        """A compiled pass: the state of its prompt stands."""
        if not self.settings.enabled:
            run = self._mine(self._host.run_in(self._host.named(args, kwargs)))
            if run is not None and run.is_located:
                run.answer.begin_compiled(None, off=True)
            return
        inputs = self._host.read(args, kwargs)
        check_compiled(inputs.width)
        run = None if inputs.cache is None else self._mine(inputs.cache.run)
        if run is None:
            raise RuntimeError(
                "a compiled step without the cache of a prompt that the patch has seen: run the "
                "prompt on the patched model, uncompiled, and hand its static cache on"
            )
        if run.is_located:
            run.answer.begin_compiled(inputs.ids, off=False)

    def _pass_by(self, args: tuple, kwargs: dict) -> None:
        """A pass goes by while the patch is switched off: its prompt's account goes on."""
        run = self._mine(self._host.run_in(self._host.named(args, kwargs)))
        if run is None or not run.is_located:
            return
        inputs = ForwardInputs.of(self._host.named(args, kwargs))
        past = Arrival(inputs, run).held
        assert past is not None  # the run was found by its cache
        run.pass_by(past, inputs.ids, inputs.width)
        self._here.through = run, inputs.width

    def _split(self, module: nn.Module, inputs: ForwardInputs, found: Pass) -> tuple[tuple, dict]:
        """Run the prompt alone, then go on with what assisted decoding drafted behind it.

        The region is known only when the prompt is through, and drafts are steered.
        """
        check_singly(self.settings.config)
        past, length = found.past, found.length
        head = module(**inputs.cut(slice(0, length), past))
        rest = self._host.behind(inputs, slice(length, None), past, head)
        later = ForwardInputs.of(rest)
        assert later.cache is not None  # `behind` has put it there
        arrival = Arrival(later, later.cache.run, self._here.call)
        self._enter(arrival, Pass("step", past + length)).head = head
        return (), rest

    def behind(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> object:
        """After the multimodal model: put the prompt's states before those of the drafts."""
        if torch.compiler.is_compiling():
            return None
        passing, self._here.passing = self._here.passing, None
        if passing is None or passing.head is None:
            return None
        return self._host.join(passing.head, output)

    # --- before the text model, and behind it ---

    def inject(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Before the text model: hand this step to its attention layers."""
        if not self.settings.enabled:
            return None
        step: Probe | DecodeStep | ForwardPass | None
        if torch.compiler.is_compiling():
            run = self._mine(self._host.run_in(kwargs))
            step = None if run is None else run.step
        else:
            step = self._passing(kwargs)
        return None if step is None else (args, {**kwargs, KEYWORD: step})

    def _passing(self, kwargs: dict) -> ForwardPass | None:
        """The pass that the text model is called in; None for a call of its own.

        Raises:
            SteeringError: such a call on the cache of a prompt that is steered.
        """
        here, passing = self._here, self._here.passing
        if passing is not None and passing.is_of(cache_among(kwargs)):
            passing.injected = True
            return passing
        here.passing = None
        if self._mine(self._host.run_in(kwargs)) is not None:
            raise SteeringError(
                f"{type(self._host.text).__name__} is called by itself on the cache of a patched "
                "model's prompt, so that the pass would not be steered: call the model, or switch "
                "the patch off (patch.enabled = False)"
            )
        return None

    def after(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        """After the text model: the pass must be what it seemed; find the regions behind a
        prompt."""
        if torch.compiler.is_compiling() or not self.settings.enabled:
            return
        here = self._here
        passing = here.passing
        if passing is None:
            return
        passing.check_layers()
        run, call = passing.run, here.call
        if passing.what.kind == "step":
            run.answer.relocate(run.reached)
        cache = self._host.cache_of(output)
        passing.check_cache(cache)
        run.pass_is_through(cache, self.recording, call)
        if not run.is_located:
            return
        here.through = run, passing.rows
        if call is None and passing.what.kind == "prompt":
            here.recent.come(run.prompt)
        elif call is None:
            here.recent.use(run.prompt)
        if call is None or call.run is run:
            here.run = self._last = run

    # --- behind the whole model ---

    def hear(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        """After the whole model: hear how sure it is of the tokens that come next."""
        if torch.compiler.is_compiling():
            run = self._mine(self._host.run_of_call(args, kwargs))
            if run is not None and run.is_located:
                run.answer.hear_compiled(output)
            return
        through, self._here.through = self._here.through, None
        if through is not None:
            run, width = through
            run.answer.hear(logits_of(kwargs, output, width), run.reached)
