"""The key cache of transformers, under whatever name and class."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import transformers
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, StaticLayer

from vrga.annotations import ModelOutput

# What versions call the cache, among a model's inputs and in its output; the newest first.
NAMES = ("cache", "past_key_values")
_RUN = "_vrga_run"  # where a cache keeps what it belongs to


class KeyCache:
    """One key cache.

    A prompt's state belongs to its cache: it is kept there (`run`), so that it ends with it, and
    so that several prompts can be under way on one model.

    Args:
        cache: a `transformers.Cache`.

    Raises:
        ValueError: anything else, such as the tuples of older versions.
    """

    def __init__(self, cache: Cache):
        if not isinstance(cache, Cache):
            raise ValueError(
                f"the key cache is a {type(cache).__name__}; a patched model takes a "
                "transformers Cache, such as DynamicCache(config=model.config)"
            )
        self._cache = cache

    @staticmethod
    def run_of(cache: Cache) -> Any | None:
        """What a raw cache belongs to, without a check; for compiled steps."""
        mark = getattr(cache, _RUN, None)
        return None if mark is None else mark.run

    @property
    def run(self) -> Any | None:
        """What the cache belongs to; None for one that no patch has seen."""
        return self.run_of(self._cache)

    @run.setter
    def run(self, run: object | None) -> None:
        setattr(self._cache, _RUN, None if run is None else _Mark(run))

    @property
    def raw(self) -> Cache:
        """The cache itself, to be handed on."""
        return self._cache

    @property
    def length(self) -> int:
        """Keys in it. A static cache on a GPU has to be waited for."""
        return int(self._cache.get_seq_length())

    @property
    def static(self) -> bool:
        """Whether it has its full length from the start."""
        return bool(self._cache.is_compileable)

    @property
    def only_grows(self) -> bool:
        """Whether keys stay in it as they were when attention saw them."""
        layers = self._cache.layers
        return bool(layers) and all(self._stays(layer) for layer in layers)

    def _stays(self, layer: object) -> bool:
        plain = type(layer) in (DynamicLayer, StaticLayer)
        return plain and not getattr(self._cache, "offloading", False)

    def holds(self, layer: int, key: Tensor) -> bool:
        """Whether keys that a layer's attention is given are the layer's own memory, in which they
        stay as they are until the next pass: to hold them takes no memory then."""
        layers = self._cache.layers
        if layer >= len(layers) or not self._stays(layers[layer]):
            return False
        return layers[layer].keys is key

    def keys(self, layer: int) -> Tensor:
        """Keys of a layer, [B, H_kv, S, d]."""
        return self._cache.layers[layer].keys

    def reference(self) -> Callable[[], Cache | None]:
        """A weak reference to the cache itself."""
        return weakref.ref(self._cache)

    def on_reorder(self, callback: Callable[[Tensor], None]) -> None:
        """Call `callback(beams)` after each reordering of the rows, until `off_reorder`."""
        own = self._cache.reorder_cache

        def reorder_cache(beams: Tensor) -> None:
            own(beams)
            callback(beams)

        self._cache.reorder_cache = reorder_cache

    def off_reorder(self) -> None:
        """Undo `on_reorder`."""
        vars(self._cache).pop("reorder_cache", None)


class _Mark:
    """A run as a cache holds it. A copy of the cache starts without: its keys are another's."""

    def __init__(self, run: object | None):
        self.run = run

    def __deepcopy__(self, memo: dict) -> _Mark:
        return _Mark(None)

    def __reduce__(self) -> tuple:
        return _Mark, (None,)


def cache_among(inputs: dict) -> object | None:
    """The raw cache among a model's inputs, by either name; None where there is none."""
    return next((inputs[name] for name in NAMES if inputs.get(name) is not None), None)


def cache_in(output: ModelOutput) -> object | None:
    """The raw cache in a model's output.

    Raises:
        RuntimeError: an output that has no place for a cache under a known name.
    """
    found = vars(output)
    for name in NAMES:
        if name in found:
            return found[name]
    raise RuntimeError(
        f"transformers {transformers.__version__}: {type(output).__name__} has no key cache under "
        f"a known name ({', '.join(NAMES)}), so that no later pass can be told from a prompt; "
        "run `vrga doctor`, and report what it prints"
    )
