"""Asking a model many questions, in batches, with the model patched or not."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor

from vrga.annotations import BatchFeature, Model
from vrga.config import VRGAConfig
from vrga.evaluation.batch import Boxes, asked_region, each_row, summary
from vrga.evaluation.failures import SAMPLE_ERRORS, out_of_memory, told_of
from vrga.evaluation.region_attention import cells_in, looks_of
from vrga.evaluation.request import Answer, Ready, Request, with_images
from vrga.hf.processors import processed
from vrga.images import bounded, read_image
from vrga.method.region import Region
from vrga.recording.trace import Trace
from vrga.steering.passes import SteeringError
from vrga.steering.patching import Patch, patch, patch_of

WINDOW = 16  # batches of requests that are read ahead, to put those of similar length together
PIXELS = 200_000_000  # of images held at a time, unless one batch alone has more


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
                groups: dict[str, list[Ready]] = {}
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

    def _window(self, requests: Iterator[Request]) -> tuple[list[Ready], list[Answer], bool]:
        """Requests read ahead, those that could not be read, and whether there may be more."""
        window, failed, pixels = [], [], 0
        for one in requests:
            try:
                ready = self._read(one)
            except Exception as error:  # whatever a damaged file makes its reader say
                failed.append(Answer(one.id, error=told_of(error)))
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

    def _read(self, request: Request) -> Ready:
        images = []

        def shown(image) -> dict:
            images.append(read_image(image))
            return {"type": "image"}

        given, question = request.chat()
        messages = with_images(given, shown)
        chat = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        question = question.strip()
        if request.box is not None and images:
            cells_in(request.box, images[0].size, (1, 1))  # refuses a box outside its image
        if not question or question not in chat:
            raise ValueError(f"the question {question!r} is not in the chat {chat!r}")
        return Ready(request, messages, chat, question, images)

    def _answer(self, batch: list[Ready], steered: Patch | None) -> Iterator[Answer]:
        """Answers of one batch, or of its halves when memory does not do."""
        try:
            inputs, too_long = self._inputs(batch)
        except SAMPLE_ERRORS as error:
            yield from self._alone(batch, told_of(error), steered)
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
            if not isinstance(error, ValueError) and not out_of_memory(error):
                raise
            found, told = None, told_of(error) if isinstance(error, ValueError) else None
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

    def _alone(self, batch: list[Ready], told: str, steered: Patch | None) -> Iterator[Answer]:
        """Each of a batch that failed by itself, to find out which of them it was."""
        if len(batch) == 1:
            yield self._failed(batch[0], told)
            return
        for one in batch:
            yield from self._answer([one], steered)

    def _inputs(self, batch: list[Ready]) -> tuple[BatchFeature, list[tuple[Ready, str]]]:
        """Model inputs of a batch, and those of its requests that exceed the context."""
        inputs = self._read_inputs(batch)
        limit = self.model.config.get_text_config().max_position_embeddings
        new = int(batch[0].request.options.get("max_new_tokens", 0))
        lengths = inputs["attention_mask"].sum(1).tolist()
        return inputs, [
            (one, f"{length} tokens and {new} new ones exceed the context of {limit}")
            for one, length in zip(batch, lengths, strict=True)
            if length + new > limit
        ]

    def _read_inputs(self, batch: list[Ready]) -> BatchFeature:
        """Model inputs of a batch."""
        images = [one.images for one in batch]
        chats = [one.chat for one in batch]
        return processed(self.model, self.processor, chats, images, self._images)

    def _failed(self, one: Ready, message: str) -> Answer:
        return Answer(one.request.id, prompt=one.chat, error=message)

    @torch.inference_mode()
    def _generate(
        self, batch: list[Ready], inputs: BatchFeature, steered: Patch | None
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
        watch: Boxes | None = None
        if steered is None:
            sequences = self.model.generate(**inputs, **options)
        else:
            steered.query = [one.question for one in batch]
            cells = Boxes(batch)
            steered.given = cells if self.given else None
            if self.ablated is not None:
                steered.ablated = partial(each_row, self.ablated, [one.request.id for one in batch])
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
                asked = asked_region(steered, place)
            if steered is not None and asked is not None and asked.grids:
                region, steps = summary(asked), steered.steps[place]
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
