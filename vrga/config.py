"""VRGAConfig: every number of the method, validated."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from vrga.config_file import FILE as FILE
from vrga.config_file import find, read, write
from vrga.lookback import TAG, check_tag
from vrga.presets import METHOD_DEFAULTS, PUBLISHED, SPARING, changes
from vrga.presets import PRESETS as PRESETS
from vrga.ranges import (
    CHOICES,
    RANGES,
    READ_BY,
    REPRODUCED,
    Border,
    Gate,
    Method,
    Question,
    Relocate,
    When,
    check_abstain,
    fields_read,
    number,
    short,
)
from vrga.ranges import INTEGERS as INTEGERS
from vrga.ranges import Ablated as Ablated


@dataclass(frozen=True)
class VRGAConfig:
    """The numbers of VRGA (arXiv 2603.14184).

    Phase 1 (prefill) chooses heads and the region T, phase 2 (decode) steers toward T. The
    defaults are the paper's: `VRGAConfig()` is `VRGAConfig.paper()`. A checkpoint may bring other
    numbers, tried on it, in a file vrga_config.json beside its weights: `vrga.patch(model)` takes
    those.

    Args:
        method: ``"vrga"``, or one of the reproductions ``"released"``, ``"released_mask"``,
            ``"ablation"``; use the presets rather than setting it. `vrga.method.table.add_method`
            adds others.
        gain: gamma, the factor on the attention to T before the row is renormalised; 1 is off.
        gate: ``"dynamic"`` decides per decode row and head, ``"static"`` steers exactly the visual
            heads chosen at prefill.
        gate_focus: a head is steered only where its image focus R exceeds this.
        gate_entropy: ... and where R exceeds this times H_mass (nats).
        efr_percentile: visual heads have an EFR at or below this percentile of all heads, and
        focus_percentile: an R at or above this percentile.
        question: ``"last"`` finds heads and map from the row of the question's last token alone,
            ``"whole"`` from each head at that word of the user's turn (`PromptReader.content`) at
            which its R is highest: also where an instruction stands behind the question.
        background_layers: share of the layers, from the first, where background heads are sought;
        background_focus: there they are the heads with R below this value.
        background_weight: lambda, the weight of the background map subtracted.
        sink_fraction: largest share of an image's tokens given to its sink border.
        sink_border: ``"always"`` leaves it out of T, ``"background"`` only where there are
            background heads, which show that there are sinks.
        region_std: T holds the tokens whose ratio exceeds mean + this many standard deviations.
        region_min: with fewer tokens than this above the threshold, the highest this-many are T.
        dilation: grid cells by which T grows (``released``: tokens, in one dimension).
        abstain: rows with less than this share of their map on its highest token are not steered.
        when: ``"always"`` steers every decode step, ``"back"`` those inside the model's own <back>
            spans (Look-Back, arXiv 2507.03019), ``"uncertain"`` those whose token was drawn from
            an uncertain distribution, see `uncertainty`. Or a callable (newest tokens int64 [B, Q],
            position of the first of them) -> bool [B, Q] on the same device: which are steered.
        relocate: ``"question"`` keeps the region that the question looks at, ``"back"`` finds it
            anew at each <back>, from the row of the token that opens the span, ``"uncertain"``
            where the model turns uncertain, from the row of the first token of such a stretch.
        uncertainty: nats from which a distribution is uncertain: its entropy, of the model's
            logits before processors and temperature. 0 is every one. The default was not chosen on
            any model: `vrga tune` chooses one.
        tag: the word between whose tags the model looks back, if it was trained to another.
        ablate: which heads lose their image attention, for ``method="ablation"`` alone: chosen per
            layer and step as in the released code, or ``"given"``, those of `Patch.ablated`.
        heads: heads of a layer ablated at each step; seed: of ``ablate="random"``.
        first_layer: the first layer (from 0) with ablated heads.

    Raises:
        ValueError: a value of another type or out of range, or a field that the chosen method does
            not read; the message names field, value and range. Scalars of NumPy are numbers.
    """

    method: Method | str = "vrga"
    gain: float = 1.5
    gate: Gate = "static"
    gate_focus: float = 0.6
    gate_entropy: float = 0.2
    efr_percentile: float = 5.0
    focus_percentile: float = 95.0
    question: Question = "last"
    background_layers: float = 0.1
    background_focus: float = 0.01
    background_weight: float = 1.0
    sink_fraction: float = 0.2
    sink_border: Border = "always"
    region_std: float = 0.6
    region_min: int = 10
    dilation: int = 1
    abstain: float = 0.0
    when: When | Callable = "always"
    relocate: Relocate = "question"
    uncertainty: float = 0.1
    tag: str = TAG
    ablate: Ablated | None = None
    heads: int = 5
    first_layer: int = 6
    seed: int = 0

    def __post_init__(self):
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            choices = tuple(READ_BY) if name == "method" else choices  # some may have been added
            unset = name == "ablate" and self.method != "ablation" and value is None
            if unset or (name == "when" and callable(value)):
                continue
            if not isinstance(value, str) or value not in choices:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")
        check_tag(self.tag)
        for name in RANGES:
            object.__setattr__(self, name, number(name, getattr(self, name)))
        check_abstain(self.abstain, self.relocate)
        base = METHOD_DEFAULTS.get(self.method, {})
        read = fields_read(self)
        for field in fields(self):
            default = base.get(field.name, field.default)
            if field.name not in read and getattr(self, field.name) != default:
                raise ValueError(
                    f"{field.name}={getattr(self, field.name)!r} is not read by "
                    f"method={self.method!r} with gate={self.gate!r}, when={self.when!r} and "
                    f"relocate={self.relocate!r}: leave it at {default!r}"
                )

    @property
    def steers(self) -> bool:
        """Whether this config changes anything: a gain of 1 does not."""
        return self.gain != 1 or not self.boosts

    @property
    def boosts(self) -> bool:
        """Whether it raises the attention to T; the hard mask and ablations take some away."""
        return self.method not in ("released_mask", "ablation")

    @property
    def reproduces(self) -> bool:
        """Whether it repeats what the released code computes, off by one where that is."""
        return self.method in REPRODUCED and self.ablate != "given"

    @classmethod
    def named(cls, preset: str, gain: float | None = None) -> VRGAConfig:
        """A preset by its name in `PRESETS`; `gain` replaces its own.

        Without a checkpoint "default" is the paper's; `vrga.patch(model, "default")` takes what
        the model's checkpoint brings.

        Raises:
            ValueError: no such preset.
        """
        if preset not in PRESETS:
            raise ValueError(f"preset {preset!r}: known are {', '.join(PRESETS)}")
        start = cls if preset == "default" else getattr(cls, preset)
        return start() if gain is None else start(gain=gain)

    @classmethod
    def sparing(cls, **overrides) -> VRGAConfig:
        """Few tokens, many heads, a strong push: what served best on the embedded model.

        Nobody has tried these numbers on a large model; see docs/results.md, "Recovery".
        """
        return cls(**{**SPARING, **overrides})

    @classmethod
    def published(cls, **overrides) -> VRGAConfig:
        """The method with the published numbers and the released code's dynamic gate."""
        return cls(**{**PUBLISHED, **overrides})

    @classmethod
    def paper(cls, **overrides) -> VRGAConfig:
        """The method with the paper's numbers and its static gate: H_v is fixed at prefill.

        These are the defaults.
        """
        return cls(**{**PUBLISHED, "gate": "static", **overrides})

    @classmethod
    def released(cls, **overrides) -> VRGAConfig:
        """What the authors' released code computes, point by point, to reproduce its figures."""
        return cls(**{"method": "released", **METHOD_DEFAULTS["released"], **overrides})

    @classmethod
    def released_mask(cls, **overrides) -> VRGAConfig:
        """The released hard-mask variant: gated heads keep T alone, all others lose the image."""
        return cls(**{"method": "released_mask", **METHOD_DEFAULTS["released_mask"], **overrides})

    @classmethod
    def ablation(
        cls, ablate: Ablated, heads: int = 5, first_layer: int = 6, seed: int = 0
    ) -> VRGAConfig:
        """The paper's check that heads matter: zero the image attention of some heads."""
        return cls(
            **METHOD_DEFAULTS["ablation"],
            method="ablation", ablate=ablate, heads=heads, first_layer=first_layer, seed=seed,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The nearest preset and how this config differs from it: "paper, gain 3"."""
        if self.method == "ablation":
            return f"ablation {self.ablate}"
        known = {preset: VRGAConfig.named(preset) for preset in PRESETS if preset != "default"}
        known = {preset: own for preset, own in known.items() if own.method == self.method}
        if not known:  # a method that was added
            known = {self.method: type(self)(method=self.method)}
        differ = {preset: changes(self, own) for preset, own in known.items()}
        nearest = min(differ, key=lambda preset: len(differ[preset]))
        return ", ".join([nearest, *differ[nearest]])

    def to_dict(self) -> dict[str, str | int | float | None]:
        """Every field by its name, as JSON takes it.

        Raises:
            ValueError: `when` is a callable, which no file can hold.
        """
        if callable(self.when):
            raise ValueError(
                f"when={getattr(self.when, '__name__', self.when)!r} is a function, which a file "
                "cannot hold: save dataclasses.replace(config, when='always'), and set `when` "
                "again where the config is read"
            )
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, object]) -> VRGAConfig:
        """A config of fields by name, such as `to_dict` returns; others are their method's own.

        Raises:
            ValueError: no mapping, a field that a config does not have, or a value that it refuses.
        """
        if not isinstance(given, Mapping):
            raise ValueError(f"{short(given)} is no configuration: give fields by their names")
        check_fields(given)
        method = given.get("method")
        base = METHOD_DEFAULTS.get(method, {}) if isinstance(method, str) else {}
        return cls(**{**base, **given})

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write vrga_config.json into a folder, beside a checkpoint's weights or anywhere.

        Returns:
            The file's path.

        Raises:
            ValueError: as of `to_dict`. OSError: the folder cannot be written to.
        """
        return write(self.to_dict(), Path(folder))

    @classmethod
    def from_pretrained(cls, where: str | Path) -> VRGAConfig:
        """The configuration that a checkpoint brings, or that `save_pretrained` wrote.

        Args:
            where: a folder with vrga_config.json, that file itself or another of its form, a hub
                id, or the short name of a Look-Back checkpoint.

        Raises:
            FileNotFoundError: no such folder or file, or a checkpoint that brings none.
            OSError: a hub id that cannot be reached.
            ValueError: a damaged file, named by its path.
        """
        return read(find(where), cls.from_dict)


def check_fields(given: Iterable[object]) -> None:
    """Raise ValueError for names that are no fields of a config."""
    known = [field.name for field in fields(VRGAConfig)]
    unknown = [name for name in given if name not in known]
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), known, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(
            f"no field {', '.join(short(name) for name in unknown)}{hint}: a configuration has "
            f"{', '.join(known)}"
        )


def unsteered_config(config: VRGAConfig | None) -> VRGAConfig:
    """What a base run is patched with: `config` with gain 1, which steers nothing.

    A hard mask and an ablation have no gain: then it is the default method with gain 1, whose
    heads and region are others than those of `config`.
    """
    if config is None or not config.boosts:
        return VRGAConfig(gain=1)
    return dataclasses.replace(config, gain=1)
