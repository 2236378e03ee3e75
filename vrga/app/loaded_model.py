"""One loaded model, of which one question at a time is asked, word by word."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vrga.answers.answer import Answer
from vrga.answers.ask import ask, check_question, foreign
from vrga.answers.spoken import inputs_of
from vrga.app.brush import cells_of
from vrga.app.word_queue import Said, Stopped, Words, newest
from vrga.closer.look import look_closer
from vrga.closer.zoom import Zoom
from vrga.config import VRGAConfig, unsteered_config
from vrga.demo.fine.settings import CLOSER
from vrga.hf.checkpoints import load
from vrga.hf.chosen_config import checkpoint_of, choose
from vrga.hf.second_look import check_pictures
from vrga.images import read_image
from vrga.recording.trace import Trace
from vrga.steering.patching import patch

MOST_PICTURES = 8
MOST_PIXELS = 64_000_000  # of one picture
MOST_MAPS = 64_000_000  # bytes of a trace's maps; beyond them those of the visual heads alone
DEFAULT = "default"  # of presets: what the checkpoint brings, else the paper's


@dataclass(frozen=True)
class Question:
    """What is asked.

    Args:
        paths: image files, 1 to `MOST_PICTURES`.
        text: the question.
        preset: a name of `vrga.config.PRESETS`; gain: over its own, where it has one.
        painted: for each picture a mask, bool [h, w] on any raster, or None.
        closer: look closer where that is worth it, instead of steering alone.
    """

    paths: tuple[str, ...]
    text: str
    preset: str = DEFAULT
    gain: float | None = None
    painted: tuple[np.ndarray | None, ...] = ()
    closer: bool = False

    @property
    def is_painted(self) -> bool:
        """Whether there is a region to steer to."""
        return any(mask is not None for mask in self.painted)


@dataclass(frozen=True)
class Answered:
    """Both answers.

    Args:
        texts: without and with VRGA; traces: of both.
        told: what was done, in words; warning: what to know of it, or "".
        painted: whether the region is the painted one; closer: whether it was looked closer.
        seconds: it took.
    """

    texts: tuple[str, str]
    traces: tuple[Trace, Trace]
    told: str
    warning: str
    painted: bool
    closer: bool
    seconds: float


class LoadedModel:
    """A model, and what can be asked of it.

    Args:
        name: as of `vrga.load`; None is the small model inside this package.
        max_new_tokens: longest answer.
        dtype, device_map: as of `vrga.load`.

    Raises:
        FileNotFoundError, OSError, ValueError: as of `vrga.load`.
    """

    def __init__(
        self,
        name: str | None,
        *,
        max_new_tokens: int = 256,
        dtype: str = "auto",
        device_map: str | None = None,
    ):
        self.name, self.max_new_tokens = name, max_new_tokens
        self.model, self.processor = load(name, dtype=dtype, device_map=device_map)
        self._lock = threading.Lock()
        if self.is_small:
            torch.set_num_threads(1)  # so small a model is fastest on one thread

    @property
    def is_small(self) -> bool:
        """Whether it is one of the models inside this package."""
        return self.name in (None, "fine")

    @property
    def why_no_closer_look(self) -> str:
        """Why this model cannot look closer; "" where it can."""
        try:
            check_pictures(self.model, self.processor)
        except ValueError as error:
            return str(error)
        return ""

    def config(self, preset: str, gain: float | None = None) -> VRGAConfig:
        """The configuration of a preset, with a gain over its own where it has one.

        Raises:
            ValueError: an unknown preset, or a gain out of range.
        """
        found = choose(preset, {}, *checkpoint_of(self.model)).config
        return found if gain is None or not found.boosts else replace(found, gain=gain)

    def pictures(self, paths: tuple[str, ...]) -> list[Image.Image]:
        """The pictures of a question.

        Raises:
            ValueError: none, too many, or one of too many pixels; OSError: one that is none.
        """
        if not paths:
            raise ValueError("there is no picture: drop one, or choose an example")
        if len(paths) > MOST_PICTURES:
            raise ValueError(f"{len(paths)} pictures: at most {MOST_PICTURES} are taken")
        for path in paths:
            _check_size(path)
        return [read_image(path) for path in paths]

    def ask(self, question: Question, stop: threading.Event) -> Iterator[Said | Answered]:
        """Ask, and tell how far the answers have come until both are there.

        Raises:
            Stopped: `stop` was set, by whoever does not want the answer any more.
            ValueError, OSError: what cannot be asked, in words; and whatever the model raises.
        """
        told: queue.SimpleQueue = queue.SimpleQueue()

        def run() -> None:
            try:
                with self._lock:
                    told.put(self._answered(question, stop, told.put))
            except BaseException as error:  # is raised by whoever reads
                told.put(error)

        thread = threading.Thread(target=run, name="vrga-answer", daemon=True)
        thread.start()
        try:
            while True:
                item = newest(told)
                if isinstance(item, BaseException):
                    raise item
                assert isinstance(item, Said | Answered)
                yield item
                if isinstance(item, Answered):
                    return
        finally:
            stop.set()
            thread.join()

    def _answered(
        self, question: Question, stop: threading.Event, say: Callable[[Said], object]
    ) -> Answered:
        """Both answers; `say` is told of each word."""
        started = time.perf_counter()
        if stop.is_set():
            raise Stopped
        images = self.pictures(question.paths)
        check_question(question.text)
        words = Words(self.processor.tokenizer.decode, stop, say)
        both = self._closer if question.closer else self._steered
        texts, traces, told, zoomed = both(question, images, words)
        seconds = time.perf_counter() - started
        warning = foreign(self.model, images) or ""
        return Answered(texts, traces, told, warning, question.is_painted, zoomed, seconds)

    def _steered(self, question: Question, images: list[Image.Image], words: Words) -> tuple:
        """Without and with VRGA: texts, traces, what was done, and whether it was looked closer."""
        config = self.config(question.preset, question.gain)
        with patch(self.model, config, tokenizer=self.processor.tokenizer) as steered:
            if question.is_painted:
                steered.given = lambda grids: [cells_of(question.painted, row) for row in grids]
            found = ask(
                self.model, self.processor, images, question.text,
                max_new_tokens=self.max_new_tokens, maps=self._maps(images, question.text),
                streamers={run: words.of(run) for run in ("base", "steered")},
            )  # fmt: skip
        told = _told(found, question.is_painted)
        return (found.base, found.text), (found.base_trace, found.trace), told, False

    def _closer(self, question: Question, images: list[Image.Image], words: Words) -> tuple:
        """Without VRGA and with a closer look, likewise."""
        if question.is_painted:
            raise ValueError(
                "a closer look finds its own place: clear the painted region, or switch the "
                "closer look off"
            )
        config = self.config(question.preset, question.gain)
        asked = self.model, self.processor, images, question.text
        base = ask(
            *asked, unsteered_config(config), base=False, max_new_tokens=self.max_new_tokens,
            maps=self._maps(images, question.text), streamers={"steered": words.of("base")},
        )  # fmt: skip
        found = look_closer(
            *asked, config, CLOSER if self.name == "fine" else Zoom(), record=True,
            max_new_tokens=self.max_new_tokens, streamer=words.of("steered"),
        )  # fmt: skip
        told = "Looked closer" if found.zoomed else "Not looked closer"
        told = f"{told}: {found.decision.reason}"
        return (base.text, found.text), (base.trace, found.trace), told, found.zoomed

    def _maps(self, images: list[Image.Image], text: str) -> str:
        """Heads whose maps are kept: all where there is room for them, else the visual ones."""
        tokens = inputs_of(self.model, self.processor, images, text)["input_ids"].shape[1]
        sizes = self.model.config.get_text_config()
        heads = sizes.num_hidden_layers * sizes.num_attention_heads
        return "all" if 2 * heads * tokens * self.max_new_tokens <= MOST_MAPS else "visual"


def _check_size(path: str) -> None:
    """Raise ValueError for a picture that would fill the memory, by its first bytes alone."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Exception:  # read_image tells what is wrong with it
        return
    if width * height > MOST_PIXELS:
        raise ValueError(
            f"{Path(path).name} has {width} x {height} pixels: at most "
            f"{MOST_PIXELS // 1_000_000} million are taken; make it smaller"
        )


def _told(found: Answer, painted: bool) -> str:
    region = found.region
    where = "the painted region" if painted else "the region it found"
    return (
        f"Steered to {where}, {int(region.mask.sum())} of {int(region.image.sum())} image tokens: "
        f"{found.config.name}; {found.steps}"
    )
