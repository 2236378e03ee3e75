"""look_closer: find where the question looks, crop the original there, and ask again."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vrga.closer.zoom import Box, Crop, Decision, Zoom, crops_around, decide, find_spots
from vrga.config import VRGAConfig
from vrga.foreign import Cache, Model
from vrga.hf.cache import cache_in
from vrga.hf.families import unwrapped
from vrga.hf.looking import (
    answer_on,
    as_seen,
    chat_inputs,
    check_pictures,
    common_start,
    cut,
    plain_cache,
    seen_sizes,
    token_side,
)
from vrga.images import read_image
from vrga.method.prompt import Grid
from vrga.method.region import Region
from vrga.recording.trace import Trace
from vrga.steering.patching import Patch, patch

VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".gif")


@dataclass(frozen=True)
class Cost:
    """What an answer took.

    Args:
        seen: visual tokens at the first look; crops: of the crops, 0 without.
        prompt: tokens of the first prompt; second: of the second one that were computed, 0 without.
        reused: tokens of the second prompt that the first look's cache held.
        answer: tokens generated, the first look's one included.
        first, total: seconds until the decision, and in all.
    """

    seen: int
    crops: int
    prompt: int
    second: int
    reused: int
    answer: int
    first: float
    total: float


@dataclass(frozen=True)
class Closer:
    """An answer, and the closer look that it took, or why it took none.

    Args:
        text: the answer.
        decision: whether there was a closer look, why, and the crops.
        region: what the question looks at in the pictures; None where no look was needed to tell
            that there is nothing to gain.
        second: what it looks at in pictures and crops; None without a closer look.
        images: the pictures as the model saw them, then the crops, in the order of the prompt.
        cost: in tokens and seconds.
        zoom: how it was decided.
        trace: with ``record=True``, of the answer; its images are `images`.
    """

    text: str
    decision: Decision
    region: Region | None
    second: Region | None
    images: list[Image.Image]
    cost: Cost
    zoom: Zoom
    trace: Trace | None = None

    @property
    def zoomed(self) -> bool:
        """Whether there was a closer look."""
        return self.decision.zooms

    @property
    def crops(self) -> tuple[Crop, ...]:
        """What was looked at; empty without a closer look."""
        return self.decision.crops if self.zoomed else ()

    @property
    def boxes(self) -> list[Box]:
        """The crops' boxes in pixels of their originals."""
        return [crop.box for crop in self.crops]

    def numbers(self) -> dict[str, object]:
        """Decision, crops, cost and zoom as plain numbers and words, for a file."""
        decision = asdict(self.decision)
        return {
            "text": self.text,
            "decision": decision,
            "cost": asdict(self.cost),
            "zoom": self.zoom.settings(),
        }


def look_closer(
    model: Model,
    processor,
    images: Image.Image | str | Path | Sequence[Image.Image | str | Path],
    question: str,
    config: VRGAConfig | None = None,
    zoom: Zoom | None = None,
    *,
    max_new_tokens: int = 256,
    record: bool = False,
    streamer: object | None = None,
) -> Closer:
    """Answer a question about pictures; where its region is small, look at the originals there.

    The first look is an ordinary prompt: the pictures as the processor shrinks them, and the
    question. Its prefill tells the region. Where that is small, and the original holds more than
    was seen, the same question is asked about the pictures and crops of the originals; else the
    first answer goes on, as if nothing had been asked.

    Args:
        model, processor: of a Qwen-VL family, not patched.
        images: PIL images or image files, one or several.
        question: asked of both looks, as it stands.
        config: how the region is found and steered to; None is `VRGAConfig.paper()`.
        zoom: when and where to look closer; None is `Zoom()`.
        max_new_tokens: longest answer; it is greedy.
        record: measure the answer, see `Closer.trace`; the first look's cache is not reused then.
        streamer: what `generate` takes as its streamer; it is told of both looks, each from its
            prompt to its end. It needs `record`.

    Raises:
        ValueError: a video, no image, an empty question, a model whose processor does more than
            shrink pictures, or a model that is patched already.
        OSError: an image file that cannot be read.

    Warns:
        UserWarning: pictures that the model sees as they are, so that there is nothing to gain.
    """
    config = VRGAConfig.paper() if config is None else config
    zoom = Zoom() if zoom is None else zoom
    if not isinstance(zoom, Zoom):
        raise ValueError(f"zoom={zoom!r} is not a vrga.Zoom")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"question={question!r}: give what to ask, as text")
    if (
        isinstance(max_new_tokens, bool)
        or not isinstance(max_new_tokens, int)
        or max_new_tokens < 1
    ):
        raise ValueError(f"max_new_tokens={max_new_tokens!r} is out of range: an integer from 1")
    if streamer is not None and not record:
        raise ValueError("a streamer follows generate(), which record=True asks with: set it")
    model = unwrapped(model)
    check_pictures(model, processor)
    look = _Look(
        model, processor, _pictures(images), question, zoom, max_new_tokens, record, streamer
    )
    with patch(model, config, tokenizer=processor.tokenizer) as steered, torch.inference_mode():
        return look.answer(steered)


def _pictures(images) -> list[Image.Image]:
    """The images as RGB."""
    given = images if isinstance(images, (list, tuple)) else [images]
    found = []
    for one in given:
        if isinstance(one, (str, Path)) and Path(one).suffix.lower() in VIDEOS:
            raise ValueError(f"{one} is a video, and a closer look is taken at pictures alone")
        if isinstance(one, (str, Path)):
            found.append(read_image(Path(one)))
        elif isinstance(one, Image.Image):
            found.append(one.convert("RGB"))
        else:
            kind = "a video, or a list of frames" if _is_video(one) else f"a {type(one).__name__}"
            raise ValueError(
                f"images holds {kind}: give PIL images or image files; a closer look is taken at "
                "pictures alone"
            )
    if not found:
        raise ValueError("images is empty: give one PIL image or image file at least")
    return found


def _is_video(one: object) -> bool:
    return isinstance(one, (list, tuple)) or getattr(one, "ndim", 0) >= 4


def prompt_images(seen: list, crops: list, zoom: Zoom) -> list:
    """Pictures and crops in the order of the second prompt."""
    return crops + seen if zoom.order == "crops" else seen + crops


def steered_cells(grids: Sequence[Grid], region: Region, crops: int, zoom: Zoom) -> list[Tensor]:
    """What ``steer="place"`` steers to: the region in the pictures and all of each crop.

    Args:
        grids: of the second prompt's images; region: of the first look; crops: how many.
    """
    whole = [torch.ones(grid.h, grid.w, dtype=torch.bool) for grid in grids]
    first = crops if zoom.order == "crops" else 0
    for place, grid in enumerate(region.grids):
        whole[first + place] = region.mask[grid.index].view(grid.h, grid.w)
    return whole


class _Look:
    """One question's two looks."""

    def __init__(
        self, model, processor, originals, question, zoom, max_new_tokens, record, streamer
    ):
        self.model, self.processor, self.originals = model, processor, originals
        self.question, self.zoom, self.record = question, zoom, record
        self.max_new_tokens, self.streamer = max_new_tokens, streamer
        self.side = token_side(processor)
        self.sizes = [image.size for image in originals]

    def answer(self, steered: Patch) -> Closer:
        """Both looks, or the first alone."""
        started = time.perf_counter()
        inputs = self._to_device(
            chat_inputs(self.processor, self.originals, self.question, self.zoom.overview_pixels)
        )
        seen = seen_sizes(self.processor, inputs)
        told: list[Decision] = []
        more = any(
            width * height < size[0] * size[1]
            for (width, height), size in zip(seen, self.sizes, strict=True)
        )
        if not more:
            why = "nothing to gain: the model sees " + ", ".join(
                f"{w} x {h}" for w, h in self.sizes
            )
            warnings.warn(
                f"{why} pixels as they are; look_closer is for pictures of more pixels than the "
                "model is given",
                stacklevel=3,
            )
            told.append(Decision(False, f"{why} pixels as they are", (), 0.0, 1.0))

        first: list[float] = []

        def decided(ids: Tensor, scores: object, **kwargs) -> Tensor:
            """A stopping criterion, after the first token: stop for a closer look?"""
            if not first:
                first.append(time.perf_counter() - started)
            if not told:
                spots = find_spots(steered.region[0], self.zoom)
                crops = crops_around(spots, self.sizes, seen, self.zoom, self.side)
                told.append(decide(crops, self.sizes, self.zoom))
            stop = told[0].zooms and ids.shape[1] == length + 1
            return torch.full((len(ids),), stop, dtype=torch.bool, device=ids.device)

        length = inputs["input_ids"].shape[1]
        output, trace = self._generate(steered, inputs, decided)
        new = output.sequences[:, length:]
        decision, region = told[0], steered.region[0]
        shown = [
            as_seen(self.processor, image, size)
            for image, size in zip(self.originals, seen, strict=True)
        ]
        tokens = [w * h // self.side**2 for w, h in seen]
        if not decision.zooms:
            if trace is not None:
                trace.attach(images=[shown])
            cost = Cost(
                sum(tokens), 0, length, 0, 0, new.shape[1], first[0],
                time.perf_counter() - started,
            )  # fmt: skip
            return Closer(self._text(new), decision, region, None, shown, cost, self.zoom, trace)
        cropped = [
            as_seen(self.processor, self.originals[c.image].crop(c.box), c.size)
            for c in decision.crops
        ]
        pictures = prompt_images(shown, cropped, self.zoom)
        # Already of the size that they are seen in, so that nothing is shrunk again.
        most = max(image.width * image.height for image in pictures)
        second = self._to_device(chat_inputs(self.processor, pictures, self.question, most))
        if self.zoom.steer == "place":
            given = len(cropped)
            steered.given = lambda grids: [steered_cells(grids[0], region, given, self.zoom)]
        answered, reused, trace = self._second(steered, inputs, second, cache_in(output))
        if trace is not None:
            trace.attach(images=[pictures])
        cost = Cost(
            seen=sum(tokens),
            crops=sum(c.size[0] * c.size[1] for c in decision.crops) // self.side**2,
            prompt=length,
            second=second["input_ids"].shape[1] - reused,
            reused=reused,
            answer=1 + answered.shape[1],
            first=first[0],
            total=time.perf_counter() - started,
        )
        return Closer(
            self._text(answered), decision, region, steered.region[0], pictures, cost, self.zoom,
            trace,
        )  # fmt: skip

    def _second(
        self, steered: Patch, first: dict, second: dict, cache: Cache
    ) -> tuple[Tensor, int, Trace | None]:
        """The second answer's tokens [1, T], how many of its prompt's were reused, its trace."""
        start = common_start(first["input_ids"], second["input_ids"])
        if self.zoom.reuse and not self.record and plain_cache(cache) and start:
            cut(cache, start)
            return answer_on(self.model, second, cache, start, self.max_new_tokens), start, None
        output, trace = self._generate(steered, second)
        return output.sequences[:, second["input_ids"].shape[1] :], 0, trace

    def _generate(self, steered: Patch, inputs: dict, criterion=None):
        """Greedy generate(), and its trace or None."""
        options = {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        options["return_dict_in_generate"] = True
        if criterion is not None:
            options["stopping_criteria"] = [criterion]
        if self.streamer is not None:
            options["streamer"] = self.streamer
        if not self.record:
            return self.model.generate(**inputs, **options), None
        with steered.record(maps="visual", layer_maps=True) as trace:
            output = self.model.generate(**inputs, **options)
        return output, trace

    def _text(self, tokens: Tensor) -> str:
        return self.processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()

    def _to_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.model.device) for name, value in inputs.items()}
