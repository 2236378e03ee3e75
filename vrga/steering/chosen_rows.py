"""Which new tokens are steered: all, those inside <back> spans, or a function's choice."""

from __future__ import annotations

import torch
from torch import Tensor

from vrga.config import VRGAConfig
from vrga.method.back_spans import Phase
from vrga.steering.steps import CHOICE, OPENS, OUTSIDE


class ChosenRows:
    """Decides by the config's `when` and `relocate`.

    Args:
        config: the method's numbers.
        phase: follows the rows' <back> spans, where something needs them, or None.
    """

    def __init__(self, config: VRGAConfig, phase: Phase | None):
        self._config, self.phase = config, phase

    @property
    def _spans(self) -> Phase:
        """What follows the spans; the config asks for it wherever it is read."""
        assert self.phase is not None
        return self.phase

    @property
    def reason(self) -> str:
        """Why rows are left alone that are not chosen."""
        if callable(self._config.when):
            return CHOICE
        return OUTSIDE if self._config.when == "back" else OPENS

    @property
    def opened(self) -> Tensor | None:
        """Tokens of this pass that open a span at which a region is found anew, bool [B, Q]."""
        return self._spans.opened if self._config.relocate == "back" else None

    def follow(self, ids: Tensor | None, past: int | None) -> bool:
        """Follow the spans in new tokens; whether they decide anything.

        Args:
            ids: int64 [B, Q]; None where they are not known.
            past: keys before them; None in a compiled step.

        Raises:
            ValueError: no ids where the config's `when` or `relocate` needs them.
        """
        config = self._config
        if config.when == "always" and self.phase is None:
            return False
        if ids is None:
            if config.when == "always" and config.relocate == "question":
                return False  # spans are followed for the trace alone, which goes without
            raise ValueError(
                f"when={config.when!r} with relocate={config.relocate!r} follows the "
                "tokens: give the model input_ids, not inputs_embeds, in decode steps"
            )
        if self.phase is not None:
            self.phase.advance(ids, past)
        return True

    def among(self, ids: Tensor, past: int | None) -> Tensor | None:
        """Which of the tokens just followed are steered, bool [B, Q]; None for all.

        Raises:
            RuntimeError: a function as `when` in a compiled step.
            ValueError: a function that gives something else.
        """
        config = self._config
        if isinstance(config.when, str):
            return self._by_phase(self._spans.inside, self._spans.opened)
        if past is None:
            raise RuntimeError(
                "a callable `when` needs decoding that is not compiled: call generate with "
                "disable_compile=True"
            )
        chosen = config.when(ids, past)
        if not isinstance(chosen, Tensor) or chosen.shape != ids.shape:
            found = list(chosen.shape) if isinstance(chosen, Tensor) else repr(chosen)
            raise ValueError(f"when(...) gave {found}; wanted: bool {list(ids.shape)}")
        chosen = chosen.to(ids.device, torch.bool)
        return chosen & ~self._spans.opened if config.relocate == "back" else chosen

    def on_host(self, asked: Tensor, past: int) -> Tensor | None:
        """`among` on the CPU, bool [B, Q]; None where the device would have to be waited for."""
        if callable(self._config.when):
            return asked if asked.device.type == "cpu" else None
        told = self._spans.on_host(past)
        return None if told is None else self._by_phase(*told)

    def _by_phase(self, inside: Tensor, opened: Tensor) -> Tensor | None:
        """What <back> spans leave of the new tokens, bool [B, Q]; None for all."""
        chosen = inside if self._config.when == "back" else None
        if self._config.relocate == "back":
            # The row that opens a span is the one that is looked at, as at the prompt's question.
            chosen = ~opened if chosen is None else chosen & ~opened
        return chosen
