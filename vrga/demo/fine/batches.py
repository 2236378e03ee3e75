"""Training batches of the model for `fine`: pictures, crops of them, and conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vrga.closer.crops import Box, overlap
from vrga.demo.data import CELL, LETTERS
from vrga.demo.fine.cards import CARDS
from vrga.demo.fine.data import FineSample, make_fine_samples, spoken
from vrga.demo.fine.grounds import FIELD, GRID, SIDE
from vrga.demo.learning import NOISE, DrawnBatches, patchify

LARGER = (7, 8)  # tokens a side of larger pictures that are asked about once
SHARES = {"larger": 0.25, "elsewhere": 0.1}  # of the straight, and of the closer, conversations
SIDES = (4, 4, 4, 5, 6, 8)  # tokens of crops; as many as a field has are the most frequent
BESIDE = 0.4  # share of the closer conversations with a crop more, around what was not asked for
STRAIGHT = 0.4  # share of the pictures that are also asked about without crops


@dataclass(frozen=True)
class View:
    """A part of a picture at some scale, its sides multiples of 28 pixels.

    Args:
        image: what is seen.
        box: the part of the picture.
    """

    image: Image.Image
    box: tuple[int, int, int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of visual tokens."""
        return self.image.height // CELL, self.image.width // CELL

    @property
    def scale(self) -> float:
        """Pixels seen for each of the picture's."""
        return self.image.width / (self.box[2] - self.box[0])

    def cell(self, center: tuple[int, int]) -> tuple[int, int] | None:
        """The token (row, column) that shows a place of the picture; None outside."""
        x, y = (int((center[i] - self.box[i]) * self.scale // CELL) for i in (0, 1))
        rows, columns = self.grid
        return (y, x) if 0 <= x < columns and 0 <= y < rows else None


class FineBatches(DrawnBatches):
    """Endless training batches of pictures never drawn before."""

    def __init__(self, processor, size: int, seed: int) -> None:
        super().__init__(processor, size, seed)
        tokens = processor.tokenizer
        self.colors = {color: tokens.encode(f" {color}")[0] for color in CARDS}

    def samples(self) -> list[FineSample]:
        """Pictures of every difficulty: each thing that makes it hard is drawn on its own."""
        found, rng = [], self.rng
        for _ in range(self.size):
            small = rng.random() < 0.6
            cards = int(rng.integers(3, 15))
            found += make_fine_samples(
                1,
                seed=self.next_seed,
                cards=(cards, cards),
                size=(36, 60) if small else (48, 108),
                two=0.3,
                alike=int(rng.integers(0, 4)),
                clutter=(0, 8) if rng.random() < 0.6 else (0, 0),
                strays=(0, 6) if rng.random() < 0.6 else (0, 0),
                ground="texture" if rng.random() < 0.6 else "plain",
            )
            self.next_seed += 1
        return found

    def crops(self, sample: FineSample, elsewhere: bool = False) -> list[View]:
        """Crops of 4 to 8 tokens a side around each asked card, in reading order.

        Some come with another around what was not asked for, most often of a like colour: finding
        errs so, and reading must not.

        Args:
            elsewhere: anywhere in the picture instead.
        """
        found = [self._crop(card.center, elsewhere) for card in sample.asked]
        if self.rng.random() < BESIDE:
            others = [card for card in sample.cards if card not in sample.asked]
            like = [card for card in others if card.color is None]
            others = like if like and self.rng.random() < 0.6 else others
            if others:
                place = others[int(self.rng.integers(len(others)))].center
                box = self._crop(place, elsewhere)
                if not any(overlap(box, own) for own in found):
                    found.append(box)
        found.sort(key=lambda box: (box[1] // FIELD, box[0] // FIELD))
        return [View(sample.image.crop(box), box) for box in found]

    def _crop(self, center: tuple[int, int], elsewhere: bool) -> Box:
        """A box on the raster of tokens around a place, or anywhere."""
        edges = []
        for middle in center:
            side = int(self.rng.choice(SIDES)) * CELL
            # The letter's own token is inside, and not at an edge that the card would cross.
            low = max(0, (middle // CELL + 2) * CELL - side)
            high = min(SIDE - side, (middle // CELL - 1) * CELL)
            if elsewhere:
                low, high = 0, SIDE - side
            low, high = min(low, high), max(low, high)
            first = int(self.rng.integers(low // CELL, high // CELL + 1)) * CELL
            edges.append((first, first + side))
        (left, right), (top, bottom) = edges
        return left, top, right, bottom

    def whole(self, sample: FineSample, tokens: int = GRID[0]) -> View:
        """The picture, shrunk to so many tokens a side."""
        size = (tokens * CELL, tokens * CELL)  # as the processor shrinks it
        return View(sample.image.resize(size, Image.Resampling.BICUBIC), (0, 0, SIDE, SIDE))

    def pixels(self, views: Sequence[tuple[View, float]]) -> dict[str, Tensor]:
        """Noisy pixels as keyword arguments for the model; shrinking averages noise away."""
        parts = []
        for view, sigma in views:
            clean = np.asarray(view.image, dtype=np.float32)[None]
            strength = np.float32(sigma * min(1.0, view.scale))
            noisy = clean + strength * self.rng.standard_normal(clean.shape, dtype=np.float32)
            parts.append(patchify(noisy.clip(0, 255), self.processor.image_processor))
        grids = [[1, 2 * rows, 2 * columns] for rows, columns in (view.grid for view, _ in views)]
        return {"pixel_values": torch.cat(parts), "image_grid_thw": torch.tensor(grids)}

    def cells(self) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Pixels of overviews and crops, labels [2, tokens] of letter and colour (0: none), and
        whether each token is of a crop, bool [tokens]."""
        views: list[tuple[View, float]] = []
        owners: list[FineSample] = []
        for sample in self.samples():
            larger = int(self.rng.choice((GRID[0], GRID[0], *LARGER)))
            own = [self.whole(sample, larger), *self.crops(sample), *self.crops(sample, True)]
            sigma = self.rng.uniform(0, NOISE)
            views += [(view, sigma) for view in own]
            owners += [sample] * len(own)
        labels, fine = [], []
        colors = list(CARDS)
        for (view, _), sample in zip(views, owners, strict=True):
            label = torch.zeros(2, *view.grid, dtype=torch.long)
            for card in sample.cards:
                cell = view.cell(card.center)
                if cell is not None:
                    color = 0 if card.color is None else 1 + colors.index(card.color)
                    label[:, cell[0], cell[1]] = torch.tensor(
                        [1 + LETTERS.index(card.letter), color]
                    )
            labels.append(label.flatten(1))
            fine.append(torch.full((label[0].numel(),), view.scale == 1))
        return self.pixels(views), torch.cat(labels, 1), torch.cat(fine)

    def conversations(
        self, finding: bool = False
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, list[str]]:
        """Model arguments of one batch, labels [N, T], looks [n, 4] and the conversations' kinds.

        Every picture is asked about with crops, and some straight as well. Labels are -100 but on
        assistant tokens. A look is (row, query, key, number of the query's looks): an image token
        that shows what is spoken of.

        Args:
            finding: ask straight alone, about every picture.
        """
        views: list[tuple[View, float]] = []
        rows, kinds = [], []
        for sample in self.samples():
            sigma = self.rng.uniform(0, NOISE)
            larger = self.rng.random() < SHARES["larger"]
            elsewhere = self.rng.random() < SHARES["elsewhere"]
            seen = self.whole(sample)
            asked = {}
            if not finding:
                crops = self.crops(sample, elsewhere)
                asked["elsewhere" if elsewhere else "closer"] = [seen, *crops]
            if finding or self.rng.random() < STRAIGHT:
                once = self.whole(sample, int(self.rng.choice(LARGER))) if larger else seen
                asked["larger" if larger else "once"] = [once]
            for kind, own in asked.items():
                grids = [view.grid for view in own]
                pair = self.encoded(grids, sample.question, spoken(sample))
                rows.append((sample, own, *pair))
                views += [(view, sigma) for view in own]
                kinds.append(kind)
        looks: list[tuple[int, int, int, int]] = []
        for i, row in enumerate(rows):
            for query, keys in self._looks(*row):
                looks += [(i, query, key, len(keys)) for key in keys]
        filled, labels = self.filled([(prompt, target) for _, _, prompt, target in rows])
        return self.pixels(views) | filled, labels, torch.tensor(looks), kinds

    def _looks(self, sample: FineSample, views: Sequence[View], prompt, target):
        """(query, keys) of one conversation."""
        pads = [i for i, token in enumerate(prompt) if token == self.ids["<|image_pad|>"]]
        places: dict[int, list[int]] = {i: [] for i in range(len(sample.asked))}
        first = 0
        for view in views:
            rows, columns = view.grid
            for i, card in enumerate(sample.asked):
                cell = view.cell(card.center)
                if cell is not None:
                    places[i].append(pads[first + cell[0] * columns + cell[1]])
            first += rows * columns
        yield prompt.index(self.mark), [key for keys in places.values() for key in keys]
        said = [i for i, token in enumerate(target) if token == self.colors[sample.color]]
        for i, place in enumerate(said[: len(sample.asked)]):
            yield len(prompt) + place, places[i][1:] or places[i]  # in a crop where there is one
