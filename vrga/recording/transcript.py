"""What was asked and answered, as token ids, and what makes text of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vrga.annotations import Tokenizer
from vrga.method.region import Region
from vrga.recording.token_texts import token_texts, until_end


@dataclass(frozen=True)
class Transcript:
    """One call of generate() in token ids, on the CPU.

    Args:
        said: ids of the answer, int64 [B, T].
        prompt, padding: ids of the prompt and its attention mask, int64 [B, S] each, or None.
        ends: ids that end an answer.
        tokenizer: that is known, or None.
    """

    said: Tensor
    prompt: Tensor | None
    padding: Tensor | None
    ends: set[int]
    tokenizer: Tokenizer | None

    @property
    def answers(self) -> list[list[int]]:
        """Each row's answer, up to the end of its sequence."""
        return [until_end(row, self.ends) for row in self.said.tolist()]

    def told(
        self, regions: list[Region], tokenizer: Tokenizer | None
    ) -> tuple[list[list[str]], list[str] | None] | None:
        """The text that each token of the answers adds, and each row's prompt as text, None where
        its ids are not known; None without a tokenizer.

        Args:
            tokenizer: in place of the one that is known.
        """
        tokenizer = self.tokenizer if tokenizer is None else tokenizer
        if tokenizer is None:
            return None
        # Cleaning up would move spaces from one token to another.
        decode = partial(tokenizer.decode, clean_up_tokenization_spaces=False)
        texts = [token_texts(answer, decode) for answer in self.answers]
        if self.prompt is None:
            return texts, None
        asked = [self._asked(self.prompt, regions, row) for row in range(len(self.prompt))]
        return texts, [decode(ids, skip_special_tokens=True).strip() for ids in asked]

    def _asked(self, prompt: Tensor, regions: list[Region], row: int) -> list[int]:
        """A row's prompt without padding; every run of image tokens as one."""
        kept = torch.ones(prompt.shape[1], dtype=torch.bool)
        if self.padding is not None:
            kept = self.padding[row] != 0
        if row < len(regions) and len(regions[row].image) == len(kept):
            # Not region.image: methods differ in what they count as image, and the prompt is one.
            image = torch.zeros_like(kept)
            for grid in regions[row].grids:
                image[grid.index] = True
            kept[1:] &= ~(image[1:] & image[:-1])
        return prompt[row, kept].tolist()
