"""patch and unpatch: the only module that edits a model."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType

import torch
from torch import Tensor, nn
from transformers import StoppingCriteriaList
from transformers.cache_utils import DynamicLayer, StaticLayer

from vrga.choices import Heads
from vrga.config import VRGAConfig
from vrga.hf.attention import KEYWORD, register
from vrga.hf.families import family_of, unwrapped
from vrga.hf.inputs import (
    CACHES,
    MEDIA,
    cache_of,
    check_inputs,
    check_options,
    columns,
    option,
    refusal,
)
from vrga.passes import Pass, Passes
from vrga.phase import Phase, tag_table
from vrga.probe import Probe
from vrga.reading import PromptReader
from vrga.recorder import Recorder
from vrga.region import Region, empty_region, find_region
from vrga.released import released_region
from vrga.steering import Steering, check_implementation
from vrga.tokens import Grid, Prompt, Query, cells_mask, check_query, visible_keys
from vrga.trace import Trace
from vrga.waiting import CHUNK


def patch(
    model: nn.Module,
    config: VRGAConfig | None = None,
    *,
    query: Query = "user_end",
    impl: str = "auto",
    tokenizer: object | None = None,
) -> Patch:
    """Make `model.generate` steer attention to the region its question is about.

    Only the language model's attention changes: the prefill runs on the attention backend the
    model had, with one probed row per sample and layer; every later step is steered.

    Args:
        model: a loaded model of a supported family, e.g. Qwen2_5_VLForConditionalGeneration.
        config: the method's numbers; None is `VRGAConfig()`.
        query: where each row's question ends, see `Patch.query`.
        impl: "torch" (any device), "triton" (CUDA), or "auto": Triton on CUDA, else torch.
        tokenizer: needed only for `query` as text and for <back> spans; None loads the one of
            `model.name_or_path`.

    Returns:
        The patch; as a context manager it takes itself off at the end, also after an exception.

    Raises:
        ValueError: an unsupported model, one that is patched already, or a bad argument. The
            model is unchanged then.
    """
    return Patch(model, config, query=query, impl=impl, tokenizer=tokenizer)


def unpatch(model: nn.Module) -> bool:
    """Take the patch off; the model is exactly as before. False if there was none."""
    found = patch_of(model)
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


def only_grows(cache: object) -> bool:
    """Whether keys stay in a cache as they were when attention saw them."""
    layers = getattr(cache, "layers", ())
    plain = bool(layers) and all(type(layer) in (DynamicLayer, StaticLayer) for layer in layers)
    return plain and not getattr(cache, "offloading", False)


# For each row, for each of its images: bool [h, w] on the image's token grid; or a callable that
# makes them from each row's list of `Grid`.
Cells = list[list[Tensor]] | Callable[[list[list[Grid]]], list[list[Tensor]]]


@dataclass(frozen=True)
class Episode:
    """One <back> at which the region was found anew.

    Args:
        row: of the batch; position: of the token that opened the span, in the padded row.
        region: what it looks at, steered to from here on; before: what was steered to before.
    """

    row: int
    position: int
    region: Region
    before: Region


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
        model: nn.Module,
        config: VRGAConfig | None = None,
        *,
        query: Query = "user_end",
        impl: str = "auto",
        tokenizer: object | None = None,
    ):
        model = unwrapped(model)
        config = VRGAConfig() if config is None else config
        if not isinstance(config, VRGAConfig):
            raise ValueError(f"config={config!r} is not a VRGAConfig")
        family = family_of(model)
        if patch_of(model) is not None:
            raise ValueError(
                "the model is patched already: call vrga.unpatch(model) first, or set the config "
                "of the patch it has"
            )
        check_implementation(impl, next(model.parameters()).device)
        self.model, self.config, self.query, self.impl = model, config, query, impl
        self.enabled = True
        self.given: Cells | None = None
        self.ablated: Tensor | Callable[[list[Region]], Tensor] | None = None
        self._family = family
        self._reader = PromptReader(model, family, tokenizer)
        self._outer, self._text = family.modules(model)
        self._parameters = list(inspect.signature(self._outer.forward).parameters)
        self._cache_name = next(name for name in CACHES if name in self._parameters)
        self._step: Probe | Steering | None = None
        self._prompt: Prompt | None = None
        self._query: Tensor | None = None
        self._regions: list[Region] | None = None
        self._passes = Passes(self._reader.end_tokens)
        self._episodes: list[Episode] = []
        self._generating = False  # whether generate() is running
        self._chosen = 0  # tokens that it has chosen
        self._beams = False  # whether it is searching with beams
        self._reordered: Callable[[], object] = lambda: None  # a cache that tells of beams
        self._head = None  # output of a prompt that drafts follow in the same call
        self._recording: tuple[Recorder, object] | None = None

        own = self._text.config._attn_implementation
        self._name = register(own)
        self._own = own
        self._set_attention(self._name)
        if self._text.config._attn_implementation != self._name:
            raise ValueError(
                f"{type(self._text).__name__} does not let its attention be replaced; it has no "
                "attention interface in this version of transformers"
            )
        self._handles = [
            self._outer.register_forward_pre_hook(self._before, with_kwargs=True),
            self._outer.register_forward_hook(self._join, with_kwargs=True),
            self._text.register_forward_pre_hook(self._inject, with_kwargs=True),
            self._text.register_forward_hook(self._after, with_kwargs=True),
        ]
        self._replaced = {m: refusal(m) for m in family.refused if hasattr(model, m)}
        # Bound to the patch, so that a deep copy of the model gets a generate() of its own.
        self._replaced["generate"] = self._generate
        model.__dict__.update(self._replaced)

    def _set_attention(self, name: str) -> None:
        # By the key of the sub-config, so that the vision tower keeps its own implementation.
        self.model.set_attn_implementation({self._family.text_config: name})

    def remove(self) -> None:
        """Take the patch off. Doing it twice does nothing."""
        for handle in self._handles:
            handle.remove()
        if self._handles:
            for method in self._replaced:
                self.model.__dict__.pop(method, None)
            if self._text.config._attn_implementation == self._name:
                self._set_attention(self._own)
        self._handles = []
        self._step = self._head = None

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    @property
    def region(self) -> list[Region]:
        """What the last prompt's questions look at, one `Region` per row of the batch.

        Raises:
            RuntimeError: no prompt has been seen yet.
        """
        if self._regions is None:
            raise RuntimeError("no region yet: run model.generate(...) with the patch enabled")
        return self._regions

    @property
    def episodes(self) -> list[Episode]:
        """With `relocate="back"`: each <back> of the last generation, and where it looked."""
        return list(self._episodes)

    @contextmanager
    def record(
        self,
        watch: Cells | None = None,
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
        recorder, trace = Recorder(self._shape(), layers, steps, maps, layer_maps), Trace()
        self._recording = (recorder, watch)
        try:
            yield trace
            if isinstance(self._step, Steering):
                self._step.settle()
        finally:
            self._recording = None
            if isinstance(self._step, Steering):
                self._step.release()
                self._step = self._step if self._step.applied else None
        recorder.off = not self.enabled
        trace.fill(recorder)
        trace.describe(recorder, self.config, self.model, self._reader)

    def announce(self, inputs: dict) -> None:
        """Tell of a prompt whose forward passes are made by hand, in more than one piece.

        Args:
            inputs: what generate() would be given: input_ids [B, S], attention_mask, and what
                the processor returned of the images' sizes. Until S tokens are in the cache, or
                S more where these inputs leave the cached tokens out, every pass is prefill.

        Raises:
            ValueError: neither input_ids nor inputs_embeds.
        """
        self._passes.announce(inputs)

    def _generate(self, *args, **kwargs) -> object:
        """generate() of the patched model: check its options, announce the prompt."""
        own = functools.partial(type(self.model).generate, self.model)
        if not self.enabled:
            return own(*args, **kwargs)
        inputs = dict(kwargs)
        if args or inputs.get("inputs") is not None:
            inputs["input_ids"] = args[0] if args else inputs["inputs"]
        check_options(inputs, self.model.generation_config)
        self._beams = (option(inputs, self.model.generation_config, "num_beams") or 1) > 1
        if inputs.get("input_ids") is None and inputs.get("inputs_embeds") is None:
            return own(*args, **kwargs)  # which says what it misses
        self.announce(inputs)
        if self._recording is not None or "back" in (self.config.when, self.config.relocate):
            criteria = [*(kwargs.get("stopping_criteria") or ()), self._between_steps]
            kwargs["stopping_criteria"] = StoppingCriteriaList(criteria)
        self._generating, self._chosen = True, 0
        try:
            output = own(*args, **kwargs)
            if self._recording is not None:
                if isinstance(self._step, Steering):
                    self._step.settle()
                self._recording[0].hear(inputs, output, self._beams)
            return output
        finally:
            self._passes.forget()
            self._head = None
            self._beams = self._generating = False
            self._forget_beams()

    def _between_steps(self, ids: Tensor, scores: object, **kwargs) -> Tensor:
        """A criterion that stops nothing, called when a token was chosen.

        It sees the newest tokens before generate() waits for the device anyway, so that the next
        pass need not; and it computes what compiled steps left to be computed.
        """
        step = self._step
        if isinstance(step, Steering):
            if step.phase is not None and not self._beams and len(ids) == len(step.phase.state):
                step.phase.look_ahead(ids[:, -1:], ids.shape[1] - 1)
            self._chosen += 1
            if self._chosen % CHUNK == 0 and self._recording is not None:
                step.settle()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    # --- hooks ---

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Before the multimodal model: decide what this forward pass is."""
        if not self.enabled:
            return None
        self._head = None
        inputs = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        check_inputs(inputs, module)
        ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
        self._device = (ids if ids is not None else embeds).device
        shape = tuple(ids.shape if ids is not None else embeds.shape[:2])
        if torch.compiler.is_compiling():
            if shape[1] == 1:  # compiled decoding: the state of the prefill stands
                if isinstance(self._step, Steering):
                    self._step.begin(None, ids)
                    if self.config.relocate == "back":
                        raise RuntimeError(
                            "relocate='back' finds a region amid decoding, which cannot be "
                            "compiled: call generate with disable_compile=True"
                        )
            else:
                raise RuntimeError(
                    "a patched model cannot compile passes of several tokens, such as chunks of "
                    "the prefill: call generate with disable_compile=True, or without "
                    "prefill_chunk_size"
                )
            return None
        if self._text.config._attn_implementation != self._name:
            raise RuntimeError(
                f"the attention implementation was changed to "
                f"{self._text.config._attn_implementation!r} while the model is patched: call "
                "vrga.unpatch(model) first"
            )
        found = self._passes.next(inputs, shape)
        if found.kind == "split":
            return self._split(module, inputs, shape, found.length, found.past)
        if found.kind == "step":
            self._next_step(found.past, ids, shape[1])
        elif found.kind == "prompt":
            self._prefill(inputs, shape, found)
        elif isinstance(self._step, Probe):
            self._step.begin(found.past)
        return None

    def _next_step(self, past: int, ids: Tensor | None, rows: int) -> None:
        """Begin a decode pass of `rows` tokens `ids` behind `past` keys."""
        step = self._step
        if not isinstance(step, Steering):
            return
        while self._episodes and self._episodes[-1].position >= past:  # of rejected drafts
            episode = self._episodes.pop()
            self._regions[episode.row] = episode.before
            step.steer_to(self._regions)
        step.begin(past, ids, rows)
        if self.config.relocate != "back":
            return
        told = step.phase.on_host(past)
        opened = step.phase.opened.cpu() if told is None else told[1]
        opened = opened & torch.tensor([bool(grids) for grids in self._prompt.grids])[:, None]
        if not opened.any():
            return
        # A row may open several spans in a block of drafts; the last one counts.
        place = torch.where(opened, torch.arange(past, past + opened.shape[1]), -1).amax(1)
        later = past + opened.shape[1] - self._prompt.visible.shape[1]
        visible = torch.nn.functional.pad(self._prompt.visible, (0, later), value=True)
        step.probe = Probe(place.tolist(), visible, self.impl)
        step.probe.begin(past)

    def _split(
        self, module: nn.Module, inputs: dict, shape: tuple, length: int, past: int
    ) -> tuple[tuple, dict]:
        """Run the prompt alone, then go on with what assisted decoding drafted behind it.

        The region is known only when the prompt is through, and drafts are steered.
        """
        head = module(**columns(inputs, slice(0, length), shape[1], past))
        self._head = head
        rest = columns(inputs, slice(length, None), shape[1], past)
        rest = {name: x for name, x in rest.items() if not name.startswith(MEDIA)}
        rest = {name: x for name, x in rest.items() if name not in CACHES}
        rest[self._cache_name] = cache_of(head)
        self._next_step(past + length, rest.get("input_ids"), shape[1] - length)
        return (), rest

    def _join(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> object:
        """After the multimodal model: put the prompt's states before those of the drafts."""
        head, self._head = self._head, None
        if head is None:
            return None
        output.last_hidden_state = torch.cat([head.last_hidden_state, output.last_hidden_state], 1)
        if output.hidden_states is not None:
            pairs = zip(head.hidden_states, output.hidden_states, strict=True)
            output.hidden_states = tuple(torch.cat(pair, 1) for pair in pairs)
        return output

    def _prefill(self, inputs: dict, shape: tuple, begun: Pass) -> None:
        """Read the prompt and set up the probe of its query rows."""
        past, announced = begun.past, begun.announced
        mask = inputs.get("attention_mask")
        if isinstance(mask, dict):
            mask = mask["full_attention"]
        if mask is not None and mask.ndim == 4:  # as generate() makes it for a static cache
            mask = visible_keys(mask, past + shape[1]).expand(shape[0], -1)
        held = self._prompt if begun.known and past else None
        if announced is not None:
            prompt, start = self._reader.read_announced(announced, shape[0], mask, held, past)
            end = announced.end(past)
        else:
            prompt, start = self._reader.read(inputs, shape, mask), past
            if past:
                prompt = held.extend(prompt, past)
                if mask is not None and mask.shape[1] == past + shape[1]:
                    prompt = replace(prompt, visible=mask.cpu() != 0)
            end = past + shape[1]
        given = inputs if announced is None else announced.inputs
        self._check_positions(given, prompt.later(start))
        query = check_query(self._reader.positions(prompt, self.query, start), prompt)
        self._prompt, self._query, self._regions = prompt, query, None
        rows = [row for row, grids in enumerate(prompt.grids) if grids]
        probed = (query - self._query_shift()).tolist()
        if any(probed[row] < past for row in rows):
            raise ValueError(
                f"query={query.tolist()} lies before the tokens of this forward pass, which start "
                f"at {past + self._query_shift()}: give the position of the new question"
            )
        self._step = None
        self._passes.expect(end)
        if not rows:
            self._locate(None)
            return
        probed = [place if grids else -1 for place, grids in zip(probed, prompt.grids, strict=True)]
        self._step = Probe(probed, prompt.visible, self.impl)
        self._step.begin(past)

    def _check_positions(self, inputs: dict, new: Prompt) -> None:
        """Refuse images that the model would silently number like plain text."""
        positions = inputs.get("position_ids")
        if (
            "mm_token_type_ids" in self._parameters
            and inputs.get("mm_token_type_ids") is None
            and (positions is None or positions.ndim != 3)
            and any(new.grids)
        ):
            raise ValueError(
                "the inputs lack mm_token_type_ids, without which this version of transformers "
                "gives image tokens the positions of plain text: pass what the processor returned"
            )

    def _query_shift(self) -> int:
        # The released code probes the token before the question's last.
        return 1 if self.config.reproduces else 0

    def _inject(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Before the text model: hand this step to its attention layers."""
        if not self.enabled or self._step is None:
            return None
        return args, {**kwargs, KEYWORD: self._step}

    def _after(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        """After the text model's prefill: find the regions, and steer from here on."""
        if not self.enabled:
            return
        if torch.compiler.is_compiling():
            return
        cache = cache_of(output)
        if isinstance(self._step, Steering) and self._step.probe is not None:
            self._relocate(self._step)
        if not self._passes.ran(cache) or not isinstance(self._step, Probe):
            return
        probe, self._step = self._step, None
        self._locate(probe)
        if self._beams and cache is not None:
            self._follow_beams(cache)

    def _locate(self, probe: Probe | None) -> None:
        """Turn probed attention rows into regions and the steering; None: no row has an image."""
        config, prompt = self.config, self._prompt
        if probe is not None and probe.windowed and config.reproduces:
            raise ValueError(
                f"method={config.method!r} reproduces code without sliding windows, which "
                f"{type(self._text).__name__} has: use VRGAConfig() or VRGAConfig.paper()"
            )
        self._episodes = []
        length = prompt.image.shape[1]
        regions = []
        for row, grids in enumerate(prompt.grids):
            query = int(self._query[row])
            if grids:
                regions.append(self._find(probe, row, query))
            else:
                regions.append(empty_region(query, length, self._shape()))
        self._regions = regions
        self._step = None
        if probe is not None:
            self._step = self._steering(regions, probe)

    def _shape(self) -> tuple[int, int]:
        """(L, H) of the text model."""
        return self._text.config.num_hidden_layers, self._text.config.num_attention_heads

    def _find(self, probe: Probe, row: int, query: int) -> Region:
        """The region of a row from its probed attention."""
        rows, seen = probe.attention_rows(row, self._shape()[0]), probe.seen(row)
        find = find_region
        if self.config.reproduces:
            # The released code averages over the whole row, keys after the query included.
            find, seen = released_region, self._prompt.visible[row].expand_as(seen)
        return find(rows, self._prompt.grids[row], query, seen, self.config)

    def _follow_beams(self, cache: object) -> None:
        """Let the rows' <back> spans, and regions found there, follow their beams, as the cache
        does."""
        if not isinstance(self._step, Steering) or self._step.phase is None:
            return
        own, step = cache.reorder_cache, self._step

        def reorder_cache(beams: Tensor) -> None:
            own(beams)
            step.phase.reorder(beams)
            if not self._episodes:
                return  # all beams of a row still look at one region
            regions = [self._regions[beam] for beam in beams.tolist()]
            if any(new is not old for new, old in zip(regions, self._regions, strict=True)):
                self._regions = regions
                step.steer_to(regions)

        cache.reorder_cache = reorder_cache
        self._reordered = weakref.ref(cache)

    def _forget_beams(self) -> None:
        cache = self._reordered()
        if cache is not None:
            vars(cache).pop("reorder_cache", None)
        self._reordered = lambda: None

    def _relocate(self, step: Steering) -> None:
        """Steer rows that have just opened a <back> span to what that token looks at."""
        probe, step.probe = step.probe, None
        length = self._prompt.image.shape[1]
        for row, place in enumerate(probe.query):
            if place < 0:
                continue
            found = self._find(probe, row, place)
            # Generated tokens are no image; the other rows' masks end with the prompt.
            found = replace(found, mask=found.mask[:length], image=found.image[:length])
            self._episodes.append(Episode(row, place, found, self._regions[row]))
            self._regions[row] = found
        step.steer_to(self._regions)

    def _cells(self, cells: Cells, name: str) -> Tensor:
        """Cells of the images as keys of the prompt, bool [B, S]."""
        cells = cells(self._prompt.grids) if callable(cells) else cells
        return cells_mask(cells, self._prompt, name)

    def _steering(self, regions: list[Region], probe: Probe) -> Steering | None:
        """What the decode steps do; None where they do what the unpatched model does."""
        if self.given is not None:
            if self.config.method == "ablation":
                raise ValueError("patch.given is not read by method='ablation': set it to None")
            masks = self._cells(self.given, "given")
            regions = [replace(r, mask=m) for r, m in zip(regions, masks, strict=True)]
        ablated = self._ablated_heads(regions)
        off = not self.config.steers
        if off and self._recording is None:
            return None
        watch = recorder = question = None
        if self._recording is not None:
            recorder, watch = self._recording
            if recorder.steps:
                raise ValueError("a trace holds one call of generate: record each on its own")
            if watch is not None:
                watch = self._cells(watch, "watch")
            elif self.config.method in ("vrga", "released"):
                question = self._reader.question(self._prompt, self._query)
                recorder.question = True
            recorder.aim(regions, self._passes.reached)
        phase = None
        told = self._recording is not None and self._reader.knows_words
        if told or "back" in (self.config.when, self.config.relocate):
            if self.given is not None and self.config.relocate == "back":
                raise ValueError("relocate='back' would replace patch.given: set one of them back")
            vocabulary = self._text.get_input_embeddings().num_embeddings
            table = tag_table(self._reader.tokenizer, vocabulary)
            phase = Phase(table, len(regions), self._device, self._passes.reached)
        cache = self._passes.cache
        waits = self._generating and not self._beams and only_grows(cache)
        steering = Steering(
            regions, self.config, self.impl, applied=not off, watch=watch, recorder=recorder,
            waits=waits, capacity=probe.capacity, phase=phase, question=question, ablated=ablated,
        )  # fmt: skip
        steering.place(probe.devices)
        static = getattr(cache, "is_compileable", False) and only_grows(cache)
        if recorder is not None and static and not self._beams:
            steps = CHUNK if self._generating else probe.capacity - self._passes.reached
            steering.expect_compiled(probe.layers, steps, cache, self._prompt.visible)
        return steering

    def _ablated_heads(self, regions: list[Region]) -> Tensor | None:
        """The heads given to be ablated, bool [B, L, H]; None where the config asks for none."""
        if (self.config.ablate == "given") != (self.ablated is not None):
            raise ValueError(
                "patch.ablated and VRGAConfig.ablation('given') go together: patch.ablated is "
                f"{'None' if self.ablated is None else 'set'}, ablate={self.config.ablate!r}"
            )
        if self.ablated is None:
            return None
        heads = torch.as_tensor(self.ablated(regions) if callable(self.ablated) else self.ablated)
        wanted = (len(regions), *self._shape())
        if heads.dtype != torch.bool or tuple(heads.shape) not in (wanted, wanted[1:]):
            raise ValueError(
                f"ablated is {heads.dtype} {list(heads.shape)}; wanted: bool {list(wanted)}, or "
                f"{list(wanted[1:])} for all rows"
            )
        return heads.cpu().expand(wanted)
