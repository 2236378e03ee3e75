"""A page of what a server told of one steered answer: its region, its heads, where it looked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vrga.images import read_image
from vrga.report.page import TURNING, encoded

Box = tuple[float, float, float, float]
WIDTH, HEIGHT = 600, 120  # of the line of shares, in its own units
MOST = 1 << 18  # tokens of an image, at most; no processor makes so many


@dataclass(frozen=True)
class Looked:
    """What a server told of one answer, checked.

    Args:
        config: the method's numbers, by name.
        fault: why it was not steered, or None.
        grids: (rows, columns) of each image's tokens.
        boxes: of each image, (left, top, right, bottom) in shares of its sides.
        tokens: how many the boxes hold.
        heads: (layer, head) of each visual head.
        steps: attention on the region at each steered step, a share each.
        answer: its text, where it is known.
    """

    config: str
    fault: str | None
    grids: list[tuple[int, int]]
    boxes: list[list[Box]]
    tokens: int
    heads: list[tuple[int, int]]
    steps: list[float]
    answer: str | None


def write_looked(path: Path | str, images: Sequence[Path | str], output: Path | str) -> Path:
    """Write the page of one answer.

    Args:
        path: a JSON file: the server's whole answer, the last chunk of a stream, or the summary.
        images: of the request, in their order; none leaves the pictures white.
        output: the HTML file.

    Raises:
        ImportError: Jinja2 is missing.
        OSError: a file cannot be read.
        ValueError: it holds no summary, or one that is damaged; or other images than it is of.
    """
    try:
        from jinja2 import Environment, PackageLoader
    except ImportError as error:
        raise ImportError("a report needs Jinja2: pip install 'vrga[report]'") from error
    found = read_looked(path)
    pictures = _pictures(path, found, images)
    shown = [
        {"source": encoded(picture), "size": picture.size, "boxes": boxes, "grid": grid}
        for picture, boxes, grid in zip(pictures, found.boxes, found.grids, strict=True)
    ]
    environment = Environment(loader=PackageLoader("vrga.report", ""), autoescape=True)
    text = environment.get_template("looked.html.jinja").render(
        looked=found, pictures=shown, line=_line(found.steps), width=WIDTH, height=HEIGHT,
        answer=None if found.answer is None else found.answer.translate(TURNING),
        mean=sum(found.steps) / max(1, len(found.steps)), layers=_by_layer(found.heads),
        whole=sum(h * w for h, w in found.grids),
    )  # fmt: skip
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(text.encode("utf-8", "replace"))
    return output


def _pictures(path: Path | str, found: Looked, images: Sequence[Path | str]) -> list[Image.Image]:
    """The images of the request; white ones where none is given.

    Raises:
        ValueError: others than the answer is of, by their number or by their sides.
    """
    if not images:
        return [Image.new("RGB", (28 * w, 28 * h), "white") for h, w in found.grids]
    if found.fault is not None:
        raise ValueError(
            f"{path} is of an answer that was not steered ({found.fault}), so nothing is drawn "
            "into pictures: leave out --image"
        )
    if len(images) != len(found.grids):
        raise ValueError(
            f"{path} is of {len(found.grids)} images, and --image was given {len(images)} times: "
            "give each once, in the request's order"
        )
    pictures = [read_image(one) for one in images]
    for name, picture, (h, w) in zip(images, pictures, found.grids, strict=True):
        # A processor rounds each side to whole tokens, and keeps the proportion but for that.
        least, most = (w - 1) / (h + 1), (w + 1) / max(0.5, h - 1)
        if not least <= picture.width / picture.height <= most:
            raise ValueError(
                f"{name} has {picture.width} x {picture.height} pixels, and the image that {path} "
                f"is of was seen as {w} x {h} tokens: give the request's images, in its order"
            )
    return pictures


def read_looked(path: Path | str) -> Looked:
    """What a file holds of one answer; see `write_looked`."""
    try:
        told = json.loads(Path(path).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file ({error}): save the server's answer") from error
    summary = told
    for name in ("kv_transfer_params", "vrga"):
        if isinstance(summary, Mapping) and name in summary:
            summary = summary[name]
    if not isinstance(summary, Mapping) or "steered" not in summary:
        raise ValueError(
            f"{path} holds no summary of a steered answer: wanted is the server's answer to a "
            "request that asks to be steered, with kv_transfer_params, or what stands there under "
            "vrga. An answer without it was not steered"
        )
    try:
        return _looked(summary, _answer(told))
    except (KeyError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} holds a damaged summary: {what}. Save it as the server gave it"
        ) from error


def _looked(summary: Mapping[str, Any], answer: str | None) -> Looked:
    config = str(summary["config"])
    if not isinstance(summary["steered"], bool):
        raise ValueError(f"steered is {summary['steered']!r}, and neither true nor false")
    if not summary["steered"]:
        return Looked(config, str(summary["fault"]), [], [], 0, [], [], answer)
    grids = [_pair(one) for one in summary["grids"]]
    boxes = [[_box(box) for box in image] for image in summary["boxes"]]
    sizes, tokens = [h * w for h, w in grids], _whole(summary["tokens"])
    if len(boxes) != len(grids) or not all(0 < size <= MOST for size in sizes):
        raise ValueError(f"{len(boxes)} lists of boxes for the grids {grids}")
    if tokens > sum(sizes):
        raise ValueError(f"{tokens} tokens in the region, of {sum(sizes)}")
    heads = [_pair(one) for one in summary["heads"]]
    if not isinstance(summary["share"], Mapping):
        raise ValueError(f"share is {summary['share']!r}, and no mapping with steps")
    steps = [_share(one) for one in summary["share"]["steps"]]
    return Looked(config, None, grids, boxes, tokens, heads, steps, answer)


def _pair(value: object) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"{value!r} is no pair of numbers")
    return _whole(value[0]), _whole(value[1])


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no number of something")
    return value


def _share(value: object) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= 1.001:  # type: ignore[arg-type, operator]
        raise ValueError(f"{value!r} is no share, from 0 to 1")
    return float(value)  # type: ignore[arg-type]


def _box(box: Sequence[object]) -> Box:
    left, top, right, bottom = map(_share, box)
    if not (left < right and top < bottom):
        raise ValueError(f"{box} is no box, left, top, right, bottom")
    return left, top, right, bottom


def _answer(told: object) -> str | None:
    """The text of a whole answer; None where there is none, or several."""
    choices = told.get("choices") if isinstance(told, Mapping) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        return None
    message = choices[0].get("message")
    text = message.get("content") if isinstance(message, Mapping) else None
    return text if isinstance(text, str) else None


def _by_layer(heads: Sequence[tuple[int, int]]) -> list[tuple[int, str]]:
    """Layers with visual heads, and their heads."""
    layers: dict[int, list[int]] = {}
    for layer, head in sorted(heads):
        layers.setdefault(layer, []).append(head)
    return [(layer, ", ".join(map(str, own))) for layer, own in layers.items()]


def _line(steps: Sequence[float]) -> str:
    """The points of a line of shares, from 0 at the bottom to 1 at the top."""
    apart = WIDTH / max(1, len(steps) - 1)
    return " ".join(f"{i * apart:.1f},{HEIGHT * (1 - min(x, 1)):.1f}" for i, x in enumerate(steps))
