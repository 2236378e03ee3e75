"""CloserAsker: questions of a benchmark, each asked with a closer look where that is worth it."""

from __future__ import annotations

import time
from dataclasses import asdict, replace

import torch

from vrga.annotations import BatchFeature, Model
from vrga.closer.look import looks_of
from vrga.closer.two_looks import TwoLooks
from vrga.closer.zoom import Zoom
from vrga.config import VRGAConfig
from vrga.evaluation.asker import Asker
from vrga.evaluation.batch import summary
from vrga.evaluation.request import Answer, Ready
from vrga.hf.second_look import check_pictures
from vrga.steering.patching import Patch


def refuse_options(options: dict) -> None:
    """Refuse options of `generate` under which no closer look is taken.

    Raises:
        ValueError: sampling, or beams.
    """
    beams = (options.get("num_beams") or 1) > 1
    if options.get("do_sample") or beams:
        raise ValueError(
            "a closer look is taken by greedy answers alone, and this question asks for "
            f"{'beams' if beams else 'sampled ones'}: leave out --zoom"
        )


class CloserAsker(Asker):
    """Answers requests one at a time, with a closer look where that is worth it.

    Each answer says what was decided and why, the crops, and what it cost (`Answer.zoom`); its
    region is that of the first look, which chose the crops. A question without a picture is
    answered as by the steered model.

    Args:
        model, processor: of a Qwen-VL family; config: how the place is found and steered to.
        zoom: when and where to look closer.
        pixels, seed: as of `Asker`.

    Raises:
        ValueError: a model whose processor does more than shrink pictures.
    """

    def __init__(
        self,
        model: Model,
        processor,
        config: VRGAConfig,
        zoom: Zoom,
        *,
        pixels: tuple[int | None, int | None] = (None, None),
        seed: int = 0,
    ):
        check_pictures(model, processor)
        super().__init__(model, processor, config, batch=1, pixels=pixels, seed=seed)
        self.zoom = zoom

    def _looks(self, one: Ready) -> TwoLooks:
        longest = int(one.request.options["max_new_tokens"])
        return looks_of(self.zoom)(
            self.model, self.processor, self.zoom, longest, bounds=self._images
        )

    def _read_inputs(self, batch: list[Ready]) -> BatchFeature:
        one = batch[0]
        if not one.images:
            return super()._read_inputs(batch)
        refuse_options(dict(one.request.options))
        return self._looks(one).first_inputs(one.chat, one.images)

    @torch.inference_mode()
    def _generate(
        self, batch: list[Ready], inputs: BatchFeature, steered: Patch | None
    ) -> list[Answer]:
        assert steered is not None  # there is always a config
        one = batch[0]
        if not one.images:
            why = {"zooms": False, "reason": "no picture in the question"}
            answers = super()._generate(batch, inputs, steered)
            return [replace(answer, zoom={"decision": why}) for answer in answers]
        started = time.perf_counter()
        steered.query = [one.question]
        looks = self._looks(one)
        found = looks.answer(steered, one.messages, one.images, inputs, started)
        text = found.text
        for stop in one.request.options.get("until") or []:
            text = text.split(stop)[0] if stop else text
        numbers, steps = found.numbers(), steered.steps[0]
        return [
            Answer(
                one.request.id,
                one.chat,
                text.strip(),
                found.cost.answer,
                found.cost.total,
                steps.steered > 0,
                summary(found.region),
                steps=asdict(steps),
                zoom={name: numbers[name] for name in ("decision", "cost", "looks")},
            )
        ]
