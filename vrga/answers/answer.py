"""The answer to one question, without and with VRGA, and what shows it."""

from __future__ import annotations

import sys
import tempfile
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from vrga.config import VRGAConfig
from vrga.method.region import Region
from vrga.ranges import short
from vrga.recording.trace import Trace
from vrga.steering.steps import Steps


@dataclass(frozen=True, eq=False, repr=False)
class Answer:
    """What a model answered, without and with VRGA, and where it looked. A notebook draws it.

    Args:
        text: the steered answer.
        base: the unsteered one, on the same attention backend; None with `base=False`.
        region: what the question looks at.
        steps: what became of the steered answer's steps.
        trace: of the steered answer, with maps of the visual heads and of each layer.
        question, images: what was asked, as the model saw it.
        config: how it was steered.
        base_trace: of the unsteered answer, likewise; None with `base=False`.
    """

    text: str
    base: str | None
    region: Region
    steps: Steps
    trace: Trace = field(repr=False)
    question: str
    images: list[Image.Image]
    config: VRGAConfig
    base_trace: Trace | None = None

    def __repr__(self) -> str:
        told, *base = (short(" ".join(x.split())) for x in (self.text, self.base) if x is not None)
        parts = [told, *(f"base {x}" for x in base), self._looked, str(self.steps)]
        return f"Answer({', '.join(parts)})"

    @property
    def _looked(self) -> str:
        region = self.region
        return f"T {int(region.mask.sum())} of {int(region.image.sum())} tokens"

    def report(self, path: str | Path, *, megabytes: float = 16.0) -> Path:
        """Write the page that shows both answers token by token, see `vrga.report`.

        Args:
            path: the HTML file; megabytes: most room for maps.

        Raises:
            ImportError: Jinja2 is missing.
            ValueError: an answer of a single token, which has no step to show.
        """
        from vrga.report.page import write_page

        traces = [self.trace] if self.base_trace is None else [self.base_trace, self.trace]
        return write_page(traces, Path(path), megabytes=megabytes)

    def show(self) -> None:
        """Draw it: in a notebook below the cell, elsewhere in words, and in the browser."""
        if _in_notebook():
            from IPython.display import display

            display(self)
            return
        print(self)
        with tempfile.NamedTemporaryFile(
            "w", suffix=".html", prefix="vrga-", encoding="utf-8", errors="replace", delete=False
        ) as file:  # the browser reads it later
            file.write(f"<!doctype html><meta charset=utf-8>{self._repr_html_()}")
        opened = webbrowser.open(Path(file.name).as_uri())
        print(f"{'shown' if opened else 'no browser was found; the picture is'}: {file.name}")

    def __str__(self) -> str:
        lines = [self.question]
        lines += [] if self.base is None else [f"  without VRGA: {self.base}"]
        return "\n".join([*lines, f"  with VRGA: {self.text}", f"  {self._looked}; {self.steps}"])

    def _repr_html_(self) -> str:
        """Image and region, and both answers with the words marked that differ."""
        from vrga.answers.page import drawn

        return drawn(self)


def _in_notebook() -> bool:
    """Whether this process draws what a cell returns."""
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell" or "google.colab" in sys.modules
