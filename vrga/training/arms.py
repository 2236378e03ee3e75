"""Which ways of training the ablations compare, and which of them share what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vrga.lookback import TAG
from vrga.training.teachers import ONE_LOOK
from vrga.training.zoomed import ONE, ZOOM


@dataclass(frozen=True)
class Arm:
    """One way of training, and what is asked then.

    Args:
        style, reflection: of the rows; teacher: who puts the spans into them.
        sft, rl: which stages there are.
        weight: lambda.
        tag: the word to look back with.
        split: of the questions trained on; None is that of the command.
        asked: of the held-out questions; None is that of the command.
    """

    style: str = "semantic"
    reflection: float = 0.5
    teacher: str = "grid"
    sft: bool = True
    rl: bool = True
    weight: float = 0.1
    tag: str = TAG
    split: str | None = None
    asked: str | None = None

    @property
    def rollouts(self) -> str:
        """The folder of the answers that its rows are made of."""
        return "-".join(["rollouts", *self._own])

    @property
    def rows(self) -> str:
        """The folder of its rows, shared by arms that differ in RL alone."""
        teacher = [] if self.teacher == "grid" else [self.teacher.rpartition(":")[2]]
        return "-".join([self.style, f"{self.reflection:g}", *teacher, *self._own])

    @property
    def model(self) -> str:
        """The folder of its last stage, within that of its rows; empty of a model as it was."""
        if not self.rl:
            return "sft" if self.sft else ""
        return f"rl-{self.weight:g}" + ("" if self.sft else "-from-base")

    @property
    def answers(self) -> str:
        """The folder of its answers to held-out questions."""
        told = [self.rows, self.model] if self.model else ["base"]
        return "-".join(told + ([f"asked-{self.asked}"] if self.asked else []))

    @property
    def _own(self) -> list[str]:
        return ([self.split] if self.split else []) + ([self.tag] if self.tag != TAG else [])


FULL, BASE = Arm(), Arm(sft=False, rl=False)
# Two kinds of questions: colours that are hard to tell, and pictures that take long chains.
KINDS = ("similar", "long")
ABLATIONS: Mapping[str, Mapping[str, Arm]] = {
    "sft": {"base": BASE, "SFT and RL": FULL, "without SFT": Arm(sft=False)},
    "rl": {"base": BASE, "SFT and RL": FULL, "without RL": Arm(rl=False)},
    "reflection": {
        "base": BASE,
        **{f"{100 * r:g} %": Arm(reflection=r) for r in (0.5, 0.0, 0.1, 0.3, 0.7, 0.9)},
    },
    "style": {"base": BASE, "semantic": FULL, "solution": Arm(style="solution")},
    "lambda": {
        "base": BASE,
        **{f"lambda {w:g}": Arm(weight=w) for w in (0.1, 0.0, 0.5, 2.0)},
    },
    "tag": {"base": BASE, **{f"<{tag}>": Arm(tag=tag) for tag in (TAG, "recheck")}},
    # What each kind of questions wins or loses by training on both, on itself, or on the other.
    "mix": {
        f"{asked}: trained on {' and '.join(kinds) or 'nothing'}": replace(
            FULL if kinds else BASE, split="+".join(kinds) or None, asked=asked
        )
        for asked in KINDS
        for kinds in (KINDS, KINDS[:1], KINDS[1:], ())
    },
    ZOOM: {
        "base": BASE,
        "SFT, every row": Arm(reflection=1.0, rl=False),
        "SFT": Arm(rl=False),
        "SFT and RL": FULL,
        ONE: Arm(reflection=1.0, rl=False, teacher=ONE_LOOK),
    },
}


def arms_of(name: str, split: str) -> dict[str, Arm]:
    """The arms of an ablation; one need not name the split of the command."""
    return {
        arm_name: replace(
            arm,
            split=None if arm.split == split else arm.split,
            asked=None if arm.asked == split else arm.asked,
        )
        for arm_name, arm in ABLATIONS[name].items()
    }


def compared_with(arms: Mapping[str, Arm], name: str) -> str:
    """The first trained arm that is asked the same questions."""
    return next(x for x, arm in arms.items() if arm.model and arm.asked == arms[name].asked)
