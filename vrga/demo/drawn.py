"""Questions drawn for the models inside this package, by their split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vrga.beforehand import check_split
from vrga.demo.chain.data import CHAIN_SPLITS, PROMPTS, ChainSample, make_chain_samples
from vrga.demo.data import SPLITS, make_samples, split_options
from vrga.evaluation.items import Item, drawn_items


def check_drawn(split: str) -> None:
    """Raise ValueError for a split, or one of several, of which no questions can be drawn here."""
    for one in split.split("+"):
        check_split(one, (*SPLITS, *CHAIN_SPLITS))


def drawn_of(split: str, n: int, seed: int) -> list[Item]:
    """So many questions of a split of `SPLITS` or `CHAIN_SPLITS`, the first drawn from `seed`.

    Args:
        split: a name, or several with "+" between them, whose questions take turns.

    Raises:
        ValueError: no such split.
    """
    check_drawn(split)
    splits = split.split("+")
    if len(splits) > 1:
        drawn = [drawn_of(one, -(-n // len(splits)), seed) for one in splits]
        turns = [item for own in zip(*drawn, strict=True) for item in own][:n]
        return [replace(item, id=str(number)) for number, item in enumerate(turns)]
    if split in CHAIN_SPLITS:
        return chain_items(make_chain_samples(n, seed=seed, **CHAIN_SPLITS[split]))
    return drawn_items(make_samples(n, seed=seed, **split_options(split)))


def chain_items(samples: Sequence[ChainSample]) -> list[Item]:
    """Questions of two looks, in the words that their model was trained with; the box is that of
    the card with the answer."""
    return [
        Item(
            id=str(number),
            question=sample.question,
            answer=sample.answer,
            images=(sample.image,),
            texts={p: text.format(question=sample.question) for p, text in PROMPTS.items()},
            box=None if sample.small else sample.second.box,
        )
        for number, sample in enumerate(samples)
    ]
