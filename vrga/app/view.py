"""What the viewer in the browser is told, as JSON: pictures, words as they come, both answers."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from vrga.app.asker import Answered, Said
from vrga.report.page import as_json, encoded, shown

MEGABYTES = 12.0  # of maps, for both answers


def pictures(images: Sequence[Image.Image]) -> str:
    """Pictures that are not asked about yet."""
    return as_json({"kind": "pictures", "images": [encoded(image) for image in images]})


def speaking(said: Said) -> str:
    """How far both answers have come."""
    return as_json({"kind": "speaking", "texts": [said.base, said.steered]})


def told(kind: str, text: str) -> str:
    """Words for the user, where there is no answer: "error" or "stopped"."""
    return as_json({"kind": kind, "told": text})


def answered(found: Answered) -> str:
    """Both answers, their maps, and what became of them."""
    notes = [found.told, f"{found.seconds:.1f} s"]
    base, steered = found.traces
    whole = [trace for trace in found.traces if trace.image is not None]
    if len(whole) < len(found.traces):
        # An answer of one token has no step at which it could be seen where it looks.
        notes.append("an answer of a single token has no step to show")
        return as_json(
            {"kind": "answered", "texts": found.texts, "notes": notes, "warning": found.warning,
             "page": None}
        )  # fmt: skip
    page = shown([base, steered], megabytes=MEGABYTES, layers=True)
    keep = ("tokens", "steps", "back", "channels", "series", "shares", "maps", "grids", "sizes",
            "images", "region", "relocated", "relevance", "left_out")  # fmt: skip
    page["runs"] = [{name: run[name] for name in keep} for run in page["runs"]]
    return as_json(
        {"kind": "answered", "texts": found.texts, "notes": notes, "warning": found.warning,
         "page": page}
    )  # fmt: skip
