"""What a forward pass is: a prompt, a further piece of one, or a step of the answer."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vrga.hf.inputs import PIXELS, cache_of
from vrga.reading import Announcement


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Args:
        kind: "prompt" begins one, "piece" goes on with it, "step" goes on with the answer, and
            "split" holds the end of a prompt and drafts of its answer.
        past: keys in the cache before it.
        length: with "split", the prompt's tokens in it.
        announced: with "prompt", what it was told to be, or None.
        known: the cache is that of the pass before.
    """

    kind: Literal["prompt", "piece", "step", "split"]
    past: int
    length: int = 0
    announced: Announcement | None = None
    known: bool = False


class Passes:
    """Follows the forward passes of one model.

    Args:
        end_tokens: gives the ids of tokens that end a turn.

    Attributes:
        reached: keys in the cache after the current pass.
    """

    def __init__(self, end_tokens: Callable[[], set[int]]):
        self.reached = 0
        self._end_tokens = end_tokens
        self._announced: Announcement | None = None
        self._end: int | None = None  # keys when the prompt is complete; None outside a prefill
        self._cache: Callable[[], object] = lambda: None

    @property
    def cache(self) -> object | None:
        """The cache of the last pass; None where there was none, or it is gone."""
        return self._cache()

    def announce(self, inputs: dict) -> None:
        """A prompt comes, maybe in pieces; see `Announcement.of`."""
        self._announced, self._end = Announcement.of(inputs), None

    def forget(self) -> None:
        """No prompt is under way."""
        self._announced = self._end = None

    def expect(self, end: int) -> None:
        """The prompt that has just begun is complete with `end` keys."""
        self._end = end

    def ran(self, cache: object | None) -> bool:
        """A pass is through, on this cache; whether it completed a prompt."""
        if cache is not None and cache is not self._cache():
            self._cache = weakref.ref(cache)
        if self._end is None or self.reached < self._end:
            return False  # no prompt, or more of it is to come
        self._end = None
        return True

    def next(self, inputs: dict, shape: tuple[int, int]) -> Pass:
        """What the pass with these inputs is.

        Args:
            inputs: the model's keyword arguments; shape: (B, tokens).

        Raises:
            ValueError: a cache that this object knows nothing of.
        """
        cache, announced = cache_of(inputs), self._announced
        known = cache is not None and cache is self._cache()
        static = getattr(cache, "is_compileable", False)
        if known and shape[1] == 1 and announced is None and self._end is None:
            # A static cache on a GPU would have to be waited for to tell its length.
            past = self.reached if static else int(cache.get_seq_length())
            self.reached = past + 1
            return Pass("step", past)
        past = 0 if cache is None else int(cache.get_seq_length())
        if past and known and static:
            # Older versions count a static cache's keys in one row, without padding.
            whole = announced is not None and announced.whole(past)
            past = announced.width - shape[1] if whole else past
        if announced is not None and past + shape[1] > announced.end(past):
            return Pass("split", past, length=announced.end(past) - past)
        self.reached = past + shape[1]
        if known and past and announced is None and self._end is not None:
            return Pass("piece", past)
        if past and not known and announced is None:
            raise ValueError(
                f"the cache holds {past} tokens of a prompt this patch has not seen: fill it "
                "with the patched model, or switch the patch off (patch.enabled = False)"
            )
        self._announced = None
        if past and known and not self._opens_turn(inputs, announced):
            return Pass("step", past)
        self._end = None
        return Pass("prompt", past, announced=announced, known=known)

    def _opens_turn(self, inputs: dict, announced: Announcement | None) -> bool:
        """Whether tokens that follow a cached prompt bring a new question."""
        ids = inputs.get("input_ids")
        if announced is not None and ids is not None and ids.shape[1] > 1:
            return True  # an answer goes on with its last token alone, which is not cached yet
        media = [value for name, value in inputs.items() if name.startswith(PIXELS)]
        if any(value is not None and (isinstance(value, Tensor) or value) for value in media):
            return True
        if ids is None:
            return False
        ends = torch.tensor(sorted(self._end_tokens()), device=ids.device)
        # A closed turn goes on with the next one's header; a drafted answer ends with its end.
        return bool(torch.isin(ids[:, :-1], ends).any())
