"""What the decode steps behind a located prompt do, set up: keys, meter, spans, uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vrga.hf.begun import begun_answers
from vrga.hf.cache import KeyCache
from vrga.kernels.columns import GROUP
from vrga.method.back_spans import BackSpans
from vrga.method.key_groups import KeyGroups
from vrga.method.steered_keys import SteeredKeys, known_gate
from vrga.method.tag_table import tag_table
from vrga.method.uncertainty import Uncertainty
from vrga.recording.meter import Meter
from vrga.recording.recorder import Recorder
from vrga.recording.waiting import CHUNK, Bank
from vrga.steering.decode_step import DecodeStep
from vrga.steering.located import Located
from vrga.steering.probe import Probe
from vrga.steering.record_block import Recording


@dataclass(frozen=True)
class StepSetup:
    """What the steps of a prompt are made of.

    Args:
        located: the prompt; probe: of it; recording: of this run, or None.
        cache: that the prompt is in, if its rows stay whose they are; else None.
        in_call: whether generate() is running.
    """

    located: Located
    probe: Probe
    recording: Recording | None
    cache: KeyCache | None
    in_call: bool

    def step(self) -> DecodeStep | None:
        """What the steps do; None where they do what the unpatched model does.

        Raises:
            ValueError: heads or cells given that do not fit the config or the prompt.
        """
        ablated, regions = self._ablated_heads(), self.located.timeline.now
        config, kernels = self.located.config, self.located.kernels
        if not config.steers and self.recording is None:
            return None
        groups = self._groups()
        keys = SteeredKeys(
            regions, groups, known_gate(regions, config, ablated),
            capacity=self.probe.capacity, devices=self.probe.devices,
        )  # fmt: skip
        recorder = None if self.recording is None else self.recording.recorder
        spans, meter = self._spans(), None
        if recorder is not None:
            recorder.aim(self.located.timeline, groups if config.steers else groups.unweighted())
            stays = self.cache is not None and self.cache.only_grows
            meter = Meter(
                recorder, config, kernels, keys, waits=self.in_call and stays,
                bank=self._bank(recorder, follows=spans is not None),
            )  # fmt: skip
        return DecodeStep(
            config, kernels, keys, meter=meter, spans=spans, uncertainty=self._uncertainty(),
            ablated=ablated,
        )  # fmt: skip

    def _groups(self) -> KeyGroups:
        """The groups of keys that are told apart: by their weights, and by what is recorded."""
        config = self.located.config
        if self.recording is None:
            return KeyGroups.of(config)
        if self.recording.watch is not None:
            watch = self.located.asked.keys_of(self.recording.watch, "watch")
            return KeyGroups.of(config, watch=watch)
        return KeyGroups.of(config, question=self.located.question if config.boosts else None)

    def _bank(self, recorder: Recorder, *, follows: bool) -> Bank | None:
        """Room for what the steps on a static cache leave to be measured, which may be compiled;
        None on another cache."""
        cache, steers = self.cache, self.located.config.steers
        if cache is None or not (cache.static and cache.only_grows):
            return None
        return Bank(
            {i: self.probe.layers[i] for i in recorder.layers},
            steps=CHUNK if self.in_call else self.probe.capacity - self.located.reached,
            columns=GROUP + recorder.groups.count if steers else 0,
            queries=not steers or any(map(recorder.maps_of, recorder.layers)),
            cache=cache,
            visible=self.located.asked.prompt.visible,
            follows=follows,
            hears=self._decided_by("uncertain"),
        )

    def _spans(self) -> BackSpans | None:
        """What follows the rows' <back> spans, where they decide, or a recording tells them."""
        located, reader = self.located, self.located.reader
        told = self.recording is not None and reader.known_tokenizer is not None
        if not self._decided_by("back") and not told:
            return None
        prompt, tokenizer = located.asked.prompt, reader.tokenizer
        table = tag_table(tokenizer, located.host.vocabulary, located.config.tag)
        begun = begun_answers(prompt, located.options.ends, reader.marks, tokenizer)
        rows, device = len(located.timeline.now), located.asked.device
        return BackSpans(table, rows, device, located.reached, begun)

    def _uncertainty(self) -> Uncertainty | None:
        """What hears how sure the model is of its tokens, where that decides."""
        if not self._decided_by("uncertain"):
            return None
        rows, device = len(self.located.timeline.now), self.located.asked.device
        return Uncertainty(self.located.config.uncertainty, rows, device)

    def _decided_by(self, what: str) -> bool:
        """Whether "back" or "uncertain" decides which steps are steered, or to what."""
        return what in (self.located.config.when, self.located.config.relocate)

    def _ablated_heads(self) -> Tensor | None:
        """The heads given to be ablated, bool [B, L, H]; None where the config asks for none."""
        ablated, regions = self.located.options.ablated, self.located.timeline.now
        ablate = self.located.config.ablate
        if (ablate == "given") != (ablated is not None):
            raise ValueError(
                "patch.ablated and VRGAConfig.ablation('given') go together: patch.ablated is "
                f"{'None' if ablated is None else 'set'}, ablate={ablate!r}"
            )
        if ablated is None:
            return None
        heads = torch.as_tensor(ablated(regions) if callable(ablated) else ablated)
        wanted = (len(regions), *self.located.host.shape)
        if heads.dtype != torch.bool or tuple(heads.shape) not in (wanted, wanted[1:]):
            raise ValueError(
                f"ablated is {heads.dtype} {list(heads.shape)}; wanted: bool {list(wanted)}, or "
                f"{list(wanted[1:])} for all rows"
            )
        return heads.cpu().expand(wanted)
