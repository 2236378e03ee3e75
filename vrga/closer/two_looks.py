"""TwoLooks: one question's first look, the decision, and where it is worth it the second look."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from vrga.annotations import Cache, Model, Processor
from vrga.closer.closer import Closer, Cost, Pictures
from vrga.closer.crops import Decision, crops_around, decide, find_spots
from vrga.closer.zoom import Zoom
from vrga.config import unsteered_config
from vrga.hf.cache import cache_in
from vrga.hf.greedy import Greedy, cut, plain_cache
from vrga.hf.second_look import batch_inputs, most_pixels, seen_sizes, token_side, with_crops
from vrga.method.prompt import Grid
from vrga.method.region import Region
from vrga.recording.trace import Trace
from vrga.steering.patching import Patch


def steered_cells(grids: Sequence[Grid], region: Region, crops: int, zoom: Zoom) -> list[Tensor]:
    """What ``steer="place"`` steers to: the region in the pictures and all of each crop.

    Args:
        grids: of the second prompt's images; region: of the first look; crops: how many.
    """
    whole = [torch.ones(grid.h, grid.w, dtype=torch.bool) for grid in grids]
    first = crops if zoom.order == "crops" else 0
    for place, grid in enumerate(region.grids):
        whole[first + place] = region.mask[grid.index].view(grid.h, grid.w)
    return whole


def nothing_to_gain(pictures: Pictures) -> Decision:
    """No closer look, as the model sees every pixel."""
    told = ", ".join(f"{w} x {h}" for w, h in pictures.sizes)
    why = f"nothing to gain: the model sees {told} pixels as they are"
    return Decision(False, why, (), 0.0, 1.0)


class Judge:
    """Decides once, when the first look's prompt is through and its region known.

    As a stopping criterion of generate() it stops the first look behind its first token, for a
    closer look.

    Args:
        steered: the patch, which finds the region.
        pictures: that are asked about.
        zoom: when and where to look closer.
        length: tokens of the first prompt; room: for crops, in tokens.
        side: pixels of a side of a visual token.

    Attributes:
        came: when the decision came, see `time.perf_counter`.
    """

    def __init__(
        self, steered: Patch, pictures: Pictures, zoom: Zoom, length: int, room: int, side: int
    ):
        self.steered, self.pictures, self.zoom = steered, pictures, zoom
        self.length, self.room, self.side = length, room, side
        self.came = 0.0

    def __call__(self, ids: Tensor, scores: object, **kwargs) -> Tensor:
        stop = self.decision.zooms and ids.shape[1] == self.length + 1
        return torch.full((len(ids),), stop, dtype=torch.bool, device=ids.device)

    @cached_property
    def decision(self) -> Decision:
        found, self.came = self._decided(), time.perf_counter()
        return found

    def _decided(self) -> Decision:
        pictures = self.pictures
        if pictures.shows_all:
            return nothing_to_gain(pictures)
        spots = find_spots(self.steered.region[0], self.zoom)
        crops = crops_around(spots, pictures.sizes, pictures.seen, self.zoom, self.side)
        return decide(crops, pictures.sizes, self.zoom, side=self.side, room=self.room)


@dataclass(frozen=True)
class TwoLooks:
    """How questions are asked, one at a time, with a closer look where that is worth it.

    Args:
        model, processor: of a Qwen-VL family; the model is patched while it is asked.
        zoom: when and where to look closer.
        max_new_tokens: longest answer; it is greedy.
        record: measure the answer; streamer: of `generate`, with `record`.
        bounds: the image processor's option for the first look, as of `vrga.images.bounded`;
            `zoom.overview_pixels` comes before it.
    """

    model: Model
    processor: Processor
    zoom: Zoom
    max_new_tokens: int
    record: bool = False
    streamer: object | None = None
    bounds: Mapping[str, object] | None = None

    def first_inputs(self, chat: str, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Model inputs of the first look.

        Args:
            chat: as text, one placeholder for each image.
        """
        own = most_pixels(self.processor, self.zoom.overview_pixels)
        return batch_inputs(self.processor, [chat], list(images), own or self.bounds or {})

    def answer(
        self,
        steered: Patch,
        messages: list[dict],
        images: Sequence[Image.Image],
        inputs: dict[str, Tensor],
        started: float,
    ) -> Closer:
        """Both looks, or the first alone.

        Args:
            steered: the model's patch.
            messages: the chat, its images as parts {"type": "image"}.
            images: RGB, in the order of those parts.
            inputs: as of `first_inputs`.
            started: when the question came, see `time.perf_counter`.

        Raises:
            ValueError: a configuration that relocates, with ``steer="place"``.
        """
        if self.zoom.steer == "place" and steered.config.relocate != "question":
            raise ValueError(
                f"relocate={steered.config.relocate!r} finds regions of its own amid the answer, "
                "in place of the crops that steer='place' keeps to: give Zoom(steer='anew')"
            )
        steered.given = None
        side, length = token_side(self.processor), inputs["input_ids"].shape[1]
        resample = int(self.processor.image_processor.resample)
        pictures = Pictures(images, seen_sizes(self.processor, inputs), resample)
        context = self.model.config.get_text_config().max_position_embeddings
        room = context - length - self.max_new_tokens
        judge = Judge(steered, pictures, self.zoom, length, room, side)
        inputs = self._on_device(inputs)
        new, cache, trace = self._said(
            steered, inputs, [judge], lambda new: judge.decision.zooms, self.max_new_tokens
        )
        decision, region = judge.decision, steered.region[0]
        second, reused, prompt, answer = None, 0, 0, new.shape[1]
        if decision.zooms:
            with self._steering_of_second(steered):
                new, reused, prompt, trace = self._second(
                    steered, messages, pictures, decision, region, inputs, cache
                )
                second = steered.region[0] if steered.enabled else None
            answer = 1 + new.shape[1]
        cost = Cost(
            seen=sum(w * h for w, h in pictures.seen) // side**2,
            crops=sum(crop.tokens(side) for crop in decision.crops) if decision.zooms else 0,
            prompt=length,
            second=prompt - reused,
            reused=reused,
            answer=answer,
            first=judge.came - started,
            total=time.perf_counter() - started,
        )
        text = self.processor.batch_decode(new, skip_special_tokens=True)[0].strip()
        found = Closer(text, decision, region, second, pictures, cost, self.zoom, trace)
        if trace is not None:
            trace.attach(images=[found.images]).closer = found.numbers()
        return found

    @contextmanager
    def _steering_of_second(self, steered: Patch) -> Iterator[None]:
        """The patch as the second look has it; with ``steer="off"`` it is switched off, or without
        a gain where it measures."""
        config = steered.config
        if self.zoom.steer == "off":
            steered.enabled = self.record
            steered.config = unsteered_config(config)
        try:
            yield
        finally:
            steered.enabled, steered.config = True, config

    def _second(
        self,
        steered: Patch,
        messages: list[dict],
        pictures: Pictures,
        decision: Decision,
        region: Region,
        first: dict[str, Tensor],
        cache: Cache,
    ) -> tuple[Tensor, int, int, Trace | None]:
        """The second answer's tokens [1, T], how many of its prompt's were reused and how many
        there are, and its trace."""
        crops = pictures.cropped(decision.crops)
        token = self.model.config.image_token_id
        before = self.zoom.order == "crops"
        inputs, start = with_crops(self.processor, messages, first, crops, token, before=before)
        inputs = self._on_device(inputs)
        if self.zoom.steer == "place":
            steered.given = lambda grids: [steered_cells(grids[0], region, len(crops), self.zoom)]
        start = start if self.zoom.reuse and plain_cache(cache) and not self.record else 0
        new, _, trace = self._said(
            steered, inputs, [], lambda new: False, self.max_new_tokens, cache, start
        )
        return new, start, inputs["input_ids"].shape[1], trace

    def _said(
        self,
        steered: Patch,
        inputs: dict[str, Tensor],
        criteria: list,
        stops: Callable[[Tensor], bool],
        longest: int,
        cache: Cache | None = None,
        start: int = 0,
    ) -> tuple[Tensor, Cache, Trace | None]:
        """Tokens [1, T] behind a prompt, `longest` at most, greedily; the cache, and the trace.

        Args:
            criteria: end it in generate(), which is recorded; stops: told of the tokens so far,
                ends it otherwise.
            cache: of the prompt's first `start` tokens; 0 begins one.
        """
        if self.record:
            options: dict[str, object] = {"max_new_tokens": longest, "do_sample": False}
            options |= {"return_dict_in_generate": True, "stopping_criteria": criteria}
            if self.streamer is not None:
                options["streamer"] = self.streamer
            with steered.record(maps="visual", layer_maps=True) as trace:
                output = self.model.generate(**inputs, **options)
            return output.sequences[:, inputs["input_ids"].shape[1] :], cache_in(output), trace
        held = cache if start else None
        if held is not None:
            cut(held, start)
        answer = Greedy(self.model, inputs, longest, held, start)
        goes_on = answer.go_on()
        while not stops(answer.new) and goes_on:
            goes_on = answer.go_on()
        return answer.new, answer.cache, None

    def _on_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.model.device) for name, value in inputs.items()}
