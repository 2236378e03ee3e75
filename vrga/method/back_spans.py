"""Whether a row is inside a <back> span, token by token, on the device.

Following a row costs one look-up in a table per step, and no host sync.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vrga.method.tag_table import TagTable

DRAFTS = 1024  # tokens after which no draft is rejected any more


class BackSpans:
    """Follows the rows of one generation; its state is a tensor.

    Args:
        table: of the model's vocabulary.
        rows: of the batch.
        start: keys before the first token that is followed.
        begun: tokens of each row's answer before that one, where a prompt ends amid it.

    Attributes:
        state: of the automaton after the newest token, int64 [B].
        inside: whether each of the newest tokens is inside a span, bool [B, Q].
        opened: whether it opened one, bool [B, Q].
    """

    def __init__(
        self,
        table: TagTable,
        rows: int,
        device: torch.device,
        start: int = 0,
        begun: Sequence[Sequence[int]] | None = None,
    ):
        self._follow, self._opened = table.on(device)
        self._first = table.first
        self.state = torch.tensor(
            [table.after(tokens) for tokens in begun or [()] * rows], device=device
        )
        # A compiled step changes it in place, where CUDA graphs must find it again.
        torch._dynamo.mark_static_address(self.state)
        self.inside = self.opened = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        self._host: Tensor | None = None  # flags looked ahead, bool [2, B]
        self._copied: torch.cuda.Event | None = None
        self._ahead: int | None = None  # keys before the tokens they are of
        # By the position of the newest token.
        self._states: dict[int, Tensor] = {start - 1: self.state.clone()}

    def advance(self, ids: Tensor, past: int | None) -> None:
        """Follow new tokens.

        Args:
            ids: int64 [B, Q].
            past: keys before them; drafts that were rejected since are forgotten. None in a
                compiled step, where none are.
        """
        state = self.state if past is None else self._states.get(past - 1, self.state)
        inside, opened = [], []
        for i in range(ids.shape[1]):
            opened.append(self._opened[state, ids[:, i]])
            state = self._follow[state, ids[:, i]].long()
            inside.append(state >= self._first)
            if past is not None:
                self._states[past + i] = state
        while len(self._states) > DRAFTS:
            del self._states[next(iter(self._states))]
        self.state.copy_(state)
        self.inside, self.opened = torch.stack(inside, 1), torch.stack(opened, 1)

    def look_ahead(self, ids: Tensor, past: int) -> None:
        """Let the host know of tokens whose forward pass comes next, without waiting for it.

        Args:
            ids: int64 [B, 1], not yet followed; past: keys before them.
        """
        state = self._states.get(past - 1)
        if state is None:
            return  # drafts, or a compiled step: what came before is not known here
        flags = torch.stack(
            [self._follow[state, ids[:, 0]] >= self._first, self._opened[state, ids[:, 0]]]
        )
        if self._host is None:
            self._host = torch.empty(flags.shape, dtype=torch.bool, pin_memory=flags.is_cuda)
        self._host.copy_(flags, non_blocking=True)
        self._copied = None
        if flags.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()
        self._ahead = past

    def on_host(self, past: int) -> tuple[Tensor, Tensor] | None:
        """(inside, opened), bool [B, Q] on the CPU, of the tokens behind `past` keys; None where
        the device would have to be waited for."""
        if self._ahead == past and self._host is not None and self.inside.shape[1] == 1:
            if self._copied is not None:
                # Done long ago: generate() has waited since, to know whether rows are finished.
                self._copied.synchronize()
            inside, opened = self._host.unbind()
            return inside[:, None], opened[:, None]
        return (self.inside, self.opened) if self.inside.device.type == "cpu" else None

    def reorder(self, beams: Tensor) -> None:
        """Follow beams: row i goes on from row beams[i]."""
        self.state.copy_(self.state[beams])
        newest = max(self._states)  # beams have no drafts that could be rejected
        self._states = {newest: self._states[newest][beams]}
