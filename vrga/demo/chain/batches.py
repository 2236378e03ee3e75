"""Training batches of the model for `chain`: pictures, crops in the order of looks, answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vrga.demo.chain.data import (
    ACROSS,
    PATCH,
    PROMPTS,
    ChainSample,
    make_chain_samples,
    small_cells,
    small_picture,
    spoken,
)
from vrga.demo.data import CELL
from vrga.demo.fine.batches import FineBatches, View
from vrga.demo.fine.cards import Card

# Shares of the conversations: what is shown beside the picture as it is shrunk, or in its place.
SHOWN = {"both": 0.45, "first": 0.15, "none": 0.1, "small": 0.3}
STYLES = {"cot": 0.4, "back": 0.5, "direct": 0.1}
# Weights of letters in the loss: those that are shown, and those that can only be guessed.
READ, GUESSED = 4.0, 0.25


@dataclass(frozen=True)
class Shown:
    """What one conversation shows, and where its two cards stand in it.

    Args:
        views: in the order of the prompt, the picture first.
        places: of each card, (number of a view, row, column) of the tokens that show it, that in
            the picture first.
        readable: of each card, whether its letter can be read.
    """

    views: list[View]
    places: tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]
    readable: tuple[bool, bool]


@dataclass(frozen=True)
class Batch:
    """Conversations.

    Args:
        inputs: of the model; labels: int64 [N, T], -100 but on assistant tokens.
        weights: of labels, float [N, T].
        looks: (row, query, key, number of the query's looks), int64 [n, 4].
        read: letters that are shown and told first, bool [N, T].
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    weights: Tensor
    looks: Tensor
    read: Tensor


class ChainBatches(FineBatches):
    """Endless training batches of questions never drawn before."""

    def drawn(self) -> list[ChainSample]:
        """Questions of every difficulty."""
        found, rng = [], self.rng
        for _ in range(self.size):
            found += make_chain_samples(
                1, seed=self.next_seed, cards=(5, 7),
                size=(36, 60) if rng.random() < 0.7 else (48, 100), alike=int(rng.integers(0, 2)),
                clutter=(0, 6) if rng.random() < 0.6 else (0, 0),
                strays=(0, 3) if rng.random() < 0.4 else (0, 0),
                ground="texture" if rng.random() < 0.6 else "plain",
            )  # fmt: skip
            self.next_seed += 1
        return found

    def batch(self) -> Batch:
        """One batch: a conversation about each picture."""
        views: list[tuple[View, float]] = []
        rows = []
        for sample in self.drawn():
            shown = self._shown(sample, str(self.rng.choice(list(SHOWN), p=list(SHOWN.values()))))
            style = str(self.rng.choice(list(STYLES), p=list(STYLES.values())))
            grids = [view.grid for view in shown.views]
            text = PROMPTS[style].format(question=sample.question)
            rows.append((sample, shown, *self.encoded(grids, text, spoken(sample, style))))
            sigma = self.rng.uniform(0, 60)
            views += [(view, sigma) for view in shown.views]
        filled, labels = self.filled([(prompt, target) for *_, prompt, target in rows])
        weights, read = torch.ones(labels.shape), torch.zeros(labels.shape, dtype=torch.bool)
        looks: list[tuple[int, int, int, int]] = []
        for i, (sample, shown, prompt, target) in enumerate(rows):
            for card, place in self._letters(sample, target):
                weights[i, len(prompt) + place] = READ if shown.readable[card] else GUESSED
                read[i, len(prompt) + place] = shown.readable[card]
            for query, keys in self._rows(sample, shown, prompt, target):
                looks += [(i, query, key, len(keys)) for key in keys]
        inputs = self.pixels(views) | filled
        return Batch(inputs, labels, weights, torch.tensor(looks), read)

    def _shown(self, sample: ChainSample, kind: str) -> Shown:
        if kind == "small":
            return self._small(sample)
        views = [self.whole(sample.picture)]
        for card in {"both": sample.asked, "first": sample.asked[:1], "none": ()}[kind]:
            views += self.crops(replace(sample.picture, asked=(card,)))
        first, second = ([*_seen(views, card)] for card in sample.asked)
        return Shown(views, (first, second), (len(first) > 1, len(second) > 1))

    def _small(self, sample: ChainSample) -> Shown:
        """The cards alone, at their own size."""
        seed = int(self.rng.integers(1 << 31))
        side = ACROSS * PATCH
        view = View(small_picture(sample.picture, seed), (0, 0, side, side))
        boxes, places = small_cells(sample.picture, seed), []
        for card in sample.asked:
            x, y = card.center
            number = next(i for i, b in enumerate(boxes) if b[0] <= x < b[2] and b[1] <= y < b[3])
            row, column = divmod(number, ACROSS)
            across, down = (x - boxes[number][0]) // CELL, (y - boxes[number][1]) // CELL
            places.append([(0, 2 * row + down, 2 * column + across)])
        return Shown([view], (places[0], places[1]), (True, True))

    def _letters(self, sample: ChainSample, target: list[int]) -> Iterator[tuple[int, int]]:
        """Of each card, where its letter is told first: behind the colour, or behind "it is"."""
        (of,) = self.processor.tokenizer.encode(" is")
        known = {self.colors[str(card.color)]: i for i, card in enumerate(sample.asked)}
        letters = [self.processor.tokenizer.encode(f" {c.letter}")[0] for c in sample.asked]
        spoken_of, told = None, set()
        for place, token in enumerate(target):
            spoken_of = known.get(token, spoken_of)
            before = target[place - 1] if place else None
            if spoken_of is not None and spoken_of not in told and token == letters[spoken_of]:
                if before in (of, *known):
                    told.add(spoken_of)
                    yield spoken_of, place

    def _rows(
        self, sample: ChainSample, shown: Shown, prompt: list[int], target: list[int]
    ) -> Iterator[tuple[int, list[int]]]:
        """(query, keys): who looks where. The question looks at the first card in the picture, and
        so does all that stands between a card's colour and its letter, up to the look at it; what
        reads it looks at the crop, where there is one."""
        pads = [i for i, token in enumerate(prompt) if token == self.ids["<|image_pad|>"]]
        begins = [0]
        for view in shown.views:
            begins.append(begins[-1] + view.grid[0] * view.grid[1])

        def key(place: tuple[int, int, int]) -> int:
            view, row, column = place
            return pads[begins[view] + row * shown.views[view].grid[1] + column]

        yield prompt.index(self.mark), [key(shown.places[0][0])]
        known = {self.colors[str(card.color)]: i for i, card in enumerate(sample.asked)}
        encode = self.processor.tokenizer.encode
        (see,), (of,) = encode(" see"), encode(" is")
        letters = {card: place for card, place in self._letters(sample, target)}
        card = None
        for place, token in enumerate(target):
            card = known.get(token, card)
            if card is None or place >= letters.get(card, len(target)):
                continue
            reads = token == of or (token in known and target[place - 1] == see)
            own = [key(one) for one in shown.places[card]]
            yield len(prompt) + place, (own[1:] or own) if reads else own[:1]


def _seen(views: Sequence[View], card: Card) -> Iterator[tuple[int, int, int]]:
    """Where views show a card: number of the view, row and column of the token."""
    for number, view in enumerate(views):
        cell = view.cell(card.center)
        if cell is not None:
            yield number, *cell
