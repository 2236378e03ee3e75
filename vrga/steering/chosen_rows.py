"""Which new tokens are steered: all, those inside <back> spans, those the model was unsure of, or a
function's choice."""

from __future__ import annotations

import torch
from torch import Tensor

from vrga.config import VRGAConfig
from vrga.method.back_spans import BackSpans
from vrga.method.uncertainty import Uncertainty
from vrga.steering.passes import SteeringError
from vrga.steering.steps import CERTAIN, CHOICE, OPENS, OUTSIDE, RISES


def opening(config: VRGAConfig) -> str:
    """Why a row is left alone from which a region is found anew."""
    return RISES if config.relocate == "uncertain" else OPENS


def check_singly(config: VRGAConfig) -> None:
    """Refuse passes that bring several tokens of an answer, where how sure the model was of one
    decides: of the later ones the pass itself would have to tell, before it begins.

    Raises:
        SteeringError: the config decides by that.
    """
    if config.steers and "uncertain" in (config.when, config.relocate):
        raise SteeringError(
            "several tokens of the answer come in one pass, and when or relocate='uncertain' "
            "decides of each by the distribution that it was drawn from, which this very pass "
            "would compute: give the model one token at a time, without an assistant or other "
            "drafts, or switch the patch off (patch.enabled = False)"
        )


class ChosenRows:
    """Decides by the config's `when` and `relocate`.

    Args:
        config: the method's numbers.
        spans: follows the rows' <back> spans, where something needs them, or None.
        uncertainty: of the rows' tokens, likewise.
    """

    def __init__(
        self, config: VRGAConfig, spans: BackSpans | None, uncertainty: Uncertainty | None
    ):
        self._config, self.spans, self.uncertainty = config, spans, uncertainty
        self.opened: Tensor | None = None  # tokens of this pass where a region is found anew

    @property
    def _followed(self) -> BackSpans:
        """What follows the spans; the config asks for it wherever it is read."""
        assert self.spans is not None
        return self.spans

    @property
    def _entropies(self) -> Uncertainty:
        """Of the tokens; likewise."""
        assert self.uncertainty is not None
        return self.uncertainty

    @property
    def reason(self) -> str:
        """Why rows are left alone that are not chosen."""
        if callable(self._config.when):
            return CHOICE
        named = {"back": OUTSIDE, "uncertain": CERTAIN, "always": opening(self._config)}
        return named[self._config.when]

    def follow(self, ids: Tensor | None, past: int | None, tokens: int) -> bool:
        """Follow what decides through new tokens; whether it decides anything.

        Args:
            ids: int64 [B, Q]; None where they are not known.
            past: keys before them; None in a compiled step.
            tokens: Q.

        Raises:
            ValueError: no ids where the config's `when` or `relocate` needs them.
            SteeringError: it is not known what distribution the tokens were drawn from.
        """
        config = self._config
        if ids is None and (callable(config.when) or "back" in (config.when, config.relocate)):
            raise ValueError(
                f"when={config.when!r} with relocate={config.relocate!r} follows the "
                "tokens: give the model input_ids, not inputs_embeds, in decode steps"
            )
        if self.spans is not None and ids is not None:
            self.spans.advance(ids, past)
        if self.uncertainty is not None and not self._hears(self.uncertainty, past, tokens):
            return False
        return config.when != "always" or config.relocate != "question"

    def _hears(self, uncertainty: Uncertainty, past: int | None, tokens: int) -> bool:
        """Whether it is known what distribution the new tokens were drawn from.

        Raises:
            SteeringError: it is not, and the choice hangs on it.
        """
        if past is None:
            uncertainty.begin_compiled()
            return True
        if tokens > 1:
            check_singly(self._config)
        uncertainty.begin(past, tokens)
        if uncertainty.drawn is None and self._config.steers:  # else steps are measured alone
            raise SteeringError(
                "the model's logits behind the token before this one were not seen, and when or "
                "relocate='uncertain' decides by them: call the whole model, not the part of it "
                "below its head, nor its forward() past its hooks, as a PEFT model's call does "
                "(call get_base_model() of it); with the last token's logits among those kept "
                "(logits_to_keep); or switch the patch off (patch.enabled = False)"
            )
        return uncertainty.drawn is not None

    def among(self, ids: Tensor | None, past: int | None) -> Tensor | None:
        """Which of the tokens just followed are steered, bool [B, Q]; None for all.

        Raises:
            RuntimeError: a function as `when`, or a region found anew, in a compiled step.
            ValueError: a function that gives something else.
        """
        config, inside = self._config, None
        self.opened = None
        if config.relocate == "back":
            self.opened = self._followed.opened
        elif config.relocate == "uncertain" and past is not None:
            self.opened = self._entropies.rises(past)[:, None]
        if callable(config.when):
            assert ids is not None  # as `follow` has seen to
            return _without(self._called(config.when, ids, past), self.opened)
        if config.when == "back":
            inside = self._followed.inside
        elif config.when == "uncertain":
            inside = self._entropies.uncertain[:, None]
        return _without(inside, self.opened)

    def _called(self, when, ids: Tensor, past: int | None) -> Tensor:
        """What a function chooses, bool [B, Q]."""
        if past is None:
            raise RuntimeError(
                "a callable `when` needs decoding that is not compiled: call generate with "
                "disable_compile=True"
            )
        chosen = when(ids, past)
        if not isinstance(chosen, Tensor) or chosen.shape != ids.shape:
            found = list(chosen.shape) if isinstance(chosen, Tensor) else repr(chosen)
            raise ValueError(f"when(...) gave {found}; wanted: bool {list(ids.shape)}")
        return chosen.to(ids.device, torch.bool)

    def on_host(self, asked: Tensor, past: int) -> Tensor | None:
        """`among` on the CPU, bool [B, Q]; None where the device would have to be waited for."""
        config = self._config
        if callable(config.when) or "uncertain" in (config.when, config.relocate):
            return asked if asked.device.type == "cpu" else None
        told = self._followed.on_host(past)
        if told is None:
            return None
        inside, opened = told
        return _without(
            inside if config.when == "back" else None, opened if config.relocate == "back" else None
        )

    def opened_on_host(self, past: int) -> Tensor | None:
        """`opened` on the CPU, for which the device may have to be waited; None where no region is
        found anew."""
        if self.opened is None:
            return None
        told = self._followed.on_host(past) if self._config.relocate == "back" else None
        return self.opened.cpu() if told is None else told[1]


def _without(chosen: Tensor | None, opened: Tensor | None) -> Tensor | None:
    """The chosen tokens, None for all, without those where a region is found anew: the row there is
    looked at, as at the prompt's question."""
    if opened is None:
        return chosen
    return ~opened if chosen is None else chosen & ~opened
