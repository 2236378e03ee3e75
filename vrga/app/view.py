"""What the viewer in the browser is told, as JSON: pictures, words as they come, both answers."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from vrga.app.asker import Answered, Said
from vrga.report.page import as_json, encoded, shown

MEGABYTES = 12.0  # of maps, for both answers
KEPT = (  # of what a report shows
    "tokens", "steps", "channels", "series", "shares", "maps", "grids", "sizes", "images",
    "region", "relocated", "relevance",
)  # fmt: skip


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
    page, notes = None, [found.told, f"{found.seconds:.1f} s"]
    if all(trace.image is not None for trace in found.traces):
        page = shown(found.traces, megabytes=MEGABYTES, layers=True)
        page["runs"] = [{name: run[name] for name in KEPT} for run in page["runs"]]
    else:
        notes.append("an answer of a single token has no step to show")
    return as_json(
        {
            "kind": "answered",
            "texts": found.texts,
            "titles": ["without VRGA", f"with VRGA{', looked closer' if found.closer else ''}"],
            "notes": notes,
            "warning": found.warning,
            "painted": found.painted,
            "page": page,
        }
    )
