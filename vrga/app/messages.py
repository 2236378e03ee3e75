"""What the viewer in the browser is told, as JSON: pictures, words as they come, both answers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from PIL import Image

from vrga.app.loaded_model import Answered
from vrga.app.word_queue import Said
from vrga.report.page import as_json, encoded, shown

MEGABYTES = 12.0  # of maps, for both answers
KEPT = (  # of what a report shows
    "tokens", "steps", "channels", "series", "shares", "maps", "grids", "sizes", "images",
    "region", "relocated", "relevance",
)  # fmt: skip
_NUMBER = itertools.count()  # the browser hears only what differs from what it heard last


def pictures(images: Sequence[Image.Image]) -> str:
    """Pictures that are not asked about yet."""
    return _told("pictures", images=[encoded(image) for image in images])


def speaking(said: Said) -> str:
    """How far both answers have come."""
    return _told("speaking", texts=[said.base, said.steered])


def stopped() -> str:
    """The answer was not wanted any more."""
    return _told("stopped", told="Stopped.")


def failed(why: str) -> str:
    """Why there is no answer."""
    return _told("error", told=why)


def answered(found: Answered) -> str:
    """Both answers, their maps, and what became of them."""
    page, notes = None, [found.told, f"{found.seconds:.1f} s"]
    if all(trace.image is not None for trace in found.traces):
        page = shown(found.traces, megabytes=MEGABYTES, layers=True)
        page["runs"] = [{name: run[name] for name in KEPT} for run in page["runs"]]
    else:
        notes.append("an answer of a single token has no step to show")
    return _told(
        "answered",
        texts=found.texts,
        titles=["without VRGA", f"with VRGA{', looked closer' if found.closer else ''}"],
        notes=notes,
        warning=found.warning,
        painted=found.painted,
        closer=found.closer,
        page=page,
    )


def _told(kind: str, **what: object) -> str:
    return as_json({"kind": kind, "number": next(_NUMBER), **what})
