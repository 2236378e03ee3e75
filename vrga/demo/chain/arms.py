"""Ways of asking questions of two looks, compared on the same questions: the arms.

Without VRGA; with VRGA inside <back>; with a closer look before the answer, where the question
looks; and with one at each <back>. Beside them one larger picture of as many pixels as picture and
crops have together, and crops of both cards at their true places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from vrga.closer.at_back import at_back, looked_cells
from vrga.closer.closer import Pictures
from vrga.closer.crops import Crop, crop_boxes, crops_around, decide, find_spots
from vrga.closer.zoom import Zoom
from vrga.config import VRGAConfig
from vrga.demo.chain.data import PROMPTS, ChainSample
from vrga.demo.fine.cards import Card
from vrga.hf.inputs import TYPES
from vrga.hf.second_look import batch_inputs, most_pixels, token_side, turn_of
from vrga.method.back_spans import BackSpans
from vrga.method.region import Region
from vrga.method.tag_table import tag_table
from vrga.steering.patching import Patch, patch

LONGEST = 96  # tokens; a chain with two looks and its box takes 65
OFF, INSIDE, BEFORE, BACK = "off", "inside back", "zoom before", "zoom at back"
BY_QUESTION, LARGER, TRUE = "zoom at back, by question", "larger", "true boxes"
TOLD = {
    OFF: "no VRGA",
    INSIDE: "VRGA inside `<back>`",
    BEFORE: "closer look before the answer",
    BACK: "closer look at each `<back>`",
    BY_QUESTION: "the same, where the question looks",
    LARGER: "one larger picture, as many pixels",
    TRUE: "crops of both cards",
}


@dataclass
class Row:
    """One question while it is asked.

    Args:
        sample: the question; pictures: its picture, and how it is seen.
        crops: behind the picture; said: tokens of the answer so far.
        looks: crops of each <back>, none where it was not looked closer at.
        aimed: what the last look's place is, and how many crops it took.
        done: whether the answer is whole.
    """

    sample: ChainSample
    pictures: Pictures
    crops: list[Crop] = field(default_factory=list)
    said: list[int] = field(default_factory=list)
    looks: list[tuple[Crop, ...]] = field(default_factory=list)
    aimed: tuple[Region, int] | None = None
    done: bool = False

    @property
    def images(self) -> list[Image.Image]:
        """The picture as the model sees it, and the crops."""
        return [*self.pictures.shrunk(), *self.pictures.cropped(self.crops)]

    def held(self, look: int, card: Card) -> bool:
        """Whether a card's letter is in the crops of a look, or of one before it."""
        x, y = card.center
        crops = [crop for own in self.looks[: look + 1] for crop in own]
        return len(self.looks) > look and any(
            c.box[0] <= x < c.box[2] and c.box[1] <= y < c.box[3] for c in crops
        )


def true_crops(sample: ChainSample, pictures: Pictures, zoom: Zoom, side: int) -> list[Crop]:
    """Crops of both cards at their true places; side: pixels of a side of a visual token."""
    return [
        crop
        for card in sample.asked
        for crop in crop_boxes([card.box], pictures.sizes[0], pictures.seen[0], zoom, side)
    ]


class AtBack(StoppingCriteria):
    """Ends each row one token behind the <back> that it writes, when that has been looked from."""

    def __init__(self, spans: BackSpans):
        self.spans = spans
        self.opened = torch.zeros(len(spans.state), 0, dtype=torch.bool)

    def __call__(self, ids: Tensor, scores: object, **kwargs) -> Tensor:
        self.spans.advance(ids[:, -1:].cpu(), None)
        before = self.opened.any(1)
        self.opened = torch.cat([self.opened, self.spans.opened], 1)
        return before.to(ids.device)


class ChainArms:
    """A batch of questions, and ways of asking them.

    Args:
        loaded: model and processor.
        config: how places are found, and steered to.
        zoom: how they are cropped.
        prompt: of `PROMPTS`.
    """

    def __init__(
        self,
        loaded: tuple,
        samples: Sequence[ChainSample],
        config: VRGAConfig,
        zoom: Zoom,
        prompt: str = "cot",
    ):
        self.model, self.processor = loaded
        self.samples, self.prompt = samples, prompt
        self.config, self.zoom = config, zoom
        self.side = token_side(self.processor)

    def ask(self, arm: str) -> tuple[list[str], list[Row]]:
        """The answers of an arm of `TOLD`, and what was looked at."""
        inside = replace(self.config, when="back", relocate="back")
        ways: dict[str, Callable[[list[Row]], list[str]]] = {
            OFF: lambda rows: self._texts(rows, None),
            INSIDE: lambda rows: self._texts(rows, inside),
            BEFORE: self._before,
            BACK: lambda rows: self._at_back(rows, inside, "back"),
            BY_QUESTION: lambda rows: self._at_back(rows, inside, "question"),
            LARGER: lambda rows: self._texts([self._larger(row) for row in rows], None),
            TRUE: self._true,
        }
        rows = [self._row(sample) for sample in self.samples]
        return ways[arm](rows), rows

    def _row(self, sample: ChainSample) -> Row:
        width, height = sample.image.size
        shrink = max(1, round(width / (6 * self.side)))
        seen = width // shrink, height // shrink
        resample = int(self.processor.image_processor.resample)
        return Row(sample, Pictures([sample.image], [seen], resample))

    # --- prompts ---

    def _inputs(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """A left-padded batch of prompts, each with its answer so far."""
        chats = []
        for row in rows:
            text = PROMPTS[self.prompt].format(question=row.sample.question)
            messages = turn_of(len(row.images), text)
            chats.append(self.processor.apply_chat_template(messages, add_generation_prompt=True))
        images = [image for row in rows for image in row.images]
        most = max(image.width * image.height for image in images)
        inputs = batch_inputs(self.processor, chats, images, most_pixels(self.processor, most))
        masks = inputs["attention_mask"].bool()
        pad = self.processor.tokenizer.pad_token_id
        lines = [
            ids[mask].tolist() + row.said
            for ids, mask, row in zip(inputs["input_ids"], masks, rows, strict=True)
        ]
        length = max(map(len, lines))
        ids = torch.tensor([[pad] * (length - len(line)) + line for line in lines])
        mask = torch.tensor([[0] * (length - len(line)) + [1] * len(line) for line in lines])
        inputs |= {"input_ids": ids, "attention_mask": mask}
        if TYPES in inputs:
            inputs[TYPES] = (ids == self.model.config.image_token_id).to(inputs[TYPES].dtype)
        return inputs

    def _generate(
        self, rows: Sequence[Row], steered: Patch | None, stop: AtBack | None = None, tokens=LONGEST
    ) -> list[list[int]]:
        """New tokens of each row, up to its end."""
        inputs = self._inputs(rows)
        if steered is not None:
            steered.query = [row.sample.question for row in rows]
        criteria = StoppingCriteriaList([] if stop is None else [stop])
        with torch.inference_mode():
            found = self.model.generate(
                **inputs, max_new_tokens=tokens, do_sample=False, stopping_criteria=criteria
            )
        new = found[:, inputs["input_ids"].shape[1] :].tolist()
        ends = set(self.model.generation_config.eos_token_id)
        return [list(takewhile(lambda token: token not in ends, line)) for line in new]

    def _patched(self, config: VRGAConfig) -> Patch:
        return patch(self.model, config, tokenizer=self.processor.tokenizer)

    def _read(self, tokens: Sequence[int]) -> str:
        return self.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()

    # --- ways ---

    def _texts(self, rows: Sequence[Row], config: VRGAConfig | None) -> list[str]:
        if config is None:
            return [self._read(line) for line in self._generate(rows, None)]
        with self._patched(config) as steered:
            return [self._read(line) for line in self._generate(rows, steered)]

    def _before(self, rows: list[Row]) -> list[str]:
        with self._patched(replace(self.config, gain=1.0)) as steered:
            self._generate(rows, steered, tokens=1)
            regions = steered.region
        for row, region in zip(rows, regions, strict=True):
            own = row.pictures
            spots = find_spots(region, self.zoom)
            crops = crops_around(spots, own.sizes, own.seen, self.zoom, self.side)
            if decide(crops, own.sizes, self.zoom, side=self.side).zooms:
                row.crops = list(crops)
                row.looks = [crops]
        return self._texts(rows, None)

    def _true(self, rows: list[Row]) -> list[str]:
        for row in rows:
            row.crops += true_crops(row.sample, row.pictures, self.zoom, self.side)
        return self._texts(rows, None)

    def _larger(self, row: Row) -> Row:
        """One picture of as many pixels as the picture and crops of both cards have together."""
        own = row.pictures
        crops = true_crops(row.sample, own, self.zoom, self.side)
        tokens = (own.seen[0][0] // self.side) ** 2 + sum(c.tokens(self.side) for c in crops)
        side = round(tokens**0.5) * self.side
        return Row(row.sample, replace(own, seen=[(side, side)]))

    def _at_back(self, rows: list[Row], config: VRGAConfig, seek: str) -> list[str]:
        zoom = replace(self.zoom, when="back")
        first: dict[int, Region] = {}
        while live := [row for row in rows if not row.done]:
            table = tag_table(self.processor.tokenizer, self.model.config.text_config.vocab_size)
            begun = [row.said for row in live]
            stop = AtBack(BackSpans(table, len(live), torch.device("cpu"), begun=begun))
            left = LONGEST - min(len(row.said) for row in live)
            with self._patched(config) as steered:
                steered.given = self._aim(live, zoom)
                new = self._generate(live, steered, stop, max(left, 1))
                found = {one.row: one for one in reversed(steered.episodes)}
            for place, (row, line) in enumerate(zip(live, new, strict=True)):
                opened = stop.opened[place].nonzero().flatten().tolist()
                if place not in found or not opened:
                    row.said, row.done = row.said + line, True
                    continue
                asked = first.setdefault(id(row), found[place].before)
                self._look(row, found[place].region if seek == "back" else asked, zoom)
                row.said = row.said + line[: opened[0] + 1]
                row.done = len(row.said) >= LONGEST
        return [self._read(row.said) for row in rows]

    def _look(self, row: Row, region: Region, zoom: Zoom) -> None:
        """What one <back> brings."""
        decision = at_back(region, row.pictures, zoom, (row.crops, len(row.looks)), self.side)
        taken = decision.crops if decision.zooms else ()
        row.crops += taken
        row.looks.append(taken)
        row.aimed = region, len(taken)

    def _aim(self, rows: Sequence[Row], zoom: Zoom):
        """The place of each row's last look, as `Patch.given` takes it; None at the first."""
        aimed = [row.aimed for row in rows if row.aimed is not None]
        if len(aimed) < len(rows):
            return None
        return lambda grids: [
            looked_cells(own, region, 1, crops, zoom)
            for own, (region, crops) in zip(grids, aimed, strict=True)
        ]
