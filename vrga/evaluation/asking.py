"""Asking a model many questions, in batches, with the model patched or not."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vrga.config import VRGAConfig
from vrga.evaluation.looking import cells_in, looks_of
from vrga.foreign import BatchFeature, Model
from vrga.hf.families import FAMILIES
from vrga.images import bounded, read_image
from vrga.method.prompt import Grid
from vrga.method.region import Region
from vrga.recording.trace import Trace
from vrga.steering.passes import SteeringError
from vrga.steering.patching import Patch, patch, patch_of

WINDOW = 16  # batches of requests that are read ahead, to put those of similar length together
PIXELS = 200_000_000  # of images held at a time, unless one batch alone has more
# What may go wrong with one sample and leaves the others alone.
SAMPLE_ERRORS = (OSError, ValueError, TypeError, KeyError, IndexError)


@dataclass(frozen=True)
class Request:
    """One question to a model.

    Args:
        id: unique within a run.
        chat: makes, when its turn comes, the messages and the question: a text in them at whose
            end the question ends, before any instructions. Image parts are {"type": "image",
            "image": a PIL image or a path}. An error it raises becomes the answer's.
        box: the region that matters, in pixels of the first image: left, top, right, bottom
            (exclusive); None where it is not known.
        options: of `generate`, such as max_new_tokens; "until" (a list of str) cuts the text;
            num_return_sequences, with do_sample, makes as many answers, each with this id.
    """

    id: str
    chat: Callable[[], tuple[list[dict], str]]
    box: tuple[float, float, float, float] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def request(
    id: str,
    text: str,
    images: Iterable[Image.Image | str | Path] = (),
    question: str | None = None,
    **more,
) -> Request:
    """A request of one user turn: the images, then a text.

    Args:
        question: the part of the text that is the question; None is all of it.
        more: box and options of the `Request`.
    """
    parts = [{"type": "image", "image": image} for image in images]
    chat = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
    return Request(id, lambda: (chat, text if question is None else question), **more)


@dataclass(frozen=True)
class Answer:
    """What a model said to a request, or why it said nothing.

    Args:
        prompt: the chat as text, one placeholder for each image.
        text: what was generated, without special tokens; None with an error.
        tokens: generated, the end token included.
        seconds: its share of its batch's wall time.
        steered: whether some step of it was steered; an answer of one token has none.
        steps: its steps, those steered and those left alone by reason, see `Patch.steps`; None
            where the model was not patched or there is no image.
        region: what was found for its question: image tokens, those of T, visual heads and the
            query's position; None where the model was not patched or there is no image.
        looks: where the heads looked while it spoke, if it was measured: a `Looks`, or what the
            asker's `looks` makes instead.
        found: the whole region, if the asker keeps it.
        error: what went wrong, or None.
    """

    id: str
    prompt: str = ""
    text: str | None = None
    tokens: int = 0
    seconds: float = 0.0
    steered: bool = False
    region: dict[str, int] | None = None
    looks: Any | None = None
    error: str | None = None
    found: Region | None = None
    steps: dict[str, object] | None = None

    def kept(self) -> dict[str, object]:
        """What a sample keeps of an answer, beside its arm, its question and its score."""
        return {
            "key": self.id,
            "text": self.text,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 4),
            "steered": self.steered,
            "steps": self.steps,
            "region": self.region,
            "error": self.error,
        }


@dataclass
class _Ready:
    """A request with its chat and images read."""

    request: Request
    chat: str
    question: str
    images: list[Image.Image]

    @property
    def length(self) -> int:
        """An estimate that sorts requests by the tokens of their prompts."""
        return sum(image.width * image.height for image in self.images) // 784 + len(self.chat) // 4


class Asker:
    """Answers requests with one model and one way of steering.

    Args:
        model: of a supported family.
        processor: its processor.
        config: how to steer; None leaves the model unpatched.
        batch: rows per call of `generate`; halved for good when memory runs out.
        measure: record where the heads look (`Answer.looks`). The model is patched for this also
            without a config, with gain 1, which changes no output.
        given: steer to the requests' boxes in place of the regions found: the upper bound of what
            a better localisation could do.
        pixels: (fewest, most) pixels that images are resized to; None is the processor's own.
        seed: of sampling, if a request asks for any.
        looks: makes `Answer.looks` of a trace; arguments as of `looks_of`, which it is by default.
        keep: keep the whole region of each answer (`Answer.found`), with H_v and all heads'
            statistics: [L, H] each.
        ablated: (request's id, its region) -> heads that lose the image, bool [L, H]; with
            `VRGAConfig.ablation("given")`.
    """

    def __init__(
        self,
        model: Model,
        processor,
        config: VRGAConfig | None,
        *,
        batch: int = 8,
        measure: bool = False,
        given: bool = False,
        pixels: tuple[int | None, int | None] = (None, None),
        seed: int = 0,
        looks: Callable[..., object] = looks_of,
        keep: bool = False,
        ablated: Callable[[str, Region], Tensor] | None = None,
    ):
        if given and config is None:
            raise ValueError("given=True steers to the boxes: it needs a config")
        if batch < 1:
            raise ValueError(f"batch={batch}; at least 1")
        self.model, self.processor, self.config = model, processor, config
        self.batch, self.measure, self.given, self.seed = batch, measure, given, seed
        self.looks, self.keep, self.ablated = looks, keep, ablated
        self._images = bounded(processor.image_processor, pixels)
        processor.tokenizer.padding_side = "left"

    def ask(self, requests: Iterable[Request]) -> Generator[Answer]:
        """Answer every request; those of a batch come together, in no fixed order.

        A request that cannot be read, does not fit into the model's context, or exhausts the
        memory alone is answered with an error, and the others go on.
        """
        requests = iter(requests)
        with self._patched() as steered:
            while True:
                window, failed, more = self._window(requests)
                yield from failed
                groups: dict[str, list[_Ready]] = {}
                for ready in window:
                    options = json.dumps(dict(ready.request.options), sort_keys=True, default=str)
                    groups.setdefault(options, []).append(ready)
                for group in groups.values():
                    group.sort(key=lambda ready: ready.length)
                    while group:
                        # What is sampled must not depend on its neighbours.
                        size = 1 if group[0].request.options.get("do_sample") else self.batch
                        chosen, group = group[:size], group[size:]
                        yield from self._answer(chosen, steered)
                if not more:
                    return

    def _window(self, requests: Iterator[Request]) -> tuple[list[_Ready], list[Answer], bool]:
        """Requests read ahead, those that could not be read, and whether there may be more."""
        window, failed, pixels = [], [], 0
        for one in requests:
            try:
                ready = self._read(one)
            except Exception as error:  # whatever a damaged file makes its reader say
                failed.append(Answer(one.id, error=_told(error)))
            else:
                window.append(ready)
                pixels += sum(image.width * image.height for image in ready.images)
            count = len(window) + len(failed)
            if count >= WINDOW * self.batch or (pixels > PIXELS and len(window) >= self.batch):
                return window, failed, True
        return window, failed, False

    def _patched(self):
        if patch_of(self.model) is not None:
            raise ValueError(
                "the model is patched already, and an arm must know what it measures: call "
                "vrga.unpatch(model) first"
            )
        if self.config is None and not (self.measure or self.keep):
            return contextlib.nullcontext()
        config = VRGAConfig.published(gain=1.0) if self.config is None else self.config
        return patch(self.model, config, tokenizer=self.processor.tokenizer)

    def _read(self, request: Request) -> _Ready:
        messages, images = [], []
        given, question = request.chat()
        for message in given:
            content = message["content"]
            if not isinstance(content, str):
                parts = []
                for part in content:
                    if part["type"] not in ("image", "text"):
                        raise ValueError(f"a {part['type']} in the chat; images and text are read")
                    if part["type"] == "image":
                        images.append(read_image(part["image"]))
                        part = {"type": "image"}
                    parts.append(part)
                content = parts
            messages.append({"role": message["role"], "content": content})
        chat = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        question = question.strip()
        if request.box is not None and images:
            cells_in(request.box, images[0].size, (1, 1))  # refuses a box outside its image
        if not question or question not in chat:
            raise ValueError(f"the question {question!r} is not in the chat {chat!r}")
        return _Ready(request, chat, question, images)

    def _answer(self, batch: list[_Ready], steered: Patch | None) -> Iterator[Answer]:
        """Answers of one batch, or of its halves when memory does not do."""
        try:
            inputs, too_long = self._inputs(batch)
        except SAMPLE_ERRORS as error:
            yield from self._alone(batch, _told(error), steered)
            return
        if too_long:
            for one, message in too_long:
                yield self._failed(one, message)
            failed = {id(one) for one, _ in too_long}
            rest = [one for one in batch if id(one) not in failed]
            if rest:
                yield from self._answer(rest, steered)
            return
        told = None
        try:
            found = self._generate(batch, inputs, steered)
        except SteeringError:
            raise  # of the installation, not of a sample: figures from here on would be wrong
        except (RuntimeError, MemoryError, ValueError) as error:
            if not isinstance(error, ValueError) and not _out_of_memory(error):
                raise
            found, told = None, _told(error) if isinstance(error, ValueError) else None
        if found is not None:
            yield from found
            return
        if told is not None:
            yield from self._alone(batch, told, steered)
            return
        # Outside the except clause, whose traceback holds the tensors that were too many.
        del inputs
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch) == 1:
            yield self._failed(batch[0], "out of memory with this sample alone")
            return
        half = (len(batch) + 1) // 2
        self.batch = min(self.batch, half)
        yield from self._answer(batch[:half], steered)
        yield from self._answer(batch[half:], steered)

    def _alone(self, batch: list[_Ready], told: str, steered: Patch | None) -> Iterator[Answer]:
        """Each of a batch that failed by itself, to find out which of them it was."""
        if len(batch) == 1:
            yield self._failed(batch[0], told)
            return
        for one in batch:
            yield from self._answer([one], steered)

    def _inputs(self, batch: list[_Ready]) -> tuple[BatchFeature, list[tuple[_Ready, str]]]:
        """Model inputs of a batch, and those of its requests that exceed the context."""
        kind = self.model.config.model_type
        images: list = [one.images for one in batch]
        if kind in FAMILIES and FAMILIES[kind].processor is not None:
            images = [image for row in images for image in row]  # Qwen's take one flat list
        inputs = self.processor(
            text=[one.chat for one in batch],
            images=images if any(images) else None,
            padding=True,
            return_tensors="pt",
            **({"images_kwargs": self._images} if self._images and any(images) else {}),
        )
        limit = self.model.config.get_text_config().max_position_embeddings
        new = int(batch[0].request.options.get("max_new_tokens", 0))
        lengths = inputs["attention_mask"].sum(1).tolist()
        return inputs, [
            (one, f"{length} tokens and {new} new ones exceed the context of {limit}")
            for one, length in zip(batch, lengths, strict=True)
            if length + new > limit
        ]

    def _failed(self, one: _Ready, message: str) -> Answer:
        return Answer(one.request.id, prompt=one.chat, error=message)

    @torch.inference_mode()
    def _generate(
        self, batch: list[_Ready], inputs: BatchFeature, steered: Patch | None
    ) -> list[Answer]:
        options = dict(batch[0].request.options)
        until = options.pop("until", None) or []
        options.setdefault("do_sample", False)
        if options["do_sample"]:
            name = f"{self.seed}/{batch[0].request.id}".encode()
            torch.manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:6], "big"))
        inputs = inputs.to(self.model.device)
        started = time.perf_counter()
        trace: Trace | None = None
        watch: _Boxes | None = None
        if steered is None:
            sequences = self.model.generate(**inputs, **options)
        else:
            steered.query = [one.question for one in batch]
            cells = _Boxes(batch)
            steered.given = cells if self.given else None
            if self.ablated is not None:
                steered.ablated = partial(_each, self.ablated, [one.request.id for one in batch])
            if not self.measure:
                sequences = self.model.generate(**inputs, **options)
            else:
                watch = cells if any(one.request.box for one in batch) else None
                with steered.record(watch=watch) as trace:
                    sequences = self.model.generate(**inputs, **options)
        new = sequences[:, inputs["input_ids"].shape[1] :].cpu()
        lengths = self._lengths(new)
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        seconds = (time.perf_counter() - started) / len(batch)
        answers, each = [], len(texts) // len(batch)
        asked_of = [one for one in batch for _ in range(each)]
        for row, (one, text, length) in enumerate(zip(asked_of, texts, lengths, strict=True)):
            for stop in until:
                text = text.split(stop)[0] if stop else text
            asked = region = looks = steps = None
            if steered is not None:
                place = row * (len(steered.region) // len(asked_of))  # beams
                asked = _asked(steered, place)
            if steered is not None and asked is not None and asked.grids:
                region, steps = _summary(asked), steered.steps[place]
                if trace is not None and trace.image is not None:
                    # The last token is not a query; in a batch others go on after it.
                    spoken = min(length - 1, len(trace.image))
                    truth = None if watch is None else watch.cells[place]
                    looks = self.looks(trace, place, spoken, asked, truth)
            answers.append(
                Answer(
                    one.request.id, one.chat, text.strip(), length, seconds,
                    steps is not None and steps.steered > 0, region, looks,
                    found=asked if self.keep else None,
                    steps=None if steps is None else asdict(steps),
                )
            )  # fmt: skip
        return answers

    def _lengths(self, new: Tensor) -> list[int]:
        """Generated tokens of each row, up to and with its first end token if there is one."""
        ends = self.model.generation_config.eos_token_id
        if ends is None:  # nothing ends an answer but its greatest length
            return [new.shape[1]] * len(new)
        ends = torch.as_tensor(ends).flatten().cpu()
        ended = torch.isin(new, ends).cumsum(1)
        return ((ended - torch.isin(new, ends).int()) == 0).sum(1).tolist()


class _Boxes:
    """The cells that a batch's boxes meet, once the grids of its images are known."""

    def __init__(self, batch: list[_Ready]):
        self.batch = batch
        self.cells: list[list[Tensor]] = []

    def __call__(self, grids: list[list[Grid]]) -> list[list[Tensor]]:
        self.cells = []
        times = len(grids) // len(self.batch)  # beams
        requests = [one for one in self.batch for _ in range(times)]
        for one, row in zip(requests, grids, strict=True):
            cells = [torch.zeros(grid.h, grid.w, dtype=torch.bool) for grid in row]
            if one.request.box is not None and row:
                cells[0] = cells_in(one.request.box, one.images[0].size, (row[0].h, row[0].w))
            self.cells.append(cells)
        return self.cells


def _each(choose: Callable[[str, Region], Tensor], ids: list[str], regions: list[Region]) -> Tensor:
    """What is chosen for each row of a batch, which `generate` may repeat."""
    times = len(regions) // len(ids)
    chosen = [
        choose(ids[i // times], region) if region.grids else region.visual
        for i, region in enumerate(regions)
    ]
    return torch.stack(chosen)


def _asked(steered: Patch, row: int) -> Region:
    """The region that a row's question looks at, also where a <back> has found another since."""
    before = [episode.before for episode in steered.episodes if episode.row == row]
    return before[0] if before else steered.region[row]


def _summary(region: Region) -> dict[str, int]:
    return {
        "image_tokens": int(region.image.sum()),
        "region_tokens": int(region.mask.sum()),
        "visual_heads": int(region.visual.sum()),
        "query": region.query,
    }


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; on a CPU torch raises a plain RuntimeError."""
    told = str(error)
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "out of memory" in told
        or "can't allocate memory" in told
        or "CUBLAS_STATUS_ALLOC_FAILED" in told
    )
