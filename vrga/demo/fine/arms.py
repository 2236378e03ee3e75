"""Ways of asking the questions of `fine`, compared on the same questions: the arms.

Every question is asked once, about the picture as the processor shrinks it, and again with crops
of the original: at the place that was found, at the true box, and at random. The fair baseline is
one larger picture of as many pixels as picture and crops have together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vrga.closer.closer import Pictures, prompt_images
from vrga.closer.crops import Crop, crop_boxes, crops_around, decide, find_spots
from vrga.closer.two_looks import steered_cells
from vrga.closer.zoom import Zoom
from vrga.config import VRGAConfig
from vrga.demo.fine.data import FineSample
from vrga.hf.second_look import batch_inputs, most_pixels, seen_sizes, token_side
from vrga.method.prompt import Grid
from vrga.method.region import Region
from vrga.steering.patching import patch

LONGEST = 28  # tokens; two letters and their box take 20
ONCE, STEERED, LARGER, RANDOM, FOUND = "once", "once, steered", "larger", "random", "found"
PLACE, ANEW, TRUE = "found, steered to place", "found, steered anew", "true box"
FIRST_CROPS, TWICE = "found, crops first", "found, asked twice"
TOLD = {
    ONCE: "asked once",
    STEERED: "asked once, steered",
    LARGER: "one larger picture, as many pixels",
    RANDOM: "crop at random",
    FOUND: "find and zoom",
    PLACE: "the same, steered to region and crop",
    ANEW: "the same, steered to what is found anew",
    FIRST_CROPS: "the same, crops before the picture",
    TWICE: "the same, question before and after the crops",
    TRUE: "true box",
}


@dataclass(frozen=True)
class Asked:
    """Everything about one question before arms are compared.

    Args:
        sample: the question; pictures: its picture, and how it is seen; seen: as the model sees it.
        region: of the first look.
        crops: found, also where they are not looked at; zooms: whether they are.
        true: crops of the true boxes.
    """

    sample: FineSample
    pictures: Pictures
    seen: Image.Image
    region: Region
    crops: tuple[Crop, ...]
    zooms: bool
    true: tuple[Crop, ...]

    @property
    def peak(self) -> bool:
        """Whether the map is highest on a token that an asked card is on."""
        grid, part = self.region.grids[0], self.region.map[0]
        row, column = divmod(int(part.argmax()), grid.w)
        width, height = self.sample.image.width / grid.w, self.sample.image.height / grid.h
        return any(
            x // width == column and y // height == row
            for x, y in (card.center for card in self.sample.asked)
        )

    @property
    def held(self) -> bool:
        """Whether every asked letter is in a crop that was found."""
        return all(
            any(c.box[0] <= x < c.box[2] and c.box[1] <= y < c.box[3] for c in self.crops)
            for x, y in (card.center for card in self.sample.asked)
        )


@dataclass(frozen=True)
class Answers:
    """What a batch of questions gave."""

    texts: list[str]
    regions: list[Region]
    tokens: list[int]  # visual ones


def run_fine_arms(
    loaded: tuple,
    samples: Sequence[FineSample],
    arms: Sequence[str],
    config: VRGAConfig,
    zoom: Zoom,
    start: int = 0,
) -> tuple[list[Asked], dict[str, Answers]]:
    """All arms on one batch of questions.

    Args:
        loaded: model and processor.
        arms: names of `TOLD`.
        config: how the place is found, and steered to in the arms that steer.
        zoom: how it is cropped.
        start: number of the first question, from which random crops are drawn.
    """
    batch = _Batch(loaded, samples, config, zoom)
    ways = batch.ways(start)
    return batch.asked, {arm: ways[arm]() for arm in arms}


class _Batch:
    """Questions that were asked once, and ways of asking them again."""

    def __init__(
        self, loaded: tuple, samples: Sequence[FineSample], config: VRGAConfig, zoom: Zoom
    ):
        self.loaded, self.samples, self.config, self.zoom = loaded, samples, config, zoom
        self.side = token_side(loaded[1])
        self.first = self.once(replace(config, gain=1.0))
        pairs = zip(samples, self.first.regions, strict=True)
        self.asked = [self._asked(sample, region) for sample, region in pairs]
        self.found = [one.pictures.cropped(one.crops) for one in self.asked]

    def _asked(self, sample: FineSample, region: Region) -> Asked:
        grid, size, side, zoom = region.grids[0], sample.image.size, self.side, self.zoom
        seen = grid.w * side, grid.h * side
        resample = int(self.loaded[1].image_processor.resample)
        pictures = Pictures([sample.image], [seen], resample)
        crops = crops_around(find_spots(region, zoom), [size], [seen], zoom, side)
        true = crop_boxes(sample.boxes, size, seen, zoom, side)
        zooms = decide(crops, [size], zoom, side=side).zooms
        return Asked(sample, pictures, pictures.shrunk()[0], region, crops, zooms, true)

    def ask(self, rows: list[list], steering: VRGAConfig | None = None, given=None) -> Answers:
        """Answers to rows of images and texts, each image as it is."""
        return ask_rows(self.loaded, rows, steering, given=given)

    def once(self, steering: VRGAConfig | None) -> Answers:
        """Asked about the pictures as the processor shrinks them."""
        rows = [[one.image, one.question] for one in self.samples]
        return ask_rows(self.loaded, rows, steering, shrink=self.zoom)

    def second(self, crops: list[list[Image.Image]], order: Zoom | None = None) -> list[list]:
        """Rows of the second prompt."""
        order = self.zoom if order is None else order
        return [
            [*prompt_images([one.seen], own, order), one.sample.question]
            for one, own in zip(self.asked, crops, strict=True)
        ]

    def twice(self) -> list[list]:
        """Rows with the question before and after the crops."""
        return [
            [one.seen, one.sample.question, *own, one.sample.question]
            for one, own in zip(self.asked, self.found, strict=True)
        ]

    def instead(self, answers: Answers) -> Answers:
        """Where no closer look was taken, the first answer stands."""
        pick = [int(one.zooms) for one in self.asked]
        texts = zip(self.first.texts, answers.texts, pick, strict=True)
        count = zip(self.first.tokens, answers.tokens, pick, strict=True)
        return Answers(
            [own[i] for *own, i in texts], answers.regions, [own[i] for *own, i in count]
        )

    def place(self, grids: list[list[Grid]]) -> list[list[Tensor]]:
        """Cells that ``steer="place"`` steers to."""
        return [
            steered_cells(own, one.region, len(one.crops), self.zoom)
            for own, one in zip(grids, self.asked, strict=True)
        ]

    def ways(self, start: int) -> dict[str, Callable[[], Answers]]:
        """How each arm asks; `start` as of `run_fine_arms`."""
        rng = np.random.default_rng(start)
        elsewhere = [one.pictures.cropped(_elsewhere(one, rng)) for one in self.asked]
        crops_first = replace(self.zoom, order="crops", reuse=False)
        steering = self.config if self.config.steers else None
        ask, second, instead, found = self.ask, self.second, self.instead, self.found
        return {
            ONCE: lambda: self.first,
            STEERED: lambda: self.once(steering),
            LARGER: lambda: _larger(ask, self.asked, self.side),
            RANDOM: lambda: ask(second(elsewhere)),
            FOUND: lambda: instead(ask(second(found))),
            PLACE: lambda: instead(ask(second(found), steering, self.place)),
            ANEW: lambda: instead(ask(second(found), steering)),
            FIRST_CROPS: lambda: instead(ask(second(found, crops_first))),
            TWICE: lambda: instead(ask(self.twice())),
            TRUE: lambda: ask(second([one.pictures.cropped(one.true) for one in self.asked])),
        }


def _larger(ask, asked: Sequence[Asked], side: int) -> Answers:
    """One picture of as many pixels as the picture as seen and the crops have together."""
    pixels = [
        one.seen.width * one.seen.height + sum(c.size[0] * c.size[1] for c in one.crops)
        for one in asked
    ]
    rows = []
    for one, most in zip(asked, pixels, strict=True):
        cells = math.sqrt(most / side**2 * one.sample.image.width / one.sample.image.height)
        other = math.sqrt(most / side**2 * one.sample.image.height / one.sample.image.width)
        # In the original's favour: to the nearest whole number of tokens, not the one below.
        size = round(cells) * side, round(other) * side
        rows.append([one.sample.image.resize(size, Image.Resampling.BICUBIC), one.sample.question])
    return ask(rows)


def _elsewhere(one: Asked, rng: np.random.Generator) -> list[Crop]:
    """Crops of the sizes that were found (or that the truth has), anywhere in the picture."""
    width, height = one.sample.image.size
    found = []
    for crop in one.crops or one.true:
        w, h = crop.box[2] - crop.box[0], crop.box[3] - crop.box[1]
        # On the raster of 28 pixels, as crops around tokens of the overview are.
        room = (((width - w) // 28), ((height - h) // 28))
        x, y = (28 * int(rng.integers(0, most + 1)) for most in room)
        found.append(replace(crop, box=(x, y, x + w, y + h)))
    return found


def ask_rows(loaded: tuple, rows, config, given=None, shrink: Zoom | None = None) -> Answers:
    """Greedy answers to a batch; each row holds images and texts in the order of its turn.

    Args:
        loaded: model and processor.
        config: None leaves the model unpatched.
        given: cells to steer to, as of `Patch.given`, or None.
        shrink: let the processor shrink the images, as at the first look; None takes them as they
            are.
    """
    (model, processor), chats, images = loaded, [], []
    for row in rows:
        content = [
            {"type": "image"} if isinstance(x, Image.Image) else {"type": "text", "text": x}
            for x in row
        ]
        chats.append(
            processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        )
        images += [x for x in row if isinstance(x, Image.Image)]
    largest = max(image.width * image.height for image in images)
    pixels = largest if shrink is None else shrink.overview_pixels
    inputs = batch_inputs(processor, chats, images, most_pixels(processor, pixels))
    side = token_side(processor)
    sizes = iter(seen_sizes(processor, inputs))
    tokens = []
    for row in rows:
        mine = [next(sizes) for x in row if isinstance(x, Image.Image)]
        tokens.append(sum(w * h for w, h in mine) // side**2)

    def generate():
        with torch.inference_mode():
            return model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)

    regions: list[Region] = []
    if config is None:
        new = generate()
    else:
        with patch(model, config, tokenizer=processor.tokenizer) as steered:
            steered.given = given
            new = generate()
            regions = steered.region
    new = new[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(new, skip_special_tokens=True)
    return Answers([text.strip() for text in texts], regions, tokens)
