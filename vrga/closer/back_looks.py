"""BackLooks: the model says when, by writing <back>; the place is looked at closer there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from vrga.closer.at_back import at_back, looked_cells, whole
from vrga.closer.closer import Closer, Cost, Look, Pictures
from vrga.closer.crops import Crop, Decision
from vrga.closer.two_looks import TwoLooks
from vrga.hf.greedy import plain_cache
from vrga.hf.inputs import TYPES
from vrga.hf.second_look import seen_sizes, token_side, with_crops
from vrga.method.region import Region
from vrga.steering.patching import Patch


class Watch:
    """Decides at each <back> of an answer whether to look closer there.

    As a stopping criterion of generate() it stops the answer at a <back> that is looked closer at,
    behind the first token of the span, which was chosen without the look.

    Args:
        looks: how questions are asked; steered: the patch, which finds the regions.
        pictures: that are asked about; length: tokens of the first prompt.

    Attributes:
        first: the question's region, when the first prompt is through; asked: of the newest
            prompt.
        said: tokens of the answer that are in the prompt, int64 [1, T].
        taken: looks so far, refused ones among them.
        came: when the first decision came, see `time.perf_counter`; None before.
    """

    def __init__(self, looks: BackLooks, steered: Patch, pictures: Pictures, length: int):
        self.looks, self.steered, self.pictures = looks, steered, pictures
        self.length = length
        self.first: Region | None = None
        self.asked: Region | None = None
        self.said = torch.zeros(1, 0, dtype=torch.int64, device=looks.model.device)
        self.taken: list[Look] = []
        self.came: float | None = None
        self._heard = 0

    @property
    def crops(self) -> list[Crop]:
        """Crops of the looks that were taken, in their order."""
        return [crop for look in self.taken if look.decision.zooms for crop in look.decision.crops]

    def begin(self) -> None:
        """A prompt begins, in which no <back> has been heard."""
        self.asked, self._heard = None, 0

    def stops(self, new: Tensor) -> bool:
        """Whether the answer is to stop for a closer look.

        Args:
            new: tokens chosen behind this prompt, int64 [1, T]; a <back> is known when the token
                behind it has been chosen.
        """
        if self.asked is None:
            self.asked = self.steered.region[0]
        if self.first is None:
            self.first = self.asked
        episodes = self.steered.episodes
        if len(episodes) == self._heard:
            return False
        self._heard = len(episodes)
        region = episodes[-1].region if self.looks.zoom.seek == "back" else self.first
        said = torch.cat([self.said, new[:, :-1].to(self.said.device)], 1)
        decision = self._decision(region)
        self.came = time.perf_counter() if self.came is None else self.came
        text = self.looks.processor.batch_decode(said, skip_special_tokens=True)[0]
        self.taken.append(Look(said.shape[1], text, region, decision))
        if decision.zooms:
            self.said = said
        return decision.zooms

    def __call__(self, ids: Tensor, scores: object, **kwargs) -> Tensor:
        held = self.length + self.said.shape[1] + self.added
        stop = self.stops(ids[:, held:])
        return torch.full((len(ids),), stop, dtype=torch.bool, device=ids.device)

    @property
    def added(self) -> int:
        """Tokens that crops have added to the first prompt."""
        side = token_side(self.looks.processor)
        return sum(2 + crop.tokens(side) for crop in self.crops)

    def _decision(self, region: Region) -> Decision:
        looks = self.looks
        context = looks.model.config.get_text_config().max_position_embeddings
        # What is said already is in the prompt, and is of the tokens that an answer may have.
        room = context - self.length - self.added - looks.max_new_tokens
        taken = self.crops, len(self.taken)
        return at_back(region, self.pictures, looks.zoom, taken, token_side(looks.processor), room)


@dataclass(frozen=True)
class BackLooks(TwoLooks):
    """How questions are asked, one at a time, with a closer look at each <back> that is worth one.

    At a <back> the answer stops; what that token looks at in the pictures is cropped from the
    originals; the crops stand behind the pictures and the looks before, the answer up to the
    <back> behind the question, and the answer goes on. What stands before the first <back> is what
    the model would have said without any look.
    """

    def answer(
        self,
        steered: Patch,
        messages: list[dict],
        images: Sequence[Image.Image],
        inputs: dict[str, Tensor],
        started: float,
    ) -> Closer:
        """As of `TwoLooks`.

        Raises:
            ValueError: a configuration that follows something else than <back>.
        """
        config = steered.config
        if config.relocate == "uncertain" or config.when == "uncertain" or config.method != "vrga":
            raise ValueError(
                f"Zoom(when='back') follows <back> with method='vrga', and the configuration has "
                f"method={config.method!r}, when={config.when!r}, relocate={config.relocate!r}: "
                "leave them at 'vrga', 'always' or 'back', 'question' or 'back'"
            )
        steered.config, steered.given = replace(config, relocate="back"), None
        try:
            return self._answer(steered, messages, images, inputs, started)
        finally:
            steered.config, steered.given = config, None

    def _answer(self, steered, messages, images, inputs, started) -> Closer:
        side, length = token_side(self.processor), inputs["input_ids"].shape[1]
        resample = int(self.processor.image_processor.resample)
        pictures = Pictures(images, seen_sizes(self.processor, inputs), resample)
        inputs = self._on_device(inputs)
        watch = Watch(self, steered, pictures, length)
        prompt, start, cache, query = inputs, 0, None, steered.query
        second, computed, reused, spoken = None, 0, 0, 0
        try:
            while True:
                crops = len(watch.crops)
                watch.begin()
                left = self.max_new_tokens - watch.said.shape[1]
                new, cache, trace = self._said(
                    steered, prompt, [watch], watch.stops, left, cache, start
                )
                spoken += new.shape[1]
                if crops:
                    second = watch.asked
                if len(watch.crops) == crops:
                    break
                prompt, start = self._prompt(messages, inputs, watch, crops)
                start = start if self.zoom.reuse and plain_cache(cache) and not self.record else 0
                computed, reused = computed + prompt["input_ids"].shape[1] - start, reused + start
                self._aim(steered, watch, length)
        finally:
            steered.query = query
        assert watch.first is not None  # a token at least was chosen
        text = self.processor.batch_decode(
            torch.cat([watch.said, new.to(watch.said.device)], 1), skip_special_tokens=True
        )[0]
        cost = Cost(
            seen=sum(w * h for w, h in pictures.seen) // side**2,
            crops=sum(crop.tokens(side) for crop in watch.crops),
            prompt=length, second=computed, reused=reused, answer=spoken,
            first=(watch.came or time.perf_counter()) - started,
            total=time.perf_counter() - started,
        )  # fmt: skip
        found = Closer(
            text.strip(), whole(watch.taken), watch.first, second, pictures, cost, self.zoom,
            trace, tuple(watch.taken),
        )  # fmt: skip
        if trace is not None:
            trace.attach(images=[found.images]).closer = found.numbers()
        return found

    def _prompt(
        self, messages: list[dict], first: dict[str, Tensor], watch: Watch, before: int
    ) -> tuple[dict[str, Tensor], int]:
        """Inputs of the pictures, all crops, question and answer so far; and how many of their
        first tokens the prompt before had, in which there were `before` crops."""
        crops = watch.pictures.cropped(watch.crops)
        token = self.model.config.image_token_id
        inputs, start = with_crops(self.processor, messages, first, crops, token)
        side = token_side(self.processor)
        start += sum(2 + crop.tokens(side) for crop in watch.crops[:before])
        said = watch.said
        inputs["input_ids"] = torch.cat([inputs["input_ids"], said], 1)
        for name, own in (("attention_mask", torch.ones_like), (TYPES, torch.zeros_like)):
            if name in inputs:
                more = own(said, dtype=inputs[name].dtype)
                inputs[name] = torch.cat([inputs[name], more], 1)
        return self._on_device(inputs), start

    def _aim(self, steered: Patch, watch: Watch, length: int) -> None:
        """The question stands where it stood, behind the crops; steer to the newest look."""
        look = watch.taken[-1]
        added = watch.added
        assert watch.first is not None
        steered.query = watch.first.query + added
        if self.zoom.steer == "anew":
            return

        own, new = len(watch.pictures.originals), len(look.decision.crops)
        steered.given = lambda grids: [looked_cells(grids[0], look.region, own, new, self.zoom)]
