"""Which state every token of a vocabulary leads to, towards `<back>` and out of `</back>`.

The tags are found by an automaton over bytes, folded into one table per vocabulary: from each of
its states, every token leads to one state, whatever way the tags are split into tokens.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vrga.annotations import Tokenizer
from vrga.lookback import TAG

_TABLES: weakref.WeakKeyDictionary[object, dict[tuple[int, str], TagTable]] = (
    weakref.WeakKeyDictionary()
)


class TagTable:
    """Where every token leads.

    Args:
        follow: the next state, int8 [states, V].
        opened: whether the token completes a <back> that opens a span, bool [states, V].
        first: states from this one on are inside a span.
    """

    def __init__(self, follow: np.ndarray, opened: np.ndarray, first: int):
        self.follow, self.opened = torch.from_numpy(follow), torch.from_numpy(opened)
        self.first = first
        self._placed: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def after(self, tokens: Sequence[int]) -> int:
        """The state behind tokens of an answer, on the host."""
        state = 0
        for token in tokens:
            state = int(self.follow[state, token])
        return state

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(follow, opened) on a device."""
        if device not in self._placed:
            self._placed[device] = self.follow.to(device), self.opened.to(device)
        return self._placed[device]


def tag_table(tokenizer: Tokenizer, size: int, tag: str = TAG) -> TagTable:
    """The table of a tokenizer's vocabulary, computed once.

    Args:
        size: ids that the model has, at least those of the tokenizer; others are no text.
        tag: the word in place of back.
    """
    tables = _TABLES.setdefault(tokenizer, {})
    if (size, tag) not in tables:
        tables[size, tag] = TagTable(*_fold(token_bytes(tokenizer, size), tag))
    return tables[size, tag]


def token_bytes(tokenizer: Tokenizer, size: int) -> list[bytes]:
    """The bytes that each token id adds to the text."""
    special = {str(token) for token in getattr(tokenizer, "added_tokens_encoder", {})}
    known = min(size, len(tokenizer))
    tokens = tokenizer.convert_ids_to_tokens(list(range(known)))
    letters = _byte_letters()
    # A byte-level vocabulary spells every byte as one of 256 letters.
    by_bytes = any("\u0120" in token for token in tokens if token)

    def spelled(token: str | None) -> bytes:
        if token is None:
            return b""
        if token in special:
            return token.encode()
        if by_bytes and all(letter in letters for letter in token):
            return bytes(letters[letter] for letter in token)
        return token.replace("\u2581", " ").encode()  # sentencepiece's space

    return [spelled(token) for token in tokens] + [b""] * (size - known)


@functools.cache
def _byte_letters() -> dict[str, int]:
    """The letters of byte-level vocabularies (GPT-2, Qwen) and their bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}


class _Automaton:
    """The automaton of one tag.

    Attributes:
        read: how much of a tag has been read, one state per beginning of either tag; as many
            states again are inside a span.
    """

    def __init__(self, tag: str):
        self.open, self.close = f"<{tag}>".encode(), f"</{tag}>".encode()
        begun = {whole[:n] for whole in (self.open, self.close) for n in range(len(whole))}
        self.read = sorted(begun, key=len)

    def step(self, state: int, byte: int) -> tuple[int, bool]:
        """The state after a byte, and whether it opened a span."""
        inside, read = divmod(state, len(self.read))
        text = self.read[read] + bytes([byte])
        if text in (self.open, self.close):
            opened = text == self.open and not inside
            return (len(self.read) if text == self.open else 0), opened
        while text not in self.read:
            text = text[1:]
        return inside * len(self.read) + self.read.index(text), False


def _fold(tokens: list[bytes], tag: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Follow every token's bytes from every state."""
    automaton = _Automaton(tag)
    first = len(automaton.read)
    steps = [[automaton.step(state, byte) for byte in range(256)] for state in range(2 * first)]
    move = np.array([[after for after, _ in row] for row in steps], dtype=np.int8)
    opens = np.array([[opened for _, opened in row] for row in steps])
    lengths = np.array([len(token) for token in tokens])
    state = np.repeat(np.arange(2 * first, dtype=np.int8)[:, None], len(tokens), 1)
    opened = np.zeros(state.shape, dtype=bool)
    order = np.argsort(-lengths, kind="stable")  # those that still have bytes come first
    padded = np.zeros((len(tokens), int(lengths.max(initial=0))), dtype=np.uint8)
    for row, token in enumerate(tokens):
        padded[row, : len(token)] = np.frombuffer(token, dtype=np.uint8)
    for column in range(padded.shape[1]):
        live = order[: int((lengths > column).sum())]
        before, byte = state[:, live], padded[live, column][None]
        opened[:, live] |= opens[before, byte]
        state[:, live] = move[before, byte]
    return state, opened, first
