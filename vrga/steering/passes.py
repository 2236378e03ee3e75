"""What a forward pass is: a prompt, a further piece of one, or a step of the answer.

One function decides, from what is known of the pass's cache and nothing else. What cannot be told
is an error: "unknown" is never taken for "fresh".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


class SteeringError(RuntimeError, ValueError):
    """A pass or a generation that cannot be what it seems: steering would be wrong, or missing.

    It is a RuntimeError, of a model in use, and a ValueError, for what was given to it.
    """


@dataclass(frozen=True)
class Progress:
    """How far the prompt of a cache is.

    Args:
        reached: keys that the cache holds by our own count.
        end: keys when its prompt is complete.
        query: the last position from which a row's question looks.
        answering: whether an answer has begun, so that what comes behind `end` is of it.
    """

    reached: int
    end: int
    query: int = -1
    answering: bool = True

    @property
    def complete(self) -> bool:
        """Whether the prompt is through, so that the answer goes on."""
        return self.reached >= self.end


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Args:
        kind: "prompt" begins one, "piece" goes on with it, "step" goes on with the answer, "rest"
            is the end of a prompt whose question has been looked at already, and "split" holds the
            end of a prompt and tokens of its answer.
        past: keys in the cache before it.
        length: with "split", the prompt's tokens in it.
    """

    kind: Literal["prompt", "piece", "step", "rest", "split"]
    past: int
    length: int = 0


def what_is(
    tokens: int,
    *,
    held: int | None,
    progress: Progress | None,
    announced: Callable[[int], int] | None,
    opens_turn: Callable[[], bool],
    brings_images: bool,
    in_call: bool,
    may_cut: bool,
) -> Pass:
    """What a forward pass is.

    Args:
        tokens: of each row.
        held: keys in the cache before it; None without a cache.
        progress: of the prompt that this cache holds; None where no patch has seen one.
        announced: gives the keys in the cache when the prompt that was announced is complete, from
            `held`; None where none is to come.
        opens_turn: whether the tokens bring a new question behind a cached prompt.
        brings_images: whether pixels come with them.
        in_call: whether generate() is running.
        may_cut: whether keys of rejected drafts may have been taken back since the last pass.

    Raises:
        SteeringError: a pass that cannot be what it seems; it says what was seen, and what to do.
    """
    past = held or 0
    if announced is not None:
        end = announced(past)
        if past + tokens > end:  # 22 tokens for a prompt of 20: two drafts
            if in_call and not may_cut:
                raise SteeringError(
                    f"the model is given {past + tokens} tokens for a prompt of {end}: something "
                    "puts tokens before the prompt, such as the virtual tokens of a prompt-tuned "
                    "or prefix-tuned adapter; positions of image tokens are not known then: merge "
                    "or leave off the adapter, or switch the patch off (patch.enabled = False)"
                )
            return Pass("split", past, length=end - past)
        if past and progress is not None and not opens_turn():  # generate() on its last answer
            # What it announces counts an answer so far to the prompt; it stays an answer.
            return _goes_on(past, tokens, progress, progress.end if progress.answering else end)
        return Pass("prompt", past)  # all of its 20 tokens, or the first 8
    if progress is None:
        if past:  # a cache that the unpatched model filled
            raise SteeringError(
                f"the cache holds {past} tokens of a prompt this patch has not seen: fill it "
                "with the patched model, or switch the patch off (patch.enabled = False)"
            )
        return Pass("prompt", 0)  # model(**inputs)
    if not past and progress.reached:
        if in_call or (tokens == 1 and not brings_images):  # no prompt, but a step without a cache
            raise SteeringError(
                f"the cache is empty, but {progress.reached} tokens have gone through it: it was "
                "dropped or cleared (gradient checkpointing in train mode drops it: call "
                "model.eval()). A new prompt on a cleared cache is told by patch.announce(inputs)"
            )
        return Pass("prompt", 0)  # a new picture, on a cache that was cleared by hand
    if not progress.complete:  # tokens 9 to 16 of 20
        return Pass("piece", _agreed(past, tokens, progress, may_cut=False))
    if not in_call and opens_turn():  # the user's next question, by hand
        return Pass("prompt", past)
    return Pass("step", _agreed(past, tokens, progress, may_cut))  # one token; drafts, several


def _goes_on(past: int, tokens: int, progress: Progress, end: int) -> Pass:
    """What a pass is that goes on, in a new call, with a prompt that is known and ends at `end`."""
    if past <= progress.query:  # cut before the question's end, which is looked at anew
        return Pass("prompt", past)
    if past >= end:  # behind the answer so far
        return Pass("step", _agreed(past, tokens, progress, may_cut=True))
    if past > progress.reached:
        _agreed(past, tokens, progress, may_cut=True)  # which says what is wrong
    if past + tokens > end:  # cut to 19 of a prompt of 20, and given its last and three of answer
        return Pass("split", past, length=end - past)
    return Pass("rest", past)  # cut to 19 of 20, and given the last alone


def _agreed(past: int, tokens: int, progress: Progress, may_cut: bool) -> int:
    """`past`, where it agrees with what has gone through the cache.

    Raises:
        SteeringError: it does not.
    """
    cut = may_cut and min(progress.end, progress.reached) <= past < progress.reached
    if past == progress.reached or cut:
        return past
    raise SteeringError(
        f"the cache holds {past} keys where {progress.reached} tokens have gone through the model "
        f"(its prompt has {progress.end}): keys were evicted or put in by something else, so "
        "that keys no longer stand at their tokens' positions; use a cache that keeps all keys, "
        "or switch the patch off (patch.enabled = False)"
    )


def check_compiled(tokens: int) -> None:
    """Raise RuntimeError for a compiled pass of more than one token of each row."""
    if tokens > 1:
        raise RuntimeError(
            "a patched model cannot compile passes of several tokens, such as chunks of the "
            "prefill: call generate with disable_compile=True, or without prefill_chunk_size"
        )
