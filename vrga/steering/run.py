"""One prompt on one model, from its first forward pass to the last step of its answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vrga.config import VRGAConfig
from vrga.hf.announcement import Announcement
from vrga.hf.cache import KeyCache
from vrga.hf.host import Host
from vrga.hf.inputs import ForwardInputs
from vrga.hf.prompt_reader import PromptReader, on_cpu
from vrga.hf.question import Query
from vrga.hf.versions import VERSION
from vrga.kernels.api import Kernels
from vrga.kernels.reference import GROUP
from vrga.method.attention_rows import Sample
from vrga.method.back_spans import Phase, tag_table
from vrga.method.call import exactly
from vrga.method.key_groups import KeyGroups
from vrga.method.prompt import GridCells, Prompt, cells_mask, check_query, visible_keys
from vrga.method.region import Region, empty_region, find_regions
from vrga.method.steered_keys import SteeredKeys
from vrga.method.table import rules_of
from vrga.method.timeline import Episode, Timeline
from vrga.recording.meter import Meter
from vrga.recording.recorder import Recorder
from vrga.recording.waiting import CHUNK, Bank
from vrga.steering.decode_step import DecodeStep, known_gate
from vrga.steering.passes import Progress, SteeringError
from vrga.steering.probe import Probe
from vrga.steering.steps import (
    EMPTY,
    GAIN,
    IMAGELESS,
    OFF,
    SHALLOW,
    SINGLE,
    Ledger,
    Steps,
    answer_ends,
)

if TYPE_CHECKING:
    from vrga.steering.generate_call import GenerateCall


@dataclass(frozen=True)
class Options:
    """What a user set when the prompt began; see `Patch` for each.

    Args:
        ends: ids that end a turn, as this call has them.
    """

    config: VRGAConfig
    query: Query
    given: GridCells | None
    ablated: Tensor | Callable | None
    impl: str
    ends: frozenset[int]


@dataclass
class Recording:
    """A block of `Patch.record`: its recorder, the cells it watches, the thread that opened it,
    and the run it is of: the first whose prompt comes, in whatever thread."""

    recorder: Recorder
    watch: GridCells | None
    thread: threading.Thread
    run: Run | None = None

    def takes(self, run: Run, call: GenerateCall | None) -> bool:
        """Whether it is to record this run, whose prompt is through.

        Raises:
            ValueError: it holds the steps of another run already.
        """
        if call is not None and (call.run is not run or call.outer is not None):
            return False  # another branch of the same call, such as guidance without the image
        if self.run is not None and threading.current_thread() is not self.thread:
            return False  # another thread's own prompt, amid the one that is recorded
        if self.recorder.steps or (self.run is not None and self.run.cache is not None):
            raise ValueError("a trace holds one call of generate: record each on its own")
        self.run = run
        return True


class Run:
    """One prompt: what was found in it, and what its answer's steps do.

    Args:
        host: the model; reader: of its prompts; options: of the user; owner: the patch.

    Attributes:
        step: what attention layers do in the current pass: a `Probe` while the prompt is read, a
            `DecodeStep` behind it, None where they do what the unpatched model does.
        reached: keys that the cache holds after the current pass; end: when the prompt is through.
        said: ids of the answer, int64 [B, T], where generate() returned them.
        cached: whether there is a cache.
        in_call: whether it is of a call of generate(); thread: that it began in.
        looked_for_bias: passes whose masks were looked at for finite biases.
        ran, off: compiled steps that have run, counted by themselves, and those of them that ran
            while the patch was switched off; int64 [1] on the device.
    """

    def __init__(self, host: Host, reader: PromptReader, options: Options, owner: object):
        self.host, self.reader, self.options, self.owner = host, reader, options, owner
        self.in_call = False
        self.thread = threading.current_thread()
        self._last_query = -1  # of all rows
        self._opens_answer = False  # whether the prompt ends where an answer begins
        self._prompt: Prompt | None = None
        self._query: Tensor | None = None
        self._timeline: Timeline | None = None
        self._found: dict[int, Region] = {}  # of rows whose question has come, amid the prompt
        self._kernels = Kernels(options.impl)
        self.step: Probe | DecodeStep | None = None
        self.reached = self.end = 0
        self._ledger: Ledger | None = None
        self.said: Tensor | None = None
        self.cached = False
        self.ran: Tensor | None = None
        self.off: Tensor | None = None
        self._cache: Callable[[], object] = lambda: None
        self._reordered: KeyCache | None = None
        self.looked_for_bias = 0
        self._inputs_on: torch.device | None = None

    @property
    def config(self) -> VRGAConfig:
        """The configuration in force for this prompt."""
        return self.options.config

    @property
    def prompt(self) -> Prompt:
        """What its tokens are; known from `begin` on."""
        assert self._prompt is not None
        return self._prompt

    @property
    def query(self) -> Tensor:
        """Positions of the questions' last tokens, int64 [B]; likewise."""
        assert self._query is not None
        return self._query

    @property
    def _device(self) -> torch.device:
        """Of the prompt's inputs; likewise."""
        assert self._inputs_on is not None
        return self._inputs_on

    @property
    def is_located(self) -> bool:
        """Whether the prompt is through, so that there are regions, and notes of steps."""
        return self._ledger is not None

    @property
    def timeline(self) -> Timeline:
        """Of the rows' regions, once they are located."""
        assert self._timeline is not None
        return self._timeline

    @property
    def ledger(self) -> Ledger:
        """Notes of the answer's steps, once the regions are located."""
        assert self._ledger is not None
        return self._ledger

    @property
    def regions(self) -> list[Region]:
        """What the rows are steered to, once they are located."""
        return self.timeline.now

    @property
    def progress(self) -> Progress:
        """How far its prompt is."""
        stepped = self.is_located and self.ledger.passed > 0
        begun = self.in_call or stepped or self._opens_answer
        return Progress(self.reached, self.end, self._last_query, begun)

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
        announced: Announcement | None,
        held: Prompt | None,
    ) -> None:
        """Read the prompt and set up the probe of its query rows.

        Args:
            inputs: of the first pass, behind `past` keys.
            held: the prompt that the cache holds already, or None.

        Raises:
            ValueError: images and grids that do not match, or a query that cannot be probed.
        """
        self._inputs_on = inputs.tokens.device
        rows, width = inputs.rows, inputs.width
        mask = inputs.mask
        if mask is not None and mask.ndim == 4:  # as generate() makes it for a static cache
            mask = visible_keys(mask, past + width).expand(rows, -1)
        if announced is not None:
            prompt, start = self.reader.read_announced(announced, rows, mask, held, past)
            end = announced.end(past)
        else:
            prompt, start = self.reader.read(inputs.named, (rows, width), mask), past
            if past:
                assert held is not None  # else `what_is` has refused the pass
                prompt = held.extend(prompt, past)
                if mask is not None and mask.shape[1] == past + width:
                    prompt = replace(prompt, visible=mask.cpu() != 0)
            end = past + width
        given = inputs if announced is None else announced.inputs
        self.host.check_positions(given, any(prompt.later(start).grids))
        ends = set(self.options.ends)
        query = self.reader.positions(prompt, self.options.query, start, ends)
        self._prompt, self._query, self.end = prompt, check_query(query, prompt), end
        self._last_query = int(self.query.max())
        self._probe(inputs, past)

    @on_cpu
    def _probe(self, inputs: ForwardInputs, past: int) -> None:
        """Set up the probe; the prompt's first pass stands behind `past` keys."""
        shift = 1 if self.config.reproduces else 0  # it probes the token before the question's last
        rows = [row for row, grids in enumerate(self.prompt.grids) if grids]
        probed = (self.query - shift).tolist()
        if any(probed[row] < past for row in rows):
            raise ValueError(
                f"query={self.query.tolist()} lies before the tokens of this forward pass, which "
                f"start at {past + shift}: give the position of the new question"
            )
        if rows:
            grids = self.prompt.grids
            probed = [place if row else -1 for place, row in zip(probed, grids, strict=True)]
            probe = self.step = Probe(probed, self.prompt.visible, self._kernels)
            probe.begin(past, self.host.holds(inputs))

    def end_with(self, end: int, past: int, width: int) -> None:
        """The end of the prompt comes, or comes again, behind its question: `width` tokens behind
        `past` keys. The region stays, and nothing is steered before the prompt's `end`."""
        self.end, self.reached = end, past + width
        if self.is_located:
            self.ledger.begin(end)

    def go_on(self, inputs: ForwardInputs, past: int) -> None:
        """A further piece of the prompt comes, behind `past` keys."""
        if isinstance(self.step, Probe):
            self.step.begin(past, self.host.holds(inputs))

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
        if isinstance(self.step, Probe):
            self._found |= self._find(self.step, self.query.tolist())
            self.step.close()
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
        probe, self.step = self.step, None
        assert not isinstance(probe, DecodeStep)  # which this function makes
        length = self.prompt.image.shape[1]
        question = self.reader.question(self.prompt, self.query, set(self.options.ends))
        regions = []
        for row, grids in enumerate(self.prompt.grids):
            query = int(self.query[row])
            if grids:
                regions.append(self._found.pop(row))
            else:
                regions.append(empty_region(query, length, self.host.shape))
        words = self.reader.words(self.prompt, question)
        regions = [replace(r, question=said) for r, said in zip(regions, words, strict=True)]
        if self.options.given is not None:
            if self.config.method == "ablation":
                raise ValueError("patch.given is not read by method='ablation': set it to None")
            masks = self._cells(self.options.given, "given")
            regions = [replace(r, mask=m) for r, m in zip(regions, masks, strict=True)]
        self._timeline = Timeline(regions, self.reached)
        self._ledger = Ledger(len(regions), self.reached)
        self._opens_answer = call is None and self.reader.opens_answer(self.prompt)
        self.ran, self.off = torch.zeros(2, 1, dtype=torch.int64, device=self._device).unbind()
        for counter in (self.ran, self.off):
            torch._dynamo.mark_static_address(counter)
        if probe is not None:
            takes = recording is not None and recording.takes(self, call)
            recording = recording if takes else None
            self.step = self._steering(probe, recording, question, call is not None)

    def _find(self, probe: Probe, queries: list[int]) -> dict[int, Region]:
        """Regions of the rows whose query row is in the pass that ends here.

        Args:
            queries: position of each row's last question token.

        Raises:
            ValueError: a method that reproduces code without sliding windows, where there are some.
        """
        config, rows = self.config, probe.here
        if not rows:
            return {}
        if probe.windowed and config.reproduces:
            raise ValueError(
                f"method={config.method!r} reproduces code without sliding windows, which "
                f"{type(self.host.text).__name__} has: use VRGAConfig.paper()"
            )
        samples, rules = [], rules_of(config)
        for row in rows:
            seen = probe.seen(row)
            if config.reproduces:
                # The released code averages over the whole row, keys after the query included.
                seen = self.prompt.visible[row].expand_as(seen)
            samples.append(Sample(self.prompt.grids[row], queries[row], seen))
        attention = probe.rows(rows, self.host.shape[0])
        with exactly(self._device):
            return dict(zip(rows, find_regions(attention, samples, config, rules), strict=True))

    def _cells(self, cells: GridCells, name: str) -> Tensor:
        """Cells of the images as keys of the prompt, bool [B, S]."""
        cells = cells(self.prompt.grids) if callable(cells) else cells
        return cells_mask(cells, self.prompt, name)

    def _steering(
        self, probe: Probe, recording: Recording | None, question: Tensor, in_call: bool
    ) -> DecodeStep | None:
        """What the decode steps do; None where they do what the unpatched model does."""
        ablated, config, regions = self._ablated_heads(), self.config, self.regions
        if not config.steers and recording is None:
            return None
        groups = KeyGroups.of(config) if recording is None else self._measured(recording, question)
        keys = SteeredKeys(
            regions, groups, known_gate(regions, config, ablated), capacity=probe.capacity,
            devices=probe.devices,
        )  # fmt: skip
        recorder = None if recording is None else recording.recorder
        if recorder is not None:
            recorder.aim(self.timeline, groups if config.steers else groups.unweighted())
        phase = self._phase(recorder)
        meter = None if recorder is None else self._meter(probe, recorder, keys, phase, in_call)
        return DecodeStep(
            config, self._kernels, keys, meter=meter, applied=config.steers, phase=phase,
            ablated=ablated,
        )  # fmt: skip

    def _measured(self, recording: Recording, question: Tensor) -> KeyGroups:
        """The groups of keys whose attention is recorded."""
        if recording.watch is not None:
            return KeyGroups.of(self.config, watch=self._cells(recording.watch, "watch"))
        return KeyGroups.of(self.config, question=question if self.config.boosts else None)

    def _meter(
        self,
        probe: Probe,
        recorder: Recorder,
        keys: SteeredKeys,
        phase: Phase | None,
        in_call: bool,
    ) -> Meter:
        """What measures the steps; they wait, and may be compiled, where the cache lets them."""
        cache, config, bank = self.cache, self.config, None
        stays = self._reordered is None and cache is not None and cache.only_grows
        if cache is not None and stays and cache.static:
            bank = Bank(
                {i: probe.layers[i] for i in recorder.layers},
                steps=CHUNK if in_call else probe.capacity - self.reached,
                columns=GROUP + recorder.groups.count if config.steers else 0,
                queries=not config.steers or any(map(recorder.maps_of, recorder.layers)),
                cache=cache,
                visible=self.prompt.visible,
                follows=phase is not None,
            )
        return Meter(
            recorder, config, self._kernels, keys, waits=in_call and stays, bank=bank
        )  # fmt: skip

    def _phase(self, recorder: Recorder | None) -> Phase | None:
        """What follows the rows' <back> spans, where something needs them."""
        asked = "back" in (self.config.when, self.config.relocate)
        if not asked and (recorder is None or not self.reader.knows_words):
            return None
        if self.options.given is not None and self.config.relocate == "back":
            raise ValueError("relocate='back' would replace patch.given: set one of them back")
        table = tag_table(self.reader.tokenizer, self.host.vocabulary, self.config.tag)
        return Phase(table, len(self.regions), self._device, self.reached)

    def _ablated_heads(self) -> Tensor | None:
        """The heads given to be ablated, bool [B, L, H]; None where the config asks for none."""
        ablated, regions = self.options.ablated, self.regions
        if (self.config.ablate == "given") != (ablated is not None):
            raise ValueError(
                "patch.ablated and VRGAConfig.ablation('given') go together: patch.ablated is "
                f"{'None' if ablated is None else 'set'}, ablate={self.config.ablate!r}"
            )
        if ablated is None:
            return None
        heads = torch.as_tensor(ablated(regions) if callable(ablated) else ablated)
        wanted = (len(regions), *self.host.shape)
        if heads.dtype != torch.bool or tuple(heads.shape) not in (wanted, wanted[1:]):
            raise ValueError(
                f"ablated is {heads.dtype} {list(heads.shape)}; wanted: bool {list(wanted)}, or "
                f"{list(wanted[1:])} for all rows"
            )
        return heads.cpu().expand(wanted)

    # --- the answer ---

    def next_step(self, past: int, inputs: ForwardInputs) -> None:
        """Begin a decode pass behind `past` keys."""
        ids, rows = inputs.ids, inputs.width
        self.reached = past + rows
        given = None if ids is None else len(ids)
        if given not in (None, self.ledger.rows):
            raise SteeringError(
                f"the cache's prompt has {self.ledger.rows} rows, and this pass has {given}: rows "
                "of the cache were chosen or repeated, so it is not known which region is whose; "
                "fill a cache with these rows, or switch the patch off (patch.enabled = False)"
            )
        step, single = self.step, self.config.reproduces and rows > 1
        if not isinstance(step, DecodeStep):
            self.ledger.note(past, rows, GAIN)
            return
        if self.timeline.forget_from(past):  # of rejected drafts
            step.steer_to(self.regions)
        step.begin(past, ids, rows)
        if not step.applied:
            self.ledger.note(past, rows, GAIN)
        elif single:
            self.ledger.note(past, rows, SINGLE)
        else:
            self.ledger.note(past, rows, *step.chosen_rows)
        if self.config.relocate == "back":
            self._look_again(step, inputs, past)

    def pass_by(self, past: int, ids: Tensor | None, rows: int) -> None:
        """A decode pass goes by while the patch is switched off."""
        self.reached = past + rows
        if self.is_located:
            self.ledger.note(past, rows, OFF)
        if isinstance(self.step, DecodeStep) and self.step.phase is not None and ids is not None:
            self.step.phase.advance(ids, past)

    def _look_again(self, step: DecodeStep, inputs: ForwardInputs, past: int) -> None:
        """Probe rows that open a <back> span in this pass."""
        phase = step.phase
        assert phase is not None  # which relocate="back" asks for
        told = phase.on_host(past)
        opened = phase.opened.cpu() if told is None else told[1]
        opened = opened & torch.tensor(
            [bool(grids) for grids in self.prompt.grids], device="cpu"
        )[:, None]  # fmt: skip
        if not opened.any():
            return
        # A row may open several spans in a block of drafts; the last one counts.
        places = torch.arange(past, past + opened.shape[1], device="cpu")
        place = torch.where(opened, places, -1).amax(1)
        later = past + opened.shape[1] - self.prompt.visible.shape[1]
        visible = torch.nn.functional.pad(self.prompt.visible, (0, later), value=True)
        step.probe = Probe(place.tolist(), visible, self._kernels)
        step.probe.begin(past, self.host.holds(inputs))

    @on_cpu
    def relocate(self) -> None:
        """Steer rows that have just opened a <back> span to what that token looks at."""
        step = self.step
        if not isinstance(step, DecodeStep) or step.probe is None:
            return
        probe, step.probe = step.probe, None
        length = self.prompt.image.shape[1]
        for row, found in self._find(probe, probe.query).items():
            # Generated tokens are no image; the other rows' masks end with the prompt.
            found = replace(found, mask=found.mask[:length], image=found.image[:length])
            self.timeline.turn(row, found, opened=probe.query[row], position=self.reached)
        step.steer_to(self.regions)

    def settle(self) -> None:
        """Compute what waits to be measured."""
        if isinstance(self.step, DecodeStep) and self.step.meter is not None:
            self.step.meter.settle()

    def stop_measuring(self) -> None:
        """The recording is over: let go of what it held, the cache among it."""
        if isinstance(self.step, DecodeStep):
            self.step.meter = None
            self.step = self.step if self.step.applied else None

    # --- beams ---

    def _follow_beams(self) -> None:
        """Let the rows' <back> spans, and regions found there, follow their beams, as the cache
        does; until `forget_beams`."""
        cache = self.cache
        if cache is not None and self._reordered is None:
            self._reordered = cache
            cache.on_reorder(self._reorder)

    def _reorder(self, beams: Tensor) -> None:
        step = self.step
        if not isinstance(step, DecodeStep) or step.phase is None:
            return
        step.phase.reorder(beams)
        if not self.timeline.relocated:
            return  # all beams of a row still look at one region
        if self.timeline.reorder(beams.tolist(), self.reached):
            step.steer_to(self.regions)

    def forget_beams(self) -> None:
        """The search is over."""
        if self._reordered is not None:
            self._reordered.off_reorder()
            self._reordered = None

    # --- accounting ---

    @property
    def episodes(self) -> list[Episode]:
        """Each <back> at which a region was found anew."""
        return self.timeline.episodes if self.is_located else []

    def count_compiled(self) -> None:
        """Note the steps that compiled code ran, by its own count; waits for the device."""
        assert self.ran is not None and self.off is not None  # made with the ledger
        ran, off = int(self.ran), int(self.off)
        if not ran + off:
            return
        left = {OFF: torch.full((self.ledger.rows,), off)}
        if isinstance(self.step, DecodeStep) and self.step.applied:
            left |= self.step.left_compiled
        else:
            left |= {GAIN: torch.full((self.ledger.rows,), ran)}
        self.ledger.note_compiled(ran + off, left)

    @property
    def steps(self) -> list[Steps]:
        """What became of the answer's steps, row by row."""
        if not self.is_located:
            return []
        self.count_compiled()
        ends = None
        if self.said is not None and len(self.said) == self.ledger.rows:
            ends = answer_ends(self.said, set(self.options.ends))
        found = self.ledger.of_rows(ends)
        for row, region in enumerate(self.regions):
            # A region found anew may be empty where the first was not, and the other way round.
            if not region.grids:
                found[row] = found[row].all_left_alone(IMAGELESS)
            elif self.config.boosts and not self.timeline.relocated and not region.mask.any():
                found[row] = found[row].all_left_alone(EMPTY)
            elif self._ablates_nothing:
                found[row] = found[row].all_left_alone(SHALLOW)
        return found

    @property
    def _ablates_nothing(self) -> bool:
        config = self.config
        chosen = config.method == "ablation" and config.ablate != "given"
        return chosen and config.first_layer >= self.host.shape[0]

    def check_sum(self, expected: int, beams: bool) -> None:
        """Every step must be accounted for.

        Args:
            expected: steps of the answer so far; a search with beams may have gone on behind it.

        Raises:
            SteeringError: it is not.
        """
        if not self.is_located or not any(self.prompt.grids):
            return
        self.count_compiled()
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
