"""A prompt that is told of before its first forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from vrga.hf.inputs import ForwardInputs


@dataclass(frozen=True)
class AnnouncedPrompt:
    """The inputs of a prompt as the user gave them, before its first forward pass."""

    inputs: ForwardInputs

    @property
    def width(self) -> int:
        """Tokens per row, the cached ones included if they were given again."""
        return self.inputs.width

    def whole(self, past: int) -> bool:
        """Whether these inputs begin with the `past` tokens that are cached already."""
        mask = self.inputs.mask
        if mask is None or mask.ndim != 2:
            return self.width > past
        return self.width > past and mask.shape[1] == self.width

    def end(self, past: int) -> int:
        """Keys in the cache when the prompt is complete."""
        return self.width if self.whole(past) else past + self.width
