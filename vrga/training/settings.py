"""How SFT and RL are run: the numbers of a YAML file, and those given over it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

FOLDER = Path(__file__).parent
# Files inside this package, by name: for the embedded model, and for one of the paper's size.
SHIPPED = {name: FOLDER / f"{name}.yaml" for name in ("embedded", "chain", "paper-7b")}
LAUNCH = "zero3"  # for accelerate launch
SCALES = ("group", "batch", "none")
FORMS = ("strict", "any")


@dataclass(frozen=True)
class Common:
    """What SFT and RL have in common.

    Args:
        learning_rate: of AdamW, at its highest.
        warmup: share of the steps in which it rises.
        schedule: how it falls, a name of transformers': linear, cosine, constant_with_warmup, ...
        epochs: passes over the rows.
        max_steps: so many steps in place of the epochs'; 0 is those of the epochs.
        save_every: steps between two checkpoints; keep: of the newest ones.
        batch: what a step takes, of all processes together: rows of SFT, questions of RL.
        per_device: rows, or answers, of a forward pass.
        lora: rank of an adapter that is trained in place of the weights; 0 trains the weights.
        checkpointing: recompute activations in the backward pass, which saves memory.
        seed: of order and sampling.
    """

    learning_rate: float = 1e-5
    warmup: float = 0.05
    schedule: str = "cosine"
    epochs: float = 1.0
    max_steps: int = 0
    batch: int = 128
    per_device: int = 4
    save_every: int = 50
    keep: int = 2
    lora: int = 0
    checkpointing: bool = True
    seed: int = 0

    def __post_init__(self):
        positive = ["learning_rate", "epochs", "batch", "per_device", "save_every", "keep"]
        for name in positive:
            self._check(name, getattr(self, name) > 0, "above 0")
        for name in ("max_steps", "lora"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        self._check("seed", 0 <= self.seed < 2**32, "from 0 to 2**32 - 1")
        self._check("warmup", 0 <= self.warmup < 1, "from 0 to below 1")

    def _check(self, name: str, fine: bool, accepted: str) -> None:
        if not fine:
            raise ValueError(f"setting {name}={getattr(self, name)!r}: must be {accepted}")


@dataclass(frozen=True)
class SFT(Common):
    """Supervised training on the rows: the cold start."""


@dataclass(frozen=True)
class RL(Common):
    """GRPO: answers are rewarded beside others to the same question.

    Args:
        group: answers to each question.
        weight: lambda, what the form's reward counts beside the right answer's 1.
        scale_rewards: by whose spread advantages are divided: "group", "batch", or "none".
        form: "strict", `lookback.reward`; "any" pays for every span, whatever is in it, and is
            there to see what comes of that.
        beta: weight of the divergence from the model at the start.
        temperature: of sampling.
        max_new_tokens: longest answer.
    """

    learning_rate: float = 1e-6
    schedule: str = "constant_with_warmup"
    epochs: float = 2.0
    group: int = 8
    weight: float = 0.1
    scale_rewards: str = "group"
    form: str = "strict"
    beta: float = 0.0
    temperature: float = 1.0
    max_new_tokens: int = 2048

    def __post_init__(self):
        super().__post_init__()
        for name in ("temperature", "max_new_tokens"):
            self._check(name, getattr(self, name) > 0, "above 0")
        self._check("group", self.group >= 2, "at least 2, for answers are compared")
        for name in ("weight", "beta"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        self._check("scale_rewards", self.scale_rewards in SCALES, f"one of {', '.join(SCALES)}")
        self._check("form", self.form in FORMS, f"one of {', '.join(FORMS)}")


Kind = TypeVar("Kind", bound=Common)


def read(
    kind: type[Kind],
    config: str | None,
    model: str | None,
    given: Sequence[str] = (),
    **fields: object,
) -> tuple[Kind, str]:
    """Settings of a file with others over them, and the name of the file.

    Args:
        kind: `SFT` or `RL`, whose section of the file is read.
        config: a path, or a name of `SHIPPED`, with or without .yaml; None is "embedded" for the
            embedded model (`model` is None), and "paper-7b" for any other.
        given: field=value, as typed.
        fields: over all; None counts as not given.

    Raises:
        OSError: no such file.
        ValueError: a damaged file, or fields and values that there are not.
    """
    name = config or ("embedded" if model is None else "paper-7b")
    path = SHIPPED.get(name.removesuffix(".yaml"), Path(name))
    values: dict[str, Any] = _section(path, kind.__name__.lower())
    types = {field.name: type(field.default) for field in dataclasses.fields(kind)}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text}: give field=value")
        values[key.strip()] = _typed(value.strip(), types.get(key.strip(), str))
    values |= {key: value for key, value in fields.items() if value is not None}
    other = [key for key in values if key not in types]
    if other:
        raise ValueError(
            f"{', '.join(other)}: no setting of {kind.__name__.lower()}; there are "
            f"{', '.join(types)}"
        )
    checked: dict[str, Any] = {
        key: _checked(key, value, types[key]) for key, value in values.items()
    }
    return kind(**checked), name


def shipped(name: str) -> Path:
    """A file inside this package by its name, with or without .yaml.

    Raises:
        ValueError: no such file.
    """
    known = (*SHIPPED, LAUNCH)
    if name.removesuffix(".yaml") not in known:
        raise ValueError(f"settings {name!r}: in the package are {', '.join(known)}")
    return FOLDER / f"{name.removesuffix('.yaml')}.yaml"


def _section(path: Path, name: str) -> dict[str, object]:
    import yaml

    if not path.is_file():
        raise FileNotFoundError(
            f"--config {path}: no such file; inside the package are {', '.join(SHIPPED)}"
        )
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(found, Mapping) or not isinstance(found.get(name) or {}, Mapping):
        raise ValueError(f"{path}: write sections sft: and rl:, each with fields and values")
    other = [key for key in found if key not in ("sft", "rl")]
    if other:
        raise ValueError(f"{path} has a section {other[0]}: there are sft and rl")
    return dict(found.get(name) or {})


def _typed(text: str, kind: type) -> object:
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


def _checked(name: str, value: object, kind: type) -> object:
    """A value of a field's type; YAML reads 1e-5 as a text and 1 as a whole number."""
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        value = _typed(str(value), float)
    fine = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
    if not fine or (isinstance(value, float) and not math.isfinite(value)):
        told = {int: "a whole number", float: "a number", bool: "true or false", str: "a name"}
        raise ValueError(f"setting {name}={value!r}: give {told[kind]}")
    return value
