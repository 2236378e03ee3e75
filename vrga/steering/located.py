"""A prompt that is through: what its rows are steered to, and what the steps behind it do."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vrga.config import VRGAConfig
from vrga.hf.begun import begun_answers
from vrga.hf.cache import KeyCache
from vrga.hf.host import Host
from vrga.hf.prompt_reader import PromptReader
from vrga.kernels.api import Kernels
from vrga.kernels.columns import GROUP
from vrga.method.back_spans import BackSpans
from vrga.method.key_groups import KeyGroups
from vrga.method.prompt import GridCells, cells_mask
from vrga.method.region import Region, empty_region
from vrga.method.steered_keys import SteeredKeys, known_gate
from vrga.method.tag_table import tag_table
from vrga.method.timeline import Timeline
from vrga.method.uncertainty import Uncertainty
from vrga.recording.meter import Meter
from vrga.recording.recorder import Recorder
from vrga.recording.waiting import CHUNK, Bank
from vrga.steering.asked_prompt import AskedPrompt
from vrga.steering.decode_step import DecodeStep
from vrga.steering.probe import Probe
from vrga.steering.record_block import Recording
from vrga.steering.settings import Options


@dataclass(frozen=True)
class Located:
    """A prompt whose regions are located.

    Args:
        asked: the prompt; timeline: of its rows' regions.
        question: the text of each row's question, bool [B, S].
        reached: keys in the cache.
        host, reader, options, kernels: as of its run.
    """

    asked: AskedPrompt
    timeline: Timeline
    question: Tensor
    reached: int
    host: Host
    reader: PromptReader
    options: Options
    kernels: Kernels

    @classmethod
    def of(
        cls,
        asked: AskedPrompt,
        found: dict[int, Region],
        reached: int,
        *,
        host: Host,
        reader: PromptReader,
        options: Options,
        kernels: Kernels,
    ) -> Located:
        """Put the rows' regions together: those found, of rows with an image, or given.

        Raises:
            ValueError: cells given that do not fit the images, or to a method that reads none.
        """
        prompt, length = asked.prompt, asked.prompt.image.shape[1]
        question = reader.question(prompt, asked.query, set(options.ends))
        regions = [
            found[row] if grids else empty_region(int(asked.query[row]), length, host.shape)
            for row, grids in enumerate(prompt.grids)
        ]
        words = reader.words(prompt, question)
        regions = [replace(r, question=said) for r, said in zip(regions, words, strict=True)]
        if options.given is not None:
            if options.config.method == "ablation":
                raise ValueError("patch.given is not read by method='ablation': set it to None")
            masks = _cells(asked, options.given, "given")
            regions = [replace(r, mask=m) for r, m in zip(regions, masks, strict=True)]
        timeline = Timeline(regions, reached)
        return cls(asked, timeline, question, reached, host, reader, options, kernels)

    @property
    def config(self) -> VRGAConfig:
        """The configuration in force for this prompt."""
        return self.options.config

    def step(
        self,
        probe: Probe,
        recording: Recording | None,
        cache: KeyCache | None,
        *,
        in_call: bool,
    ) -> DecodeStep | None:
        """What the decode steps do; None where they do what the unpatched model does.

        Args:
            probe: of the prompt; recording: of this run, or None.
            cache: that it is in, if its rows stay whose they are; else None.
            in_call: whether generate() is running.

        Raises:
            ValueError: heads or cells given that do not fit the config or the prompt.
        """
        ablated, config, regions = self._ablated_heads(), self.config, self.timeline.now
        if not config.steers and recording is None:
            return None
        groups = KeyGroups.of(config) if recording is None else self._measured(recording)
        keys = SteeredKeys(
            regions, groups, known_gate(regions, config, ablated), capacity=probe.capacity,
            devices=probe.devices,
        )  # fmt: skip
        recorder = None if recording is None else recording.recorder
        if recorder is not None:
            recorder.aim(self.timeline, groups if config.steers else groups.unweighted())
        phase = self._phase(recorder)
        meter = None
        if recorder is not None:  # its steps wait, and may be compiled, where the cache lets them
            stays, bank = cache is not None and cache.only_grows, None
            if cache is not None and stays and cache.static:
                bank = self._bank(probe, recorder, cache, phase, in_call)
            waits = in_call and stays
            meter = Meter(recorder, config, self.kernels, keys, waits=waits, bank=bank)
        return DecodeStep(
            config, self.kernels, keys, meter=meter, applied=config.steers, phase=phase,
            uncertainty=self._uncertainty(), ablated=ablated,
        )  # fmt: skip

    def _measured(self, recording: Recording) -> KeyGroups:
        """The groups of keys whose attention is recorded."""
        if recording.watch is not None:
            return KeyGroups.of(self.config, watch=_cells(self.asked, recording.watch, "watch"))
        return KeyGroups.of(self.config, question=self.question if self.config.boosts else None)

    def _bank(
        self,
        probe: Probe,
        recorder: Recorder,
        cache: KeyCache,
        phase: BackSpans | None,
        in_call: bool,
    ) -> Bank:
        """Room for what the steps on a static cache leave to be measured, which may be compiled."""
        return Bank(
            {i: probe.layers[i] for i in recorder.layers},
            steps=CHUNK if in_call else probe.capacity - self.reached,
            columns=GROUP + recorder.groups.count if self.config.steers else 0,
            queries=not self.config.steers or any(map(recorder.maps_of, recorder.layers)),
            cache=cache,
            visible=self.asked.prompt.visible,
            follows=phase is not None,
            hears=self._decided_by("uncertain"),
        )

    def _phase(self, recorder: Recorder | None) -> BackSpans | None:
        """What follows the rows' <back> spans, where something needs them."""
        told = recorder is not None and self.reader.known_tokenizer is not None
        if not self._decided_by("back") and not told:
            return None
        table = tag_table(self.reader.tokenizer, self.host.vocabulary, self.config.tag)
        begun = begun_answers(
            self.asked.prompt, self.options.ends, self.reader.marks, self.reader.tokenizer
        )
        return BackSpans(table, len(self.timeline.now), self.asked.device, self.reached, begun)

    def _uncertainty(self) -> Uncertainty | None:
        """What hears how sure the model is of its tokens, where that decides."""
        if not self._decided_by("uncertain"):
            return None
        return Uncertainty(self.config.uncertainty, len(self.timeline.now), self.asked.device)

    def _decided_by(self, what: str) -> bool:
        """Whether "back" or "uncertain" decides which steps are steered, or to what."""
        return what in (self.config.when, self.config.relocate)

    def _ablated_heads(self) -> Tensor | None:
        """The heads given to be ablated, bool [B, L, H]; None where the config asks for none."""
        ablated, regions = self.options.ablated, self.timeline.now
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


def _cells(asked: AskedPrompt, cells: GridCells, name: str) -> Tensor:
    """Cells of the images as keys of the prompt, bool [B, S]."""
    cells = cells(asked.prompt.grids) if callable(cells) else cells
    return cells_mask(cells, asked.prompt, name)
