"""VRGAConfig: every number of the method, validated, the presets, and the file that holds one."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from vrga.lookback import TAG, check_tag

Method = Literal["vrga", "released", "released_mask", "ablation"]
Gate = Literal["dynamic", "static"]
Ablated = Literal["visual", "low_focus", "random", "given"]
When = Literal["always", "back"]
Relocate = Literal["question", "back"]
Border = Literal["always", "background"]

_FLOAT = 3.4028234e38  # largest finite float32, in which thresholds are compared
_WHOLE = 2**31 - 1
# Inclusive bounds of each numeric field.
RANGES: dict[str, tuple[float, float]] = {
    "gain": (0, 1e9),  # room for sums over keys in float32; beyond it T has all attention anyway
    "gate_focus": (0, _FLOAT),
    "gate_entropy": (0, _FLOAT),
    "efr_percentile": (0, 100),
    "focus_percentile": (0, 100),
    "background_layers": (0, 1),
    "background_focus": (0, _FLOAT),
    "background_weight": (0, 1e9),
    "sink_fraction": (0, 1),
    "region_std": (-1e9, 1e9),
    "region_min": (1, _WHOLE),
    "dilation": (0, 1000),  # more than a side of any token grid
    "heads": (1, _WHOLE),
    "first_layer": (0, _WHOLE),
    "seed": (0, 2**63 - 1),
}
CHOICES = {"method": get_args(Method), "gate": get_args(Gate), "ablate": get_args(Ablated)}
CHOICES |= {"when": get_args(When), "relocate": get_args(Relocate)}
CHOICES |= {"sink_border": get_args(Border)}
INTEGERS = {"region_min", "dilation", "heads", "first_layer", "seed"}

# What a method reads. A field outside this set must keep its default, so no option is ignored.
_BOOST = {f for f in RANGES if f not in {"heads", "first_layer", "seed"}}
READ_BY: dict[str, set[str]] = {
    "vrga": _BOOST | {"gate", "when", "relocate", "tag", "sink_border"},
    "released": _BOOST - {"background_layers"},
    "released_mask": {"gate_focus", "gate_entropy", "dilation"},
    "ablation": {"ablate", "heads", "first_layer", "seed"},
}
REPRODUCED = ("released", "released_mask", "ablation")  # what the authors' released code computes

# Names of whole configurations; "default" is what a checkpoint brings, else the paper's.
PRESETS = ("default", "sparing", "published", "paper", "released", "released_mask")

FILE = "vrga_config.json"  # a checkpoint's own configuration, beside its weights
_LARGEST = 1 << 20  # bytes of that file, which has some hundreds


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
        background_layers: share of the layers, from the first, in which background heads are
            sought; there they are the heads with R below
        background_focus: this value.
        background_weight: lambda, the weight of the background map subtracted.
        sink_fraction: largest share of an image's tokens given to its sink border.
        sink_border: ``"always"`` leaves it out of T, ``"background"`` only where there are
            background heads, which show that there are sinks.
        region_std: T holds the tokens whose ratio exceeds mean + this many standard deviations.
        region_min: with fewer tokens than this above the threshold, the highest this-many are T.
        dilation: grid cells by which T grows (``released``: tokens of the raster, in one
            dimension).
        when: ``"always"`` steers every decode step, ``"back"`` those inside the model's own <back>
            spans (Look-Back, arXiv 2507.03019). Or a callable (newest tokens int64 [B, Q],
            position of the first of them) -> bool [B, Q] on the same device: which are steered.
        relocate: ``"question"`` keeps the region that the question looks at, ``"back"`` finds it
            anew at each <back>, from the row of the token that opens the span.
        tag: the word between whose tags the model looks back, where it was trained to another
            than back.
        ablate: which heads lose their image attention, for ``method="ablation"`` alone: chosen
            per layer and step as in the released code, or ``"given"``, those of `Patch.ablated`.
        heads: heads of a layer ablated at each step.
        first_layer: the first layer (from 0) with ablated heads.
        seed: seed of ``ablate="random"``.

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
    background_layers: float = 0.1
    background_focus: float = 0.01
    background_weight: float = 1.0
    sink_fraction: float = 0.2
    sink_border: Border = "always"
    region_std: float = 0.6
    region_min: int = 10
    dilation: int = 1
    when: When | Callable = "always"
    relocate: Relocate = "question"
    tag: str = TAG
    ablate: Ablated | None = None
    heads: int = 5
    first_layer: int = 6
    seed: int = 0

    def __post_init__(self):
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            choices = tuple(READ_BY) if name == "method" else choices  # some may have been added
            if name == "when" and callable(value):
                continue
            if name == "ablate" and self.method != "ablation" and value is None:
                continue
            if not isinstance(value, str) or value not in choices:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")
        check_tag(self.tag)
        for name in RANGES:
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        base = _METHOD_DEFAULTS.get(self.method, {})
        read = READ_BY[self.method] | {"method"}
        if self.gate == "static":
            read = read - {"gate_focus", "gate_entropy"}  # thresholds of the dynamic gate
        if self.ablate == "given":
            read = read - {"heads", "first_layer", "seed"}  # of a choice per layer and step
        for field in fields(self):
            if field.name in read:
                continue
            default = base.get(field.name, field.default)
            if getattr(self, field.name) != default:
                raise ValueError(
                    f"{field.name}={getattr(self, field.name)!r} is not read by "
                    f"method={self.method!r} with gate={self.gate!r}: leave it at {default!r}"
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
        return cls(**{**_SPARING, **overrides})

    @classmethod
    def published(cls, **overrides) -> VRGAConfig:
        """The method with the published numbers and the released code's dynamic gate."""
        return cls(**{**_PUBLISHED, **overrides})

    @classmethod
    def paper(cls, **overrides) -> VRGAConfig:
        """The method with the paper's numbers and its static gate: H_v is fixed at prefill.

        These are the defaults.
        """
        return cls(**{**_PUBLISHED, "gate": "static", **overrides})

    @classmethod
    def released(cls, **overrides) -> VRGAConfig:
        """What the authors' released code computes, point by point, to reproduce its figures."""
        return cls(**{"method": "released", **_METHOD_DEFAULTS["released"], **overrides})

    @classmethod
    def released_mask(cls, **overrides) -> VRGAConfig:
        """The released hard-mask variant: gated heads keep T alone, all others lose the image."""
        return cls(**{"method": "released_mask", **_METHOD_DEFAULTS["released_mask"], **overrides})

    @classmethod
    def ablation(
        cls, ablate: Ablated, heads: int = 5, first_layer: int = 6, seed: int = 0
    ) -> VRGAConfig:
        """The paper's check that heads matter: zero the image attention of some heads."""
        return cls(
            **_METHOD_DEFAULTS["ablation"],
            method="ablation", ablate=ablate, heads=heads, first_layer=first_layer, seed=seed,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The nearest preset and how this config differs from it: "paper, gain 3"."""
        if self.method == "ablation":
            return f"ablation {self.ablate}"
        known = {preset: VRGAConfig.named(preset) for preset in PRESETS if preset != "default"}
        changes = {
            preset: [
                f"{field.name} {_shown(getattr(self, field.name))}"
                for field in fields(self)
                if getattr(self, field.name) != getattr(own, field.name)
            ]
            for preset, own in known.items()
            if own.method == self.method
        }
        if not changes:  # a method that was added
            own = type(self)(method=self.method)
            changes = {self.method: [
                f"{field.name} {_shown(getattr(self, field.name))}"
                for field in fields(self)
                if getattr(self, field.name) != getattr(own, field.name)
            ]}  # fmt: skip
        nearest = min(changes, key=lambda preset: len(changes[preset]))
        return ", ".join([nearest, *changes[nearest]])

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
            raise ValueError(f"{_short(given)} is no configuration: give fields by their names")
        check_fields(given)
        method = given.get("method")
        base = _METHOD_DEFAULTS.get(method, {}) if isinstance(method, str) else {}
        return cls(**{**base, **given})

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write vrga_config.json into a folder, beside a checkpoint's weights or anywhere.

        Returns:
            The file's path.

        Raises:
            ValueError: as of `to_dict`. OSError: the folder cannot be written to.
        """
        text = json.dumps(self.to_dict(), indent=1) + "\n"
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path, draft = folder / FILE, folder / f"{FILE}.new"
        draft.write_text(text, "utf-8")
        draft.replace(path)  # whole at any time
        return path

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
        from vrga.lookback import ALIASES

        name = str(where)
        where = ALIASES.get(name.lower(), where)
        given = Path(where)
        path: Path | None = given
        if not name or not os.path.lexists(given):
            local = isinstance(where, Path) or name.startswith((".", "/", "~"))
            if local or str(where).count("/") != 1:
                raise FileNotFoundError(
                    f"no configuration at {name!r}: give a folder with {FILE}, such a file, or a "
                    "hub id such as Qwen/Qwen2.5-VL-7B-Instruct"
                )
            from vrga.hf.files import hub_file

            path = hub_file(str(where), FILE)
        elif given.is_dir():
            path = given / FILE if os.path.lexists(given / FILE) else None
        if path is None:
            raise FileNotFoundError(
                f"{where} brings no {FILE}: vrga.patch(model) steers with VRGAConfig() then; "
                "config.save_pretrained(folder) writes one"
            )
        return read_file(path)


def check_fields(given: Iterable[object]) -> None:
    """Raise ValueError for names that are no fields of a config."""
    known = [field.name for field in fields(VRGAConfig)]
    unknown = [name for name in given if name not in known]
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), known, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(
            f"no field {', '.join(_short(name) for name in unknown)}{hint}: a configuration has "
            f"{', '.join(known)}"
        )


def read_file(path: str | Path) -> VRGAConfig:
    """A config from a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: no JSON, or fields or values that a config does not have; names the path.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        if not path.is_file():
            raise ValueError("it is no file")
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST >> 20} MB")
        text = path.read_text("utf-8-sig")
        return VRGAConfig.from_dict(json.loads(text, object_pairs_hook=_once))
    except (ValueError, RecursionError) as error:
        told = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise ValueError(
            f"{path} is no configuration: {told}. Mend it, or write it anew: "
            "config.save_pretrained(folder)"
        ) from error


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON, whose names must differ: of two values json takes the last in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{_short(twice)} stands in it twice")
    return found


def _shown(value: object) -> str:
    if callable(value):
        return getattr(value, "__name__", "callable")
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _number(name: str, value: object) -> int | float:
    """A numeric field's value, a scalar of NumPy as Python's number.

    Raises:
        ValueError: no number, or one out of range.
    """
    whole = name in INTEGERS
    kind = numbers.Integral if whole else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ValueError(f"{name}={_short(value)} is not {'an integer' if whole else 'a number'}")
    if not isinstance(value, (int, float)):
        try:
            value = int(value) if isinstance(value, numbers.Integral) else float(value)
        except OverflowError:  # a fraction
            value = -math.inf if value < 0 else math.inf
    low, high = RANGES[name]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value!r} must be finite: from {low:.8g} to {high:.8g}")
    if value < low:
        raise ValueError(f"{name}={_short(value)} must be ≥ {low:.8g}")
    if value > high:
        told = str(high) if whole else f"{high:.8g}"
        raise ValueError(f"{name}={_short(value)} must be ≤ {told}")
    return value


def _short(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 200:
        return f"(an integer of {value.bit_length()} bits)"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_PUBLISHED: dict[str, object] = {
    "gain": 1.5,
    "gate": "dynamic",
    "gate_focus": 0.6,
    "gate_entropy": 0.2,
    "efr_percentile": 5.0,
    "focus_percentile": 95.0,
    "background_layers": 0.1,
    "background_focus": 0.01,
    "background_weight": 1.0,
    "sink_fraction": 0.2,
    "sink_border": "always",
    "region_std": 0.6,
    "region_min": 10,
    "dilation": 1,
}
_SPARING: dict[str, object] = {
    "gain": 3.0,
    "gate": "static",
    "efr_percentile": 15.0,
    "focus_percentile": 70.0,
    "sink_border": "background",
    "region_std": 2.0,
    "region_min": 1,
    "dilation": 0,
}
_METHOD_DEFAULTS: dict[str, dict] = {
    "released": {**_PUBLISHED, "dilation": 2},
    "released_mask": {**_PUBLISHED, "dilation": 3},
    "ablation": _PUBLISHED,
}
