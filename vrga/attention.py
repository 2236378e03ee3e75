"""The attention given to transformers: the model's own backend, a probe row, or steering.

`register` makes an attention implementation that does what the model's own one does, unless the
forward pass brings a `Probe` or a `Steering` as the keyword argument `KEYWORD`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

KEYWORD = "vrga"


def register(delegate: str) -> str:
    """Register the implementation that wraps the attention backend `delegate`; its name.

    Raises:
        ValueError: a backend without a mask function: padding would silently be attended to.
    """
    if delegate not in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys():
        known = ", ".join(sorted(ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()))
        raise ValueError(
            f"attn_implementation={delegate!r} has no mask function that vrga could use; "
            f"load the model with one of: {known}"
        )
    name = f"{KEYWORD}_{delegate.replace('/', '_').replace('|', '_')}"

    def attend(module, query, key, value, attention_mask, **kwargs):
        step = kwargs.pop(KEYWORD, None)
        own = _backend(delegate, module)
        if delegate not in ("eager", "sdpa"):
            # Flash attention looks its kernel up by the name in the module's config.
            module = _Seen(module, config=_Seen(module.config, _attn_implementation=delegate))
        if step is None:
            return own(module, query, key, value, attention_mask, **kwargs)
        return step.attend(own, module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[delegate])
    return name


class _Seen:
    """An object as somebody else is to see it: with some attributes replaced."""

    def __init__(self, target: object, **replaced: object):
        self.__dict__.update(replaced, _target=target)

    def __getattr__(self, name: str) -> object:
        return getattr(self._target, name)


def _backend(name: str, module: torch.nn.Module) -> Callable:
    """The function of an attention implementation; eager's lives in the model's own file."""
    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


class Probe:
    """Collects, in a prefill, the attention of one query row per sample from every layer.

    Args:
        query: query position of each row, counted from the first key.
        visible: False on padding, bool [B, S].
        rows: indices of the rows to probe.
        offset: keys that were in the cache before this forward pass.
    """

    def __init__(self, query: list[int], visible: Tensor, rows: list[int], offset: int):
        self.query, self.visible, self.rows, self.offset = query, visible, rows, offset
        self._found: dict[int, dict[int, Tensor]] = {}  # layer -> row -> [H, S]
        self.capacity = 0  # keys that the cache has room for; more than it holds if it is static
        self._hidden: dict[tuple[int, torch.device], Tensor] = {}

    def attend(self, own, module, query, key, value, attention_mask, **kwargs):
        """The model's own attention, and the probe rows beside it."""
        output = own(module, query, key, value, attention_mask, **kwargs)
        self.capacity = key.shape[2]
        with torch.no_grad():
            self._found[module.layer_idx] = {
                row: self._probe(row, query, key, kwargs["scaling"]) for row in self.rows
            }
        return output

    def _probe(self, row: int, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        """softmax(q K) of one query row over the keys it sees, float32 [H, S]."""
        last = self.query[row]
        accurate = torch.promote_types(query.dtype, torch.float32)
        q = query[row, :, last - self.offset].to(accurate) * scaling  # [H, d]
        k = key[row, :, : last + 1].to(accurate)  # [H_kv, last + 1, d]
        scores = (q.view(len(k), -1, q.shape[-1]) @ k.transpose(1, 2)).flatten(0, 1)
        hidden = self._hidden.get((row, scores.device))
        if hidden is None:
            hidden = (~self.visible[row, : last + 1]).to(scores.device)
            self._hidden[row, scores.device] = hidden
        a = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return torch.nn.functional.pad(a, (0, self.visible.shape[1] - last - 1)).float()

    def attention_rows(self, row: int, layers: int) -> Tensor:
        """The probed row from every layer, float32 [L, H, S], on the first layer's device.

        Each row can be asked for once: the probe lets go of it.

        Raises:
            RuntimeError: the model did not hand its keyword arguments to its attention layers.
        """
        found = [self._found[layer].pop(row) for layer in sorted(self._found)]
        if len(found) != layers:
            raise RuntimeError(
                f"only {len(found)} of the model's {layers} layers called the attention "
                "function with vrga's keyword argument; this model cannot be patched"
            )
        return torch.stack([a.to(found[0].device) for a in found])
