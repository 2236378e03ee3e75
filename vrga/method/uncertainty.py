"""How sure the model was of each token that it is fed: the entropy of what that was drawn from.

It is taken of the logits as the model gives them out, before any logits processor and before the
temperature, where they are, and nothing waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vrga.method.back_spans import DRAFTS


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy of the distributions that logits [..., V] stand for, in nats, float32 [...]."""
    wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    return torch.special.entr(wide.softmax(-1)).sum(-1).float()


class Uncertainty:
    """The entropies of the distributions that the tokens of one answer are drawn from.

    A distribution is behind a key: it is what the model says when it has read that token, and what
    the next token is drawn from.

    Args:
        threshold: nats from which a distribution is uncertain.
        rows: of the batch; device: of what is kept.

    Attributes:
        drawn: of the distributions that the tokens of the current pass were drawn from, float32
            [B]; None where they are not known.
    """

    def __init__(self, threshold: float, rows: int, device: torch.device):
        self.threshold = threshold
        self._behind: dict[int, Tensor] = {}  # by the key's position, ascending; float32 [B]
        with torch.inference_mode(False):  # a loop by hand may leave that mode amid an answer
            # The newest, and its key's position: at addresses that compiled steps know.
            self._newest = torch.full((rows,), torch.nan, device=device)
            self._place = torch.full((1,), -1, dtype=torch.int64, device=device)
        for tensor in (self._newest, self._place):
            torch._dynamo.mark_static_address(tensor)
        self.drawn: Tensor | None = None

    def hear(self, logits: Tensor, place: int) -> None:
        """What the model says behind the key at `place`: logits [B, V]."""
        self.forget_from(place)
        found = entropy_of(logits).to(self._newest.device)
        self._behind[place] = found
        while len(self._behind) > DRAFTS:
            del self._behind[next(iter(self._behind))]
        self._newest.copy_(found)
        self._place.fill_(place)

    def hear_compiled(self, logits: Tensor) -> None:
        """What a compiled step says, [B, V]."""
        self._newest.copy_(entropy_of(logits))
        self._place.add_(1)

    def begin(self, past: int, tokens: int) -> None:
        """`tokens` tokens of each row of the batch come behind `past` keys; of several, what they
        were drawn from is not known."""
        self.forget_from(past)
        self.drawn = None
        if tokens > 1:
            return
        self.drawn = self._behind.get(past - 1)
        if self.drawn is None and int(self._place) == past - 1:
            self.drawn = self._newest.clone()  # after compiled steps, of which the host knows none
            self._behind[past - 1] = self.drawn

    def begin_compiled(self) -> None:
        """A compiled step comes. What follows without its logits being heard, as where the part
        below the head is compiled alone, is not known, and so not certain."""
        self.drawn = self._newest.clone()
        self._newest.fill_(torch.nan)

    @property
    def uncertain(self) -> Tensor:
        """Which rows' tokens were drawn from an uncertain distribution, bool [B].

        One that is not a number is: what a broken model says is not certain.
        """
        assert self.drawn is not None  # which the caller has seen to
        return ~(self.drawn < self.threshold)

    def rises(self, past: int) -> Tensor:
        """Where an uncertain stretch begins: uncertain tokens behind a token that was not, or at
        the answer's beginning, bool [B]."""
        before = self._behind.get(past - 2)
        return self.uncertain if before is None else self.uncertain & (before < self.threshold)

    def reorder(self, beams: Tensor) -> None:
        """Follow beams: row i goes on from row beams[i]."""
        kept = list(self._behind)[-2:]  # beams have no drafts that could be rejected
        self._behind = {place: self._behind[place][beams] for place in kept}
        self._newest.copy_(self._newest[beams])

    def forget_from(self, place: int) -> None:
        """What was said behind keys from `place` on was of drafts that were rejected, of a cache
        that was cut, or of the prompt."""
        while self._behind and next(reversed(self._behind)) >= place:
            self._behind.popitem()
            self._place.fill_(-1)
