"""Attention of all words of a turn, in full, and where the truth lies: what finding is tried on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vrga.annotations import Model, Processor
from vrga.demo.data import PROMPTS, Sample
from vrga.demo.fine.data import FineSample
from vrga.hf.backends import backend_of, set_backend
from vrga.hf.host import Host
from vrga.hf.prompt_reader import PromptReader
from vrga.hf.second_look import batch_inputs, turn_of
from vrga.method.prompt import Grid


@dataclass(frozen=True)
class AskedRows:
    """One question about one picture, at its prompt.

    Args:
        rows: attention from the turn's Q content tokens, float32 [L, H, Q, S].
        seen: keys that these see, bool [L, Q, S].
        grids: of the picture, one; truth: its cells with what is asked for, bool [h * w].
        named: which of the Q is the question's own last token; an instruction may follow it.
    """

    rows: Tensor
    seen: Tensor
    grids: list[Grid]
    truth: Tensor
    named: int


def asked_rows(
    loaded: tuple[Model, Processor], samples: Sequence[Sample | FineSample], prompt: str, batch: int
) -> Iterator[AskedRows]:
    """The rows of each question, from one prefill a batch.

    Args:
        prompt: of `PROMPTS`, for questions about a grid; those about cards stand alone.
    """
    model, processor = loaded
    reader, own = PromptReader(Host(model), processor), backend_of(model)
    set_backend(model, "eager")  # the only one to return attention in full
    try:
        for start in range(0, len(samples), batch):
            yield from _batch(model, processor, reader, samples[start : start + batch], prompt)
    finally:
        set_backend(model, own)


@torch.inference_mode()
def _batch(
    model: Model, processor: Processor, reader: PromptReader, samples: Sequence, prompt: str
) -> list[AskedRows]:
    chats = [
        processor.apply_chat_template(turn_of(1, text), add_generation_prompt=True)
        for text in (_text(sample, prompt) for sample in samples)
    ]
    inputs = batch_inputs(processor, chats, [sample.image for sample in samples], {})
    layers = model(**inputs, use_cache=False, output_attentions=True, logits_to_keep=1).attentions
    rows, length = inputs["input_ids"].shape
    ends = reader.host.end_tokens
    read = reader.read(inputs, (rows, length), inputs["attention_mask"])
    query = reader.positions(read, "user_end", 0, ends)
    named = reader.positions(read, [sample.question for sample in samples], 0, ends).tolist()
    found = []
    for row, words in enumerate(reader.content(read, query, ends)):
        places, grid = torch.tensor(words), read.grids[row][0]
        seen = read.visible[row] & (torch.arange(length) <= places[:, None])
        found.append(
            AskedRows(
                torch.stack([layer[row, :, places] for layer in layers]),
                seen.expand(len(layers), -1, -1),
                [grid],
                _truth(samples[row], grid),
                words.index(named[row]),
            )
        )
    return found


def _text(sample: Sample | FineSample, prompt: str) -> str:
    if isinstance(sample, FineSample):
        return sample.question
    return PROMPTS[prompt].format(question=sample.question)


def _truth(sample: Sample | FineSample, grid: Grid) -> Tensor:
    """The cells of what is asked for: one, or those of the asked cards' letters."""
    cells = torch.zeros(grid.h, grid.w, dtype=torch.bool)
    if isinstance(sample, Sample):
        cells[sample.cell] = True
        return cells.flatten()
    width, height = sample.image.size
    for x, y in (card.center for card in sample.asked):
        cells[y * grid.h // height, x * grid.w // width] = True
    return cells.flatten()
