"""What a request asks of steering, read from its extra arguments before anything runs."""

from __future__ import annotations

import difflib
import functools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vrga.config import PRESETS, VRGAConfig
from vrga.config_file import once
from vrga.hf.chosen_config import choose

ARGUMENT = "vrga"  # of SamplingParams.extra_args, and of vllm_xargs over HTTP
DEFAULT = "VRGA_ENGINE_DEFAULT"  # environment variable: what a request asks that says nothing
METHODS = ("vrga", "released", "released_mask")  # that the engine runs
WHEN = ("always", "back")  # to steer
_OWN = ("preset", "given", "query")
_LARGEST = 1 << 20  # characters of a request's JSON, which has some hundreds

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Asked:
    """How one request is to be steered.

    Args:
        config: the method's numbers.
        given: for each image, boxes (left, top, right, bottom) as shares of its sides, which
            replace the region that the method finds; None: what it finds.
        query: the question as it stands in the prompt; None: the last turn of the user.
    """

    config: VRGAConfig
    given: tuple[tuple[Box, ...], ...] | None = None
    query: str | None = None


def read_request(extra: Mapping[str, object] | None, checkpoint: str | Path = "") -> Asked | None:
    """What a request asks; None where it is not to be steered.

    Args:
        extra: `SamplingParams.extra_args`. Under "vrga" stands false, true, a preset's name, an
            object of a preset, fields of `VRGAConfig`, "given" and "query", or such an object as
            JSON text. Without it the environment variable VRGA_ENGINE_DEFAULT says.
        checkpoint: folder or hub id of the model, which may bring a configuration.

    Raises:
        ValueError: what it is, and what is accepted.
    """
    if extra is not None and ARGUMENT in extra:
        return _read(extra[ARGUMENT], ARGUMENT, checkpoint)
    default = os.environ.get(DEFAULT)
    return None if default is None else _read(default, DEFAULT, checkpoint)


def _read(given: object, name: str, checkpoint: str | Path) -> Asked | None:
    value = _decoded(given, name) if isinstance(given, str) else given
    if value is None or value is False:
        return None
    if value is True:
        value = {}
    if isinstance(value, str) and value in PRESETS:
        value = {"preset": value}
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{name}={_short(given)}: give false, true, the name of a preset "
            f"({', '.join(PRESETS)}), or an object such as "
            '{"preset": "paper", "gain": 1.5}, over HTTP as JSON text'
        )
    fields = {key: one for key, one in value.items() if key not in _OWN}
    preset, boxes, query = (value.get(key) for key in _OWN)  # each may be left out
    try:
        if preset is not None and not isinstance(preset, str):
            raise ValueError(f"preset={_short(preset)} is not one of {', '.join(PRESETS)}")
        _check_names(fields)
        config = _config(preset, fields, checkpoint)
        _check(config)
        if query is not None and (not isinstance(query, str) or not query.strip()):
            raise ValueError(f"query={_short(query)}: give the question's text")
        return Asked(config, None if boxes is None else _boxes(boxes), query)
    except ValueError as error:
        told = f"{name}: {error}"
        raise ValueError(told) from error


def _config(preset: str | None, fields: Mapping[str, object], checkpoint: str | Path) -> VRGAConfig:
    """The config that is asked for; requests that ask alike share it."""
    try:
        text = json.dumps(fields)
    except (TypeError, ValueError):  # an object of Python's, with which a request may come there
        return choose(preset, fields, checkpoint).config
    return _chosen(preset, text, checkpoint)


@functools.lru_cache(maxsize=256)
def _chosen(preset: str | None, fields: str, checkpoint: str | Path) -> VRGAConfig:
    return choose(preset, json.loads(fields), checkpoint).config


def _decoded(text: str, name: str) -> object:
    """What a text says: JSON, or a preset's name as it is."""
    if text in PRESETS:
        return text
    try:
        if len(text) > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST} characters")
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        told = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise ValueError(
            f"{name}={_short(text)} is neither JSON ({told}) nor the name of a preset: "
            f"{', '.join(PRESETS)}"
        ) from error


def _check_names(fields: Mapping[str, object]) -> None:
    """Refuse names that neither a config nor a request has."""
    known = [*VRGAConfig.__dataclass_fields__, *_OWN]
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(
                f"no field {_short(name)}{hint}: a request has {', '.join(_OWN)}, and the fields "
                "of VRGAConfig"
            )


def _check(config: VRGAConfig) -> None:
    """Refuse what is not done in the engine."""
    if config.method not in METHODS:
        raise ValueError(
            f"method={config.method!r} does not run in vLLM: {', '.join(METHODS)} do; use "
            "vrga.patch(model) in transformers"
        )
    if config.when not in WHEN:
        raise ValueError(
            f"when={config.when!r} does not run in vLLM: {', '.join(WHEN)} do; use "
            "vrga.patch(model) in transformers"
        )
    if config.relocate != "question":
        raise ValueError(
            f"relocate={config.relocate!r} does not run in vLLM, where the region of the question "
            "stays: leave it at 'question', or use vrga.patch(model) in transformers"
        )


def _boxes(value: object) -> tuple[tuple[Box, ...], ...]:
    """`given`, checked but for the number of images."""
    wanted = (
        "wanted: for each image a list of boxes [left, top, right, bottom] in shares of its sides, "
        "from 0 to 1, as in [[[0.1, 0.2, 0.5, 0.6]]]"
    )
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"given={_short(value)} is no list of images; {wanted}")
    for image in value:
        if not isinstance(image, (list, tuple)):
            raise ValueError(f"given has {_short(image)} for an image, and no list; {wanted}")
        for box in image:
            if not _is_box(box):
                raise ValueError(f"given has the box {_short(box)}, which is none; {wanted}")
    if not any(map(len, value)):
        raise ValueError(f"given={_short(value)} has no box at all; {wanted}")
    return tuple(tuple(as_box(box) for box in image) for image in value)


def _is_box(box: object) -> bool:
    """Whether it is four numbers, with some room between them."""
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        return False
    if any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in box):
        return False
    left, top, right, bottom = box
    inside = all(math.isfinite(x) and 0 <= x <= 1 for x in box)
    return inside and left < right and top < bottom


def as_box(box: list[float]) -> Box:
    """Four numbers of a list, as a plan has them."""
    left, top, right, bottom = map(float, box)
    return left, top, right, bottom


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
