"""Prompts whose cache was not used: computed again with a token more, they are a loop by hand."""

from __future__ import annotations

import warnings
from collections import deque

import torch

from vrga.method.prompt import Prompt
from vrga.steering.passes import SteeringError

LONGER = 16  # tokens by which a prompt that is computed again has grown at most
KEPT = 4


class RecentPrompts:
    """The last prompts of one thread outside of generate().

    Args:
        cache_name: what the model calls its cache.
    """

    def __init__(self, cache_name: str):
        self._cache_name = cache_name
        self._alone: deque[Prompt] = deque(maxlen=KEPT)

    def use(self, prompt: Prompt) -> None:
        """Its cache was used, so that it does not stand alone."""
        others = (held for held in self._alone if held is not prompt)
        self._alone = deque(others, maxlen=KEPT)

    def come(self, prompt: Prompt) -> None:
        """A prompt is through; it must not be an earlier one and a token more: then a loop by hand
        computes all of it again for every token.

        Raises:
            SteeringError: it is.
        """
        ids = prompt.ids
        for held in self._alone:
            if ids is None or held.ids is None or not any(held.grids):
                continue
            more = ids.shape[1] - held.ids.shape[1]
            if len(ids) != len(held.ids) or not 0 < more <= LONGER:
                continue
            if not torch.equal(ids[:, : held.ids.shape[1]], held.ids):
                continue
            told = (
                "so there is no decode step to steer: hand the cache of the output on "
                f"({self._cache_name}=...), or switch the patch off (patch.enabled = False)"
            )
            if more == 1:
                raise SteeringError(
                    f"the whole prompt is computed again for each token, without its cache, {told}"
                )
            warnings.warn(
                f"a prompt is computed again with {more} tokens more, without its cache, {told}",
                stacklevel=2,
            )
        self._alone.append(prompt)
