"""One forward pass, as its attention layers see it."""

from __future__ import annotations

from torch import Tensor

from vrga.hf.cache import KeyCache
from vrga.hf.inputs import ForwardInputs
from vrga.hf.versions import VERSION
from vrga.method.call import AttentionCall, has_bias
from vrga.steering.passes import Pass, SteeringError
from vrga.steering.run import Run

BIASED_PASSES = 2  # of a run whose masks are looked at for biases where that waits for the device


class ForwardPass:
    """One forward pass, as its attention layers see it.

    Args:
        run: whose prompt it is of; what: it is; inputs: of the multimodal model.

    Attributes:
        rows: tokens of each row; static: whether the cache has its full length from the start.
        wants_cache: whether the pass was told to keep one.
        layers: that have called attention.
        head: output of the prompt that stood before drafts, or None.
    """

    def __init__(self, run: Run, what: Pass, inputs: ForwardInputs):
        self.run, self.what, self.rows = run, what, inputs.width
        # Kept, for layers that are computed again in a backward pass, when the run has gone on.
        self._step = None if what.kind == "rest" else run.step
        self._cache = inputs.cache
        self.injected = False
        self.static = inputs.cache is not None and inputs.cache.static
        self.wants_cache = inputs.named.get("use_cache") is True
        self.layers = 0
        self.head: object | None = None
        self._looks = run.looked_for_bias < BIASED_PASSES
        self._biased: dict[int, tuple[Tensor, bool]] = {}

    def biased(self, call: AttentionCall) -> bool:
        """Whether its mask adds finite numbers to scores, as far as is looked at; once for each
        mask of the pass."""
        mask = call.mask
        if self._step is None or mask is None or not mask.is_floating_point():
            return False
        if mask.device.type != "cpu" and not self._looks:
            return False
        if not self._biased:
            self.run.looked_for_bias += 1
        if id(mask) not in self._biased:
            self._biased[id(mask)] = mask, has_bias(mask)  # held, so that its id stays its own
        return self._biased[id(mask)][1]

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        """Attention of one layer."""
        self.layers += 1
        self._check_keys(call)
        if self._step is None:
            return call.output()
        return self._step.attend(call)

    def is_of(self, raw: object | None) -> bool:
        """Whether the text model's pass with this raw cache is the one that began, and not a later
        one behind a pass that failed."""
        return not self.injected and raw is (None if self._cache is None else self._cache.raw)

    def _check_keys(self, call: AttentionCall) -> None:
        """The number of keys must agree with our book-keeping.

        Raises:
            SteeringError: it does not.
        """
        seen = self.what.past + self.rows
        if self.static:
            agrees = call.keys >= seen if call.window is None else call.keys >= self.rows
        elif call.window is None:
            agrees = call.keys == seen
        else:  # a sliding window's cache keeps the last keys alone; some versions one more
            least = min(self.what.past, call.window - 1) + self.rows
            agrees = least <= call.keys <= seen
        if agrees:
            return
        kind = "a fresh prompt" if not self.what.past else f"a pass behind {self.what.past} keys"
        raise SteeringError(
            f"layer {call.layer} attends to {call.keys} keys in what is by its inputs {kind} of "
            f"{self.rows} tokens (transformers {VERSION}): keys come from a "
            "cache that the patch cannot see, or were evicted or put in by something else, so "
            "that it is not known where the image's tokens stand: hand the cache to the model as "
            f"{self.run.host.cache_name}=..., use a cache that keeps all keys, or switch the patch "
            "off (patch.enabled = False)"
        )

    def check_cache(self, cache: KeyCache | None) -> None:
        """A cache that was asked for must have been kept.

        Raises:
            SteeringError: it was not.
        """
        if self.wants_cache and cache is None:
            raise SteeringError(
                "use_cache=True was asked for, and the model returned no cache, so that the next "
                "token cannot be a step: gradient checkpointing in train mode drops it; call "
                "model.eval(), or model.gradient_checkpointing_disable()"
            )

    def check_layers(self) -> None:
        """All layers must have called attention with what the pass brought.

        Raises:
            SteeringError: some have not.
        """
        wanted = self.run.host.shape[0]
        if self.layers != wanted:
            raise SteeringError(
                f"only {self.layers} of the model's {wanted} layers called the attention function "
                f"with vrga's keyword argument (transformers {VERSION}): the others would not be "
                "steered. Code compiled before the patch, or a layer replaced by "
                "another library, does that: undo it, or vrga.unpatch(model)"
            )
