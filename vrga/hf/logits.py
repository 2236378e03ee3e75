"""The logits in what a whole model returns, and which of a pass's tokens they are of."""

from __future__ import annotations

from torch import Tensor

from vrga.annotations import ModelOutput

KEPT = "logits_to_keep"  # the input that says of which tokens there are logits


def logits_of(kwargs: dict, output: ModelOutput, width: int) -> Tensor | None:
    """Logits of the last tokens of a pass of `width`, [B, K, V]; None where there are none, or not
    of its last token.

    Args:
        kwargs: that the model was called with; output: what it returned.
    """
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple):
        logits = next((x for x in output if isinstance(x, Tensor) and x.ndim == 3), None)
    kept = kwargs.get(KEPT)
    if not isinstance(kept, Tensor) or width == 1:
        return logits
    places = [place % width for place in kept.flatten().tolist()]
    follow = places == list(range(width - len(places), width))
    return logits if places and follow else None
