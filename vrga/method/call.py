"""One layer's attention call, with everything that a step needs of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

NEAR = 0.05  # of its largest number: how far a sum in half precision may be off
SOFTMAX_LIMITS = ("s_aux", "softcap")  # what makes attention more than a softmax over the keys


@dataclass
class AttentionCall:
    """What a layer's attention function is called with.

    Args:
        layer: number of the layer, from 0.
        query: [B, H, Q, d]; key, value: [B, H_kv, S, d].
        mask: as the attention backend is given it, or None.
        scale: factor on q . k.
        window: keys that the layer sees at most, or None.
        own: the model's own attention on (query, key, value, mask): ([B, Q, H, d], weights).
        plain: whether `own` is a plain softmax over scale * q . k of the keys that the mask shows.
        extras: further keyword arguments of the attention function.
        total: sum of each query row's weights, [B, H, Q], where `as_softmax` made the call; else
            None, and it is 1.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    window: int | None
    own: Callable
    plain: bool = True
    extras: dict = field(default_factory=dict)
    total: Tensor | None = None

    def __post_init__(self):
        self._given = self.query, self.key, self.value
        if self.query.dtype == self.key.dtype == self.value.dtype:
            return
        kind = self.query.device.type
        if torch.is_autocast_enabled(kind):
            # Autocast rounds what the model's own attention is given; so are ours.
            dtype = torch.get_autocast_dtype(kind)
            self.query, self.key, self.value = (x.to(dtype) for x in self._given)

    @property
    def rows(self) -> int:
        """Q."""
        return self.query.shape[2]

    @property
    def keys(self) -> int:
        """S."""
        return self.key.shape[2]

    def output(self) -> tuple[Tensor, Tensor | None]:
        """The model's own attention."""
        return self.own(*self._given, self.mask)

    def check(self) -> None:
        """Refuse what steered attention does not know.

        Raises:
            ValueError: attention sinks or capped scores.
        """
        for name in SOFTMAX_LIMITS:
            if self.extras.get(name) is not None:
                raise ValueError(
                    f"the text model's attention has {name}={type(self.extras[name]).__name__}, "
                    "which is not part of steered attention; use a model without attention sinks "
                    "and capped scores"
                )

    def check_dropout(self) -> None:
        """Refuse dropout.

        Raises:
            ValueError: there is some.
        """
        if self.extras.get("dropout"):
            raise ValueError(
                f"attention dropout of {self.extras['dropout']} is not part of steered attention: "
                "call model.eval(), or set attention_dropout=0"
            )

    def each_row(self) -> Iterator[tuple[int, AttentionCall]]:
        """Each query row as a call of its own, with the keys up to it: (number, call)."""
        for i in range(self.rows):
            end, mask = self.keys - self.rows + 1 + i, self.mask
            if mask is not None:
                mask = mask[:, :, i : i + 1, :end] if mask.ndim == 4 else mask[:, :end]
            yield (
                i,
                self.of(
                    self.query[:, :, i : i + 1], self.key[:, :, :end], self.value[:, :, :end], mask
                ),
            )

    def of(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> AttentionCall:
        """The same layer's call with other tensors."""
        return AttentionCall(
            self.layer, query, key, value, mask, self.scale, self.window, self.own, self.plain,
            self.extras,
        )  # fmt: skip

    def as_softmax(self) -> AttentionCall:
        """A call of which a plain softmax over scale * q . k gives this call's attention.

        Where the model's own attention is something else (another backend, a mask with biases),
        its probabilities are read off it: attention is linear in the values, so that unit vectors
        in their place give the probabilities of as many keys. Their logarithms are the new queries,
        on keys that are unit vectors. It takes S / d calls of the model's own attention.

        Raises:
            ValueError: attention that is not linear in the values.
        """
        if self.plain:
            return self
        probs = self.probabilities()
        self._check_linear(probs)
        least = torch.finfo(probs.dtype).tiny
        unit = torch.eye(self.keys, dtype=probs.dtype, device=probs.device)
        unit = unit.expand(*self.key.shape[:2], -1, -1)
        found = self.of(probs.clamp_min(least).log(), unit, self.value, self.mask)
        found.scale, found.plain = 1.0, True
        found.value, found.total = self.value.to(probs.dtype), probs.sum(-1)
        return found

    def _check_linear(self, probs: Tensor) -> None:
        """The weights read off, times the values, must be what the model's own attention gives."""
        groups = probs.shape[1] // self.value.shape[1]
        values = self.value.to(probs.dtype).repeat_interleave(groups, 1)
        made = (probs @ values).transpose(1, 2)
        own = self.output()[0].to(probs.dtype)
        off = (made - own).abs().max() / own.abs().max().clamp_min(torch.finfo(own.dtype).tiny)
        if not float(off) < NEAR:
            raise ValueError(
                "the model's attention backend is no weighted sum of the values (a sum with the "
                f"weights read off it is {float(off):.1%} off), so it cannot be steered: load the "
                "model with 'sdpa' or 'eager'"
            )

    def probabilities(self) -> Tensor:
        """Attention of each query row to each key, as the model's own gives it, float [B, H, Q, S].

        In at least float32.
        """
        kind = torch.promote_types(self.query.dtype, torch.float32)
        size, parts = self.value.shape[-1], []
        for first in range(0, self.keys, size):
            unit = torch.zeros_like(self.value)
            count = min(size, self.keys - first)
            place = torch.arange(count, device=unit.device)
            unit[:, :, first + place, place] = 1
            out = self.own(self.query, self.key, unit, self.mask)[0]  # [B, Q, H, d]
            parts.append(out[..., :count].transpose(1, 2).to(kind))
        return torch.cat(parts, -1)


def has_bias(mask: Tensor | None) -> bool:
    """Whether a mask adds finite numbers to scores, beside hiding keys; waits for the device."""
    if mask is None or not mask.is_floating_point() or mask.ndim != 4:
        return False
    return bool(((mask != 0) & (mask > torch.finfo(mask.dtype).min / 2)).any())


def exactly(device: torch.device) -> AbstractContextManager:
    """Our own sums in the types they are given, also where autocast would round them."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
