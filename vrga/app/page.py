"""The page: what stands where, and what happens when it is touched."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from vrga.app import messages
from vrga.app.brush import read_painted
from vrga.app.examples import Example
from vrga.app.loaded_model import DEFAULT, MOST_PICTURES, Answered, LoadedModel, Question
from vrga.app.visitors import Visits
from vrga.app.word_queue import Stopped
from vrga.presets import PRESETS
from vrga.report.page import write_page

HERE = Path(__file__).parent
SCRIPTS = ("viewer", "brush", "words", "hear")  # in this order
WAITING = 16  # questions in the queue
LONGEST = 4000  # characters of a question
LARGEST_GAIN = 10
CSS = """
.gradio-container { max-width: 88rem !important; margin: 0 auto; }
#vrga-head h1 { margin: 0; font-size: 1.4rem; }
#vrga-head p { margin: .2rem 0 0; }
#vrga-head, #vrga-viewer, #vrga-examples { padding: 0; }
#vrga-head > div, #vrga-viewer > div, #vrga-examples > div { padding: 0; }
#vrga-report { width: auto; align-self: flex-start; }
@media (max-width: 40rem) { .gradio-container { padding: .6rem !important; } }
"""
EXAMPLES = """<p>Examples</p><div>{{#each value}}<button type="button" data-place="{{this.place}}">
<img src="{{this.source}}" alt=""><span>{{this.question}}</span></button>{{/each}}</div>"""
CHOOSE = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (button) trigger('click', {place: Number(button.dataset.place)});
});"""
NO_REPORT = gr.update(value=None, interactive=False)
BUSY = gr.update(interactive=False), gr.update(interactive=True)  # to ask, to stop
IDLE = gr.update(interactive=True), gr.update(interactive=False)
# The brush lives in the browser: its strokes go with the question, in the place of the last input.
ASKED = "(...given) => [...given.slice(0, -1), window.vrgaAsked()]"


def build(loaded: LoadedModel, visits: Visits, examples: list[Example]) -> gr.Blocks:
    """The page of a model.

    Args:
        visits: of the folder in which the server keeps what is uploaded.
        examples: to begin with, or none.
    """
    events = Events(loaded, visits, examples)
    with gr.Blocks(title="vrga", analytics_enabled=False) as page:
        gr.HTML(_head(loaded), elem_id="vrga-head", padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                dropped = gr.File(
                    label=f"Pictures (up to {MOST_PICTURES})", file_count="multiple",
                    file_types=["image"], elem_id="vrga-drop", height=130,
                )  # fmt: skip
                chosen = _examples(examples)
                question = gr.Textbox(
                    label="Question", placeholder="What is written on the sign?", lines=2,
                    max_lines=6, max_length=LONGEST, elem_id="vrga-question",
                )  # fmt: skip
                with gr.Row():
                    go = gr.Button("Ask", variant="primary", elem_id="vrga-ask", min_width=100)
                    stop = gr.Button("Stop", elem_id="vrga-stop", interactive=False, min_width=100)
                preset, gain, closer = _settings(loaded)
            with gr.Column(scale=5, min_width=300):
                viewer = gr.HTML(
                    "", html_template="", css_template=(HERE / "viewer.css").read_text("utf-8"),
                    js_on_load=_scripts(), elem_id="vrga-viewer",
                    apply_default_css=False,
                )  # fmt: skip
                report = gr.DownloadButton(
                    "Save the report", interactive=False, elem_id="vrga-report", size="sm",
                )  # fmt: skip
        painted = gr.Textbox(visible=False)

        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        free = quiet | {"queue": False}  # do not wait for answers
        dropped.change(events.shown, dropped, [viewer, report], **free)
        preset.change(events.gain, preset, gain, **free)
        if chosen is not None:
            chosen.click(events.example, None, [dropped, question], **free)
        asked = gr.on(
            [go.click, question.submit], events.ask,
            [dropped, question, preset, gain, closer, painted], [viewer, report, go, stop],
            js=ASKED, concurrency_limit=1, trigger_mode="once", **quiet,
        )  # fmt: skip
        asked.then(events.settle, None, [report, go, stop], **free)
        asked.failure(events.refuse, None, viewer, **free)
        stop.click(events.stop, **free)
        page.unload(events.leave)
    return page.queue(max_size=WAITING)


def _settings(loaded: LoadedModel) -> tuple[gr.Dropdown, gr.Slider, gr.Checkbox]:
    """How to steer, and whether to look closer."""
    own, why = loaded.config(DEFAULT), loaded.why_no_closer_look
    with gr.Accordion("How to steer", open=True):
        preset = gr.Dropdown(
            [(f"default: {own.name}" if name == DEFAULT else name, name) for name in PRESETS],
            value=DEFAULT, label="Preset", elem_id="vrga-preset",
        )  # fmt: skip
        gain = gr.Slider(
            min(1, own.gain), max(LARGEST_GAIN, own.gain), value=own.gain, step=0.1,
            label="Gain (1 is off)", elem_id="vrga-gain", interactive=own.boosts,
        )  # fmt: skip
        closer = gr.Checkbox(
            value=loaded.name == "fine", label="Look closer", elem_id="vrga-closer",
            interactive=not why,
            info=why or "crop the original where the question looks, and ask again there",
        )  # fmt: skip
    return preset, gain, closer


def _scripts() -> str:
    """The viewer's scripts as one, the report's part first."""
    drawing = files("vrga.report").joinpath("drawing.js").read_text("utf-8")
    own = [(HERE / f"{name}.js").read_text("utf-8") for name in SCRIPTS]
    return "\n".join(['"use strict";', drawing, *own])


def _head(loaded: LoadedModel) -> str:
    where = f"<b>{loaded.name}</b>"
    if loaded.name is None:
        where = (
            "No <code>--model</code> was given: the <b>small model inside the package</b> answers. "
            "It reads coloured letters on cards like the examples, and nothing else."
        )
    elif loaded.name == "fine":
        where = (
            "The <b>small model &ldquo;fine&rdquo; inside the package</b> answers. It reads "
            "letters on coloured cards like the examples, if it looks closer; nothing else."
        )
    return f"<h1>vrga: see where it looks</h1><p>{where}</p>"


def _examples(examples: list[Example]) -> gr.HTML | None:
    """Pictures to begin with, as buttons; none where there are no examples."""
    if not examples:
        return None
    return gr.HTML(
        [{"place": place, "source": one.thumbnail, "question": one.question}
         for place, one in enumerate(examples)],
        html_template=EXAMPLES, js_on_load=CHOOSE, apply_default_css=False,
        css_template=(HERE / "examples.css").read_text("utf-8"), elem_id="vrga-examples",
    )  # fmt: skip


class Events:
    """What happens when the page is touched."""

    def __init__(self, loaded: LoadedModel, visits: Visits, examples: list[Example]):
        self.loaded, self.visits, self.examples = loaded, visits, examples
        self.found: dict[str, Answered] = {}  # by session, until its report is written

    def shown(self, files: list[str] | None, request: gr.Request) -> tuple:
        """Pictures were dropped, chosen or taken away."""
        paths = tuple(files or ())
        self.visits.keep(_session(request), paths)
        try:
            told = messages.pictures(self.loaded.pictures(paths) if paths else [])
        except (ValueError, OSError) as error:
            told = messages.failed(str(error))
        return told, NO_REPORT

    def gain(self, preset: str) -> dict:
        """The gain of a preset; one without has no slider."""
        config = self.loaded.config(preset)
        if not config.boosts:
            return gr.update(interactive=False)
        return gr.update(value=config.gain, interactive=True)

    def example(self, event: gr.EventData) -> tuple[list[str], str]:
        """An example was chosen."""
        one = self.examples[event.place]
        return [str(one.path)], one.question

    def ask(
        self, files: list[str] | None, question: str | None, preset: str, gain: float,
        closer: bool, painted: str, request: gr.Request,
    ) -> Iterator[tuple]:  # fmt: skip
        """A question was asked: words as they come, then both answers."""
        session, paths = _session(request), tuple(files or ())
        stop = self.visits.begin(session)
        try:
            masks = tuple(read_painted(painted, len(paths)))
            asked = Question(paths, question or "", preset, gain, masks, closer)
            for found in self.loaded.ask(asked, stop):
                if isinstance(found, Answered):
                    self.found[session] = found
                    yield messages.answered(found), NO_REPORT, *BUSY
                else:
                    yield messages.speaking(found), NO_REPORT, *BUSY
        except Stopped:
            yield messages.stopped(), NO_REPORT, *BUSY
        except (ValueError, OSError) as error:
            yield messages.failed(str(error)), NO_REPORT, *BUSY
        except Exception as error:  # whatever a model raises: said on the page, not lost
            logging.getLogger(__name__).exception("the model failed")
            told = f"the model failed: {type(error).__name__}: {error}"
            yield messages.failed(told), NO_REPORT, *BUSY

    def settle(self, request: gr.Request) -> tuple:
        """A question was answered, or not: its report, and the next one may be asked."""
        found = self.found.pop(_session(request), None)
        if found is None:
            return NO_REPORT, *IDLE
        return _report(found, self.visits.folder_of(_session(request))), *IDLE

    def refuse(self) -> str:
        """A question did not come so far as to be asked."""
        return messages.failed(
            f"the question was not taken: {WAITING} others wait, or a setting is out of its range "
            f"(a gain from 1 to {LARGEST_GAIN}). Ask again"
        )

    def stop(self, request: gr.Request) -> None:
        """The answer is not wanted any more."""
        self.visits.stop(_session(request))

    def leave(self, request: gr.Request) -> None:
        """The tab was closed."""
        self.visits.leave(_session(request))
        self.found.pop(_session(request), None)


def _session(request: gr.Request) -> str:
    """The tab that asks; every request of the page has one."""
    assert request.session_hash is not None
    return request.session_hash


def _report(found: Answered, folder: Path) -> dict:
    """The page of both answers, ready to be saved; none of answers without a step."""
    traces = [trace for trace in found.traces if trace.image is not None]
    if not traces:
        return NO_REPORT
    path = write_page(traces, folder / "vrga-report.html")
    return gr.update(value=str(path), interactive=True)
