"""What to record, as a user may give it: steps, layers, and heads whose maps are kept."""

from __future__ import annotations

import operator
from collections.abc import Container, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

Heads = str | Tensor | Iterable[tuple[int, int]]


def check_steps(steps: object) -> None:
    """Raise ValueError for what can hold no step; a container that cannot be listed is believed."""
    listed = isinstance(steps, Iterable)
    if steps is None or (isinstance(steps, Container) and not listed):
        return
    found: list[int] | None
    if isinstance(steps, range):
        found = [steps[0], steps[-1]] if steps else []
    else:
        found = None if isinstance(steps, Iterator) else _numbers(steps)
    if not found or min(found) < 0:
        raise ValueError(
            f"steps={steps!r}: give the numbers of generated tokens, from 0, as a range, a list or "
            "a set, e.g. range(0, 100, 10)"
        )


def chosen_layers(layers: Iterable[int] | None, count: int) -> list[int]:
    """Layers that are measured, ascending; None is all of the `count` there are.

    Raises:
        ValueError: none, or one that the model does not have.
    """
    found = range(count) if layers is None else _numbers(layers)
    if not found or not all(0 <= layer < count for layer in found):
        raise ValueError(f"layers={layers!r}: give some of 0 to {count - 1}, as a list")
    return sorted(set(found))


def chosen_heads(maps: Heads | None, shape: tuple[int, int], layers: list[int]) -> Tensor:
    """Heads whose maps are kept, bool [L, H]; those that "visual" means are not known yet.

    Args:
        maps: "visual", "all", bool [L, H], or pairs (layer, head); None is no head.
        shape: (L, H) of the model; layers: those that are measured.

    Raises:
        ValueError: none of these, or heads that are not measured.
    """
    chosen = torch.zeros(shape, dtype=torch.bool)
    if maps is None or (isinstance(maps, str) and maps == "visual"):
        return chosen
    if isinstance(maps, str):
        if maps != "all":
            raise ValueError(f"maps={maps!r}: give 'visual', 'all', bool [L, H] or pairs")
        chosen[layers] = True
        return chosen
    try:
        given = torch.as_tensor(maps if hasattr(maps, "dtype") else list(maps))
    except (TypeError, ValueError, RuntimeError):
        given = torch.zeros(())  # of no form that is known
    if given.dtype == torch.bool and given.ndim == 2:
        if tuple(given.shape) != shape:
            raise ValueError(f"maps has shape {list(given.shape)}; wanted: {list(shape)}")
        chosen = given.cpu().clone()
    elif given.numel() or given.ndim != 1:
        if given.ndim != 2 or given.shape[1] != 2 or given.is_floating_point():
            raise ValueError(
                f"maps={maps!r}: give 'visual', 'all', bool {list(shape)}, or a list of "
                "pairs (layer, head)"
            )
        for layer, head in given.tolist():
            if not (0 <= layer < shape[0] and 0 <= head < shape[1]):
                raise ValueError(
                    f"maps asks for head {head} of layer {layer}; the model has "
                    f"{shape[0]} layers of {shape[1]} heads"
                )
            chosen[layer, head] = True
    left_out = set(chosen.any(1).nonzero().flatten().tolist()) - set(layers)
    if left_out:
        raise ValueError(f"maps asks for heads of layers {sorted(left_out)}, not in layers=...")
    return chosen


def _numbers(given: Any) -> list[int] | None:
    """Whole numbers from a list, range, set, array or the like; None where it is none of these."""
    try:
        found = [] if isinstance(given, str) else list(given)
        whole = [operator.index(number) for number in found]
    except TypeError:
        return None
    return None if any(isinstance(number, bool) for number in found) else whole
