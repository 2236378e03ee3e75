"""patch and unpatch: what a user holds of a patched model."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vrga.config import VRGAConfig, check_fields
from vrga.config_file import FILE
from vrga.hf.announcement import Announcement
from vrga.hf.attention import KEYWORD
from vrga.hf.brought import checkpoint_of, choose
from vrga.hf.generate_options import GenerateOptions
from vrga.hf.host import Host
from vrga.hf.inputs import ForwardInputs
from vrga.hf.pipelines import parts_of
from vrga.hf.prompt_reader import PromptReader
from vrga.hf.question import Query
from vrga.hf.versions import warn_if_untested
from vrga.kernels.api import check_implementation
from vrga.method.prompt import GridCells
from vrga.method.region import Region
from vrga.method.timeline import Episode
from vrga.recording.choices import Heads
from vrga.recording.recorder import Recorder
from vrga.recording.trace import Trace
from vrga.steering.decode_step import DecodeStep
from vrga.steering.forward_pass import ForwardPass
from vrga.steering.generate_call import GenerateCall
from vrga.steering.passes import Pass, SteeringError, what_is
from vrga.steering.probe import Probe
from vrga.steering.recent_prompts import RecentPrompts
from vrga.steering.run import Options, Recording, Run
from vrga.steering.steps import Steps

if TYPE_CHECKING:
    from vrga.hf.pipelines import Pipeline

SETTABLE = ("config", "enabled", "query", "given", "ablated")


def patch(
    model: nn.Module | Pipeline,
    config: VRGAConfig | str | None = None,
    *,
    query: Query = "user_end",
    impl: str = "auto",
    tokenizer: object | None = None,
    **fields: object,
) -> Patch:
    """Make `model.generate` steer attention to the region its question is about.

    Only the language model's attention changes: the prefill runs on the attention backend the
    model had, with one probed row per sample and layer; every later step is steered.

    Args:
        model: a loaded model of a supported family, e.g. Qwen2_5_VLForConditionalGeneration; or a
            pipeline of transformers, whose model is patched and whose tokenizer is taken.
        config: the method's numbers, or the name of a preset, e.g. "published". None is what the
            checkpoint brings in vrga_config.json beside its weights, else `VRGAConfig()`, the
            paper's. Of a hub id the cache alone is read.
        query: where each row's question ends, see `Patch.query`.
        impl: "torch" (any device), "triton" (CUDA), or "auto": Triton on CUDA, else torch.
        tokenizer: needed only for `query` as text and for <back> spans; None loads the one of
            `model.name_or_path`.
        fields: of the configuration, over its own: `patch(model, gain=2)`.

    Returns:
        The patch; as a context manager it takes itself off at the end, also after an exception.

    Raises:
        ValueError: an unsupported model, one that is patched already, a bad argument, or a damaged
            vrga_config.json. The model is unchanged then.
        TypeError: a name that is neither an argument nor a field.
    """
    return Patch(model, config, query=query, impl=impl, tokenizer=tokenizer, **fields)


def unpatch(model: nn.Module | Pipeline) -> bool:
    """Take the patch off; the model is exactly as before. False if there was none."""
    found = patch_of(parts_of(model)[0])
    if found is not None:
        found.remove()
    return found is not None


def patch_of(model: nn.Module) -> Patch | None:
    """The patch a model carries, or None."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, Patch):
                return owner
    return None


def _check_names(fields: dict[str, object]) -> None:
    """Raise TypeError, as Python does, for keywords that patch does not have."""
    try:
        check_fields(fields)
    except ValueError as error:
        raise TypeError(
            f"patch() takes query, impl, tokenizer and fields of a configuration: {error}"
        ) from None


class _Here(threading.local):
    """What one thread is at: each has a call, a pass and a recording of its own."""

    def __init__(self, cache_name: str):
        self._cache_name = cache_name
        self.call: GenerateCall | None = None
        self.announced: Announcement | None = None  # a prompt that comes in a loop by hand
        self.passing: ForwardPass | None = None
        self.run: Run | None = None  # of the last prompt
        self.recent = RecentPrompts(cache_name)

    def __deepcopy__(self, memo: dict) -> _Here:
        return _Here(self._cache_name)


class Patch:
    """One patched model, and what the method found in the last prompt.

    Attributes:
        config: the `VRGAConfig` in force; set it between two calls of generate.
        enabled: False switches the model back to its own attention without unpatching.
        query: where each row's question ends, that is the position of its last token in the
            padded row. "user_end" (default): the last text token of the last closed turn. Or:
            an int tensor [B]; a text, or one text per row, searched in the prompt (the last
            occurrence counts); a callable (input_ids [B, S], visible [B, S]) -> int tensor [B].
            In a later turn on the same cache, positions count from the first cached token; texts
            and callables see the new tokens alone.
        given: regions to steer to in place of those found, in the form of `record`'s `watch`, or
            a callable as there; None (default) steers to what was found.
        ablated: heads that lose the image in every decode step, with
            `VRGAConfig.ablation("given")`: bool [L, H] for all rows, [B, L, H], or a callable
            that makes such from the rows' regions, e.g. `lambda regions:
            torch.stack([region.visual for region in regions])`.
    """

    def __init__(
        self,
        model: nn.Module | Pipeline,
        config: VRGAConfig | str | None = None,
        *,
        query: Query = "user_end",
        impl: str = "auto",
        tokenizer: object | None = None,
        **fields: object,
    ):
        _check_names(fields)
        model, _, own = parts_of(model)
        tokenizer = own if tokenizer is None else tokenizer
        self._host = Host(model)
        chosen = choose(config, fields, *checkpoint_of(self._host.model))
        self.config = chosen.config
        self._chosen = chosen
        if patch_of(self._host.model) is not None:
            raise ValueError(
                "the model is patched already: call vrga.unpatch(model) first, or set the config "
                "of the patch it has"
            )
        check_implementation(impl, self._host.device)
        self._impl = impl
        self.query = query
        self.enabled = True
        self.given: GridCells | None = None
        self.ablated: Tensor | Callable | None = None
        self._reader = PromptReader(self._host, tokenizer)
        self._here = _Here(self._host.cache_name)
        self._last: Run | None = None  # of the last prompt in any thread
        self._recording: Recording | None = None
        warn_if_untested()
        hooks: dict[str, Callable] = {
            "before": self._before, "behind": self._behind, "inject": self._inject,
            "after": self._after,
        }  # fmt: skip
        self._host.attachment.attach(hooks, self._generate)

    def __setattr__(self, name: str, value: object) -> None:
        if name == "config" and not isinstance(value, VRGAConfig):
            raise ValueError(f"config={value!r} is not a VRGAConfig")
        if name == "enabled" and not isinstance(value, bool):
            raise ValueError(f"enabled={value!r} is not True or False")
        if name == "query" and value is None:
            raise ValueError("query=None: give 'user_end' (the default), positions, or a text")
        if name not in SETTABLE and not name.startswith("_"):
            where = "patch.config = dataclasses.replace(patch.config, ...)"
            raise AttributeError(
                f"a patch has no {name!r} to be set: it has {', '.join(SETTABLE)}; numbers of the "
                f"method are set by {where}"
            )
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        run = self._run
        config = self.config if run is None else run.config
        parts = [self._host.family.title]
        parts.append(f"gain {config.gain:g}" if config.boosts else config.method)
        if config is self._chosen.config and self._chosen.path is not None:
            parts[-1] += f", others from {FILE}" if self._chosen.fields else f" from {FILE}"
        if not self._host.attachment.is_attached:
            parts.append("taken off")
        elif not self.enabled:
            parts.append("switched off")
        if run is None or not run.is_located:
            return f"Patch({', '.join([*parts, 'no prompt yet'])})"
        for row, region in enumerate(run.regions[:1]):
            heads, total = int(region.visual.sum()), region.visual.numel()
            parts.append(f"{heads} of {total} heads")
            parts.append(f"T {int(region.mask.sum())} of {int(region.image.sum())} tokens")
            parts.append(str(run.steps[row]))
        if len(run.regions) > 1:
            parts.append(f"and {len(run.regions) - 1} more rows")
        return f"Patch({', '.join(parts)})"

    def remove(self) -> None:
        """Take the patch off. Doing it twice does nothing."""
        self._host.attachment.detach()
        self._here.passing = None

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def __deepcopy__(self, memo: dict) -> Patch:
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        own = {name: value for name, value in vars(self).items() if name != "_last"}
        vars(twin).update({k: copy.deepcopy(v, memo) for k, v in own.items()}, _last=None)
        return twin

    def __reduce__(self) -> tuple:
        raise pickle.PicklingError(
            "a patched model cannot be saved or sent as a pickle: its patch holds hooks of this "
            "process. Call vrga.unpatch(model) first (or save its weights alone, with "
            "model.save_pretrained), and patch it anew where it is loaded"
        )

    # --- what was found ---

    @property
    def model(self) -> nn.Module:
        """The model that is patched."""
        return self._host.model

    @property
    def impl(self) -> str:
        """ "auto", "torch" or "triton", as `patch` was given it."""
        return self._impl

    @property
    def _run(self) -> Run | None:
        """The last prompt of this thread, or a later one of a thread that has ended."""
        own, last = self._here.run, self._last
        if own is None or (last is not None and not last.thread.is_alive()):
            return last
        return own

    @property
    def _regions(self) -> list[Region] | None:
        run = self._run
        return run.regions if run is not None and run.is_located else None

    @property
    def _step(self) -> Probe | DecodeStep | None:
        return None if self._run is None else self._run.step

    @property
    def region(self) -> list[Region]:
        """What the last prompt's questions look at, one `Region` per row of the batch.

        Of several threads, each sees its own last prompt.

        Raises:
            RuntimeError: no prompt has been seen yet.
        """
        found = self._regions
        if found is None:
            raise RuntimeError("no region yet: run model.generate(...) with the patch enabled")
        return found

    @property
    def steps(self) -> list[Steps]:
        """What became of the last answer's steps, one `Steps` per row of the batch.

        For a row with an image, steps steered and steps left alone are together one less than its
        tokens: the first token comes from the prompt's own pass. Reads the device.

        Raises:
            RuntimeError: no prompt has been seen yet.
        """
        run = self._run
        if run is None or not run.is_located:
            raise RuntimeError("no steps yet: run model.generate(...) with the patch enabled")
        return run.steps

    @property
    def episodes(self) -> list[Episode]:
        """With `relocate="back"`: each <back> of the last generation, and where it looked."""
        return [] if self._run is None else self._run.episodes

    @contextmanager
    def record(
        self,
        watch: GridCells | None = None,
        *,
        layers: Iterable[int] | None = None,
        steps: Container[int] | None = None,
        maps: Heads | None = None,
        layer_maps: bool = False,
    ) -> Iterator[Trace]:
        """Measure where every head looks at each decode step, without output_attentions.

        The block holds one call of generate, prefill included.

        Args:
            watch: cells whose share of attention is measured beside the region's: for each row,
                for each of its images, bool [h, w] on the image's token grid. Or a callable
                that makes them from each row's list of `Grid`.
            layers: those to measure, counted from 0; None is all.
            steps: those to measure, counted from 0, e.g. `range(0, 1000, 10)`; None is all. A step
                is of one generated token, also where drafts bring several in a pass.
            maps: heads of which every measured step's attention on each image token is kept:
                "visual" (H_v of any row), "all", bool [L, H] (of torch or NumPy), or pairs (layer,
                head). 2 bytes for each step, head and image token.
            layer_maps: whether to keep the mean over each measured layer's heads likewise.

        Yields:
            The trace; it can be read when the block is left.

        Raises:
            ValueError: layers, steps or heads that there are not, or that are of another form.
            RuntimeError: the patch records already.
        """
        if self._recording is not None:
            raise RuntimeError("the patch records already: leave that block of record() first")
        recorder, trace = Recorder(self._host.shape, layers, steps, maps, layer_maps), Trace()
        recording = self._recording = Recording(recorder, watch, threading.current_thread())
        try:
            yield trace
            if recording.run is not None:
                recording.run.settle()
        finally:
            self._recording = None
            run = recording.run
            if run is not None:
                run.stop_measuring()
        recorder.off = not self.enabled
        trace.fill(recorder)
        trace.describe(recorder, self.config, self._host.model, self._reader.known_tokenizer)

    def announce(self, inputs: dict) -> None:
        """Tell of a prompt whose forward passes are made by hand, in more than one piece.

        Args:
            inputs: what generate() would be given: input_ids [B, S], attention_mask, and what
                the processor returned of the images' sizes. Until S tokens are in the cache, or
                S more where these inputs leave the cached tokens out, every pass is prefill.

        Raises:
            ValueError: neither input_ids nor inputs_embeds.
        """
        self._here.announced = Announcement(ForwardInputs.of(dict(inputs)))

    # --- generate() ---

    def _generate(self, *args, **kwargs) -> object:
        """generate() of the patched model: resolve its options, follow it, account for it."""
        if not self.enabled:
            return self._host.generate(args, kwargs, None)
        options = self._host.options(args, kwargs)
        if options.inputs is None:
            return self._host.generate(args, kwargs, None)  # which says what it misses
        self._host.check_parts()
        self._host.attachment.set_aside_compiled()
        here, outer = self._here, self._here.call
        call = here.call = GenerateCall(options, self._recording, outer, options.own)
        here.announced = None
        followed = self._recording is not None or self._follows_spans
        try:
            output = self._host.generate(args, kwargs, call.between if followed else None)
        finally:
            here.call = outer
            call.close()
        if call.run is not None:
            here.run = self._last = call.run
        if self._host.attachment.is_attached and (self.enabled or call.run is not None):
            call.end(output)
        return output

    @property
    def _follows_spans(self) -> bool:
        return "back" in (self.config.when, self.config.relocate)

    def _options(self, options: GenerateOptions | None) -> Options:
        ends = self._host.end_tokens | (set() if options is None else options.end_tokens)
        return Options(
            self.config, self.query, self.given, self.ablated, self._impl, frozenset(ends)
        )

    def _check_config(self, run: Run, announced: Announcement | None) -> None:
        """An answer goes on as its prompt was read.

        Raises:
            ValueError: the config was set since, by whoever goes on with the answer.
        """
        within = self._here.call is not None and announced is None
        if not within and run.config is not self.config and run.config != self.config:
            raise ValueError(
                "patch.config was set since the prompt of this cache was read, by whose numbers "
                "its region was found: set it before the prompt, or set back the one it had"
            )

    # --- hooks ---

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Before the multimodal model: decide what this forward pass is."""
        if torch.compiler.is_compiling():
            if self.enabled:
                self._compiled_step(self._host.read(args, kwargs))
            else:
                run = self._mine(self._host.run_in(self._host.named(args, kwargs)))
                if run is not None and run.off is not None:
                    run.off.add_(1)
            return None
        here = self._here
        here.passing = None
        if not self.enabled:
            self._pass_by(args, kwargs)
            return None
        if not self._host.attachment.is_attached:
            raise RuntimeError(
                "the attention implementation was changed to "
                f"{self._host.attachment.current_backend!r} while the model is patched: call "
                "vrga.unpatch(model) first"
            )
        inputs = self._host.read(args, kwargs)
        found, run, announced = self._what_is(inputs)
        if found.kind == "split":
            return self._split(module, inputs, found)
        self._enter(inputs, found, run, announced)
        return None

    def _mine(self, run: Run | None) -> Run | None:
        """A run, if it is of this patch: another's, or of one taken off, is a prompt not seen."""
        return run if run is not None and run.owner is self else None

    def _what_is(self, inputs: ForwardInputs) -> tuple[Pass, Run | None, Announcement | None]:
        """What a pass is, the run that its cache belongs to, and the prompt that was announced."""
        here, cache = self._here, inputs.cache
        call = here.call
        announced = here.announced if call is None else call.announced
        run = None if cache is None else self._mine(cache.run)

        def opens_turn() -> bool:  # asked for where tokens follow a prompt, not at every step
            ends = self._options(None if call is None else call.options).ends
            return self._reader.opens_turn(inputs, set(ends), announced is not None)

        found = what_is(
            inputs.width,
            held=_held(inputs, run, announced),
            progress=None if run is None else run.progress,
            announced=None if announced is None else announced.end,
            opens_turn=opens_turn,
            brings_images=inputs.brings_images,
            in_call=call is not None,
            may_cut=call is None or call.options.drafts,
        )
        return found, run, announced

    def _enter(
        self,
        inputs: ForwardInputs,
        found: Pass,
        run: Run | None,
        announced: Announcement | None,
    ) -> ForwardPass:
        """A pass of one kind begins."""
        here, call = self._here, self._here.call
        answering = run is not None and run.progress.answering
        if found.kind == "prompt":
            held = run.prompt if run is not None and found.past else None
            options = self._options(None if call is None else call.options)
            run = Run(self._host, self._reader, options, self)
        assert run is not None  # a prompt alone comes without one
        if announced is not None:
            here.announced = None
            if call is not None:
                call.begin(run, found.past)
        if found.kind == "prompt":
            run.begin(inputs, found.past, announced, held)
            run.reached = found.past + inputs.width
        elif found.kind == "piece":
            run.reached = found.past + inputs.width
            run.go_on(inputs, found.past)
        elif found.kind == "rest":
            end = run.end
            if not answering:
                assert announced is not None  # else it is not known to be a rest
                end = announced.end(found.past)
            run.end_with(end, found.past, inputs.width)
        else:
            self._check_config(run, announced)
            run.next_step(found.past, inputs)
        passing = here.passing = ForwardPass(run, found, inputs)
        return passing

    def _compiled_step(self, inputs: ForwardInputs) -> None:
        """A compiled pass: the state of its prompt stands."""
        if inputs.width > 1:
            raise RuntimeError(
                "a patched model cannot compile passes of several tokens, such as chunks of "
                "the prefill: call generate with disable_compile=True, or without "
                "prefill_chunk_size"
            )
        run = None if inputs.cache is None else self._mine(inputs.cache.run)
        if run is None:
            raise RuntimeError(
                "a compiled step without the cache of a prompt that the patch has seen: run the "
                "prompt on the patched model, uncompiled, and hand its static cache on"
            )
        if run.ran is not None:
            run.ran.add_(1)
        step = run.step
        if isinstance(step, DecodeStep):
            step.begin_compiled(inputs.ids)
            if step.config.relocate == "back":
                raise RuntimeError(
                    "relocate='back' finds a region amid decoding, which cannot be "
                    "compiled: call generate with disable_compile=True"
                )

    def _pass_by(self, args: tuple, kwargs: dict) -> None:
        """A pass goes by while the patch is switched off: its prompt's account goes on."""
        run = self._mine(self._host.run_in(self._host.named(args, kwargs)))
        if run is None or not run.is_located:
            return
        inputs = ForwardInputs.of(self._host.named(args, kwargs))
        past = _held(inputs, run, None)
        assert past is not None  # the run was found by its cache
        run.pass_by(past, inputs.ids, inputs.width)

    def _split(self, module: nn.Module, inputs: ForwardInputs, found: Pass) -> tuple[tuple, dict]:
        """Run the prompt alone, then go on with what assisted decoding drafted behind it.

        The region is known only when the prompt is through, and drafts are steered.
        """
        past, length = found.past, found.length
        head = module(**self._host.cut(inputs, slice(0, length), past))
        rest = self._host.behind(inputs, slice(length, None), past, head)
        later = ForwardInputs.of(rest)
        assert later.cache is not None  # `behind` has put it there
        run = later.cache.run
        self._enter(later, Pass("step", past + length), run, None).head = head
        return (), rest

    def _behind(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> object:
        """After the multimodal model: put the prompt's states before those of the drafts."""
        if torch.compiler.is_compiling():
            return None
        passing, self._here.passing = self._here.passing, None
        if passing is None or passing.head is None:
            return None
        return self._host.join(passing.head, output)

    def _inject(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Before the text model: hand this step to its attention layers."""
        if not self.enabled:
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
        here, cache = self._here, self._host.cache_among(kwargs)
        passing = here.passing
        if passing is not None and passing.is_of(cache):
            passing.injected = True
            return passing
        here.passing = None
        if cache is not None and self._mine(cache.run) is not None:
            raise SteeringError(
                f"{type(self._host.text).__name__} is called by itself on the cache of a patched "
                "model's prompt, so that the pass would not be steered: call the model, or switch "
                "the patch off (patch.enabled = False)"
            )
        return None

    def _after(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        """After the text model: the pass must be what it seemed; find the regions behind a
        prompt."""
        if torch.compiler.is_compiling() or not self.enabled:
            return
        here = self._here
        passing = here.passing
        if passing is None:
            return
        passing.check_layers()
        run, call = passing.run, here.call
        if passing.what.kind == "step":
            run.relocate()
        cache = self._host.cache_of(output)
        passing.check_cache(cache)
        run.pass_is_through(cache, self._recording, call)
        if not run.is_located:
            return
        if call is None and passing.what.kind == "prompt":
            here.recent.come(run.prompt)
        elif call is None:
            here.recent.use(run.prompt)
        if call is None or call.run is run:
            here.run = self._last = run


def _held(inputs: ForwardInputs, run: Run | None, announced: Announcement | None) -> int | None:
    """Keys in the cache before a pass; None without a cache."""
    cache = inputs.cache
    if cache is None:
        return None
    if not cache.static or run is None:
        return cache.length
    if announced is None and inputs.width == 1 and run.progress.complete:
        # A static cache on a GPU would have to be waited for to tell its length.
        return run.reached
    length = cache.length
    # Older versions count a static cache's keys in one row, without padding.
    if length and announced is not None and announced.whole(length):
        return announced.width - inputs.width
    return length
