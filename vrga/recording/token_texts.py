"""Tokens as text: what each of them adds, where an answer ends, where it looks back."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from vrga.lookback import TAG


def token_texts(ids: Iterable[int], decode: Callable[[list[int]], str]) -> list[str]:
    """The text that each token adds; joined, they are the text of all.

    A character of several tokens is added by the last of them.
    """
    ids, texts = list(ids), []
    start, done, shown = 0, 0, ""  # ids[start:done] is the context, whose text is `shown`
    for end in range(1, len(ids) + 1):
        whole = decode(ids[start:end])
        if whole.endswith("\ufffd") and end < len(ids):
            texts.append("")
            continue
        texts.append(whole[len(shown) :])
        start, done = done, end
        shown = decode(ids[start:done])
    return texts


class Streamed:
    """Hands an answer on as it is spoken: what `generate` takes as its streamer, for one row.

    Args:
        decode: ids -> text, with the option skip_special_tokens.
        say: is given each new piece of text; all of them are the answer, stripped.
    """

    def __init__(self, decode: Callable[..., str], say: Callable[[str], object]):
        self._decode, self._say = decode, say
        self._ids: list[int] | None = None  # None until the prompt has come
        self._shown = ""

    def put(self, value: Tensor) -> None:
        """New tokens, int64 [n] or [1, n]; the first ones are the prompt."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        self._hand_on(last=False)

    def end(self) -> None:
        """The answer is through."""
        self._hand_on(last=True)
        self._ids, self._shown = None, ""

    def _hand_on(self, *, last: bool) -> None:
        text = self._decode(self._ids or [], skip_special_tokens=True)
        if text.endswith("\ufffd") and not last:
            return  # a character of several tokens
        text = text.strip()  # space at the end waits for what follows it
        if text.startswith(self._shown) and len(text) > len(self._shown):
            self._say(text[len(self._shown) :])
            self._shown = text


def back_spans(texts: list[str], tag: str = TAG) -> list[bool]:
    """Whether the text is inside <back> ... </back> after each token; `tag` in place of back."""
    inside, now, tail = [], False, ""
    opening, shutting = f"<{tag}>", f"</{tag}>"
    for text in texts:
        tail = (tail + text)[-len(text) - len(shutting) :]
        opens, shuts = tail.rfind(opening), tail.rfind(shutting)
        if opens != shuts:
            now = opens > shuts
        inside.append(now)
    return inside


def until_end(ids: list[int], ends: set[int]) -> list[int]:
    """The ids up to the first one that ends the sequence, included."""
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    return ids


def runs(inside: list[bool]) -> list[tuple[int, int]]:
    """Where it is true without a break, as [first, end)."""
    padded = [False, *inside, False]
    turns = [i for i in range(len(inside) + 1) if padded[i] != padded[i + 1]]
    return list(zip(turns[::2], turns[1::2], strict=True))
