"""ask: one question about one or several images, answered without and with VRGA, in one call."""

from __future__ import annotations

import sys
import tempfile
import warnings
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from vrga.config import VRGAConfig
from vrga.foreign import Model, Processor, Tokenizer
from vrga.hf.brought import checkpoint_of, choose
from vrga.hf.families import FAMILIES, unwrapped
from vrga.hf.files import embedded
from vrga.hf.pipelines import parts_of
from vrga.images import bounded, read_image
from vrga.method.region import Region
from vrga.recording.choices import Heads
from vrga.recording.trace import Trace
from vrga.steering.patching import Patch, patch, patch_of
from vrga.steering.steps import Steps

if TYPE_CHECKING:
    from vrga.hf.pipelines import Pipeline

Picture = str | Path | bytes | Mapping | Image.Image


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
        base = [] if self.base is None else [f"base {_short(self.base)}"]
        return f"Answer({', '.join([_short(self.text), *base, self._looked, str(self.steps)])})"

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
        from vrga.report import render

        path = Path(path)
        traces = [self.trace] if self.base_trace is None else [self.base_trace, self.trace]
        text = render(traces, megabytes=megabytes)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8", "replace"))  # half a surrogate pair is no UTF-8
        return path

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


def ask(
    model: Model | Pipeline,
    processor: Processor | None,
    images: Picture | Sequence[Picture],
    question: str,
    config: VRGAConfig | str | None = None,
    *,
    base: bool = True,
    max_new_tokens: int = 256,
    maps: Heads = "visual",
    streamers: Mapping[str, object] | None = None,
) -> Answer:
    """Ask a question about images, greedily, with VRGA and for comparison without it.

    The model is afterwards as it was. One that is patched is asked through its own patch: its
    query, `given`, `ablated` and implementation hold, and its config unless one is given here.

    Args:
        model: a loaded model of a supported family, or a pipeline of transformers.
        processor: its processor; None takes that of a pipeline.
        images: one or several, each a path or an image of Pillow's.
        question: what to ask.
        config: how to steer, as of `vrga.patch`: a `VRGAConfig`, a preset's name, or None.
        base: answer without VRGA, too, which takes about as long again.
        max_new_tokens: longest answer, in tokens.
        maps: heads whose maps the traces keep, as of `Patch.record`.
        streamers: what `generate` takes as its streamer, of the answers "base" and "steered".

    Returns:
        The answer, with its region, steps and trace.

    Raises:
        OSError: an image that cannot be read.
        ValueError: no image, an empty question, streamers of other answers, a processor without a
            chat template, a patch that is switched off, or as of `vrga.patch`.
        RuntimeError: the model's patch records already.
    """
    model, own, _ = parts_of(model)
    processor = own if processor is None else processor
    check_question(question)
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int):
        raise ValueError(f"max_new_tokens={max_new_tokens!r} is not a whole number")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be ≥ 1")
    unknown = [name for name in streamers or () if name not in ("base", "steered")]
    if unknown:
        raise ValueError(f"streamers of {', '.join(unknown)}: the answers are base and steered")
    listed: list = list(images) if isinstance(images, (list, tuple)) else [images]
    if not listed:
        raise ValueError("no image is given: VRGA steers to a region of an image")
    shown = [read_image(image) for image in listed]
    told = foreign(model, shown)
    if told is not None:
        warnings.warn(told, stacklevel=2)
    inputs = inputs_of(model, processor, shown, question)
    assert processor is not None  # `inputs_of` refuses it
    told_of = {"base": None, "steered": None, **(streamers or {})}
    base_text: str | None = None
    base_trace: Trace | None = None
    with _patched(model, config, processor.tokenizer) as steered:
        chosen = steered.config
        if base:
            with _unsteered(steered):
                base_text, _, base_trace = recorded(
                    steered, processor, inputs, shown, max_new_tokens, told_of["base"], maps
                )
        text, region, trace = recorded(
            steered, processor, inputs, shown, max_new_tokens, told_of["steered"], maps
        )
        steps = steered.steps[0]
    return Answer(text, base_text, region, steps, trace, question, shown, chosen, base_trace)


def check_question(question: object) -> None:
    """Raise ValueError for what asks nothing."""
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"the question {question!r} is empty: say what to ask about the image")


def foreign(model: Model, images: list[Image.Image]) -> str | None:
    """What to know where the embedded model is shown other pictures than its own, else None."""
    if checkpoint_of(unwrapped(model))[0] != str(embedded()):
        return None
    from vrga.demo.data import is_card

    other = [image for image in images if not is_card(image)]
    if not other:
        return None
    return (
        "this is the small embedded model, which reads coloured letters on the cards that it was "
        "trained on and nothing else: its answer about another picture means nothing. Load a "
        "checkpoint for photos: --model, or vrga.load(...), with a folder or a hub id such as "
        "Qwen/Qwen2.5-VL-7B-Instruct"
    )


def inputs_of(
    model: Model,
    processor: Processor,
    images: list[Image.Image],
    question: str,
    *,
    system: str | None = None,
    max_pixels: int | None = None,
) -> Mapping:
    """A model's inputs of one question: images, then the question, in the chat template.

    Args:
        system: what stands before them as the system's message.
        max_pixels: of an image; None is the processor's own.

    Raises:
        ValueError: no processor, one without a chat template or bounds in pixels.
    """
    if not hasattr(processor, "apply_chat_template") or not hasattr(processor, "tokenizer"):
        raise ValueError(
            f"processor={type(processor).__name__} is none of a model with images: give the "
            "checkpoint's, AutoProcessor.from_pretrained(...)"
        )
    pixels = bounded(processor.image_processor, (None, max_pixels))
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
    chat = [{"role": "user", "content": content}]
    if system is not None:
        chat.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    kind = unwrapped(model).config.model_type
    flat = kind in FAMILIES and FAMILIES[kind].processor is not None  # Qwen's take one flat list
    inputs = processor(
        text=[text],
        images=images if flat else [images],
        return_tensors="pt",
        **({"images_kwargs": pixels} if pixels else {}),
    )
    return inputs.to(model.device)


def recorded(
    steered: Patch,
    processor,
    inputs: Mapping,
    images: list[Image.Image],
    max_new_tokens: int,
    streamer: object | None = None,
    maps: Heads = "visual",
) -> tuple[str, Region, Trace]:
    """The answer, its region, and its trace with texts, images and maps, those of layers too."""
    with steered.record(maps=maps, layer_maps=True) as trace:
        text = generated(steered.model, processor, inputs, max_new_tokens, streamer)
    region = steered.region[0]
    # Models that cut an image into tiles have more grids than there are images to show.
    shown = [images] if len(images) == len(region.grids) else None
    return text, region, trace.attach(processor.tokenizer, images=shown)


def generated(
    model: Model,
    processor,
    inputs: Mapping,
    max_new_tokens: int,
    streamer: object | None = None,
) -> str:
    """The answer, greedily."""
    more = {} if streamer is None else {"streamer": streamer}
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, **more)
    new = tokens[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(new, skip_special_tokens=True)[0].strip()


def unsteered_config(config: VRGAConfig | None) -> VRGAConfig:
    """What a base run is patched with: `config` with gain 1, which steers nothing.

    A hard mask and an ablation have no gain: then it is the default method with gain 1, whose
    heads and region are others than those of `config`.
    """
    if config is None or not config.boosts:
        return VRGAConfig(gain=1)
    return replace(config, gain=1)


@contextmanager
def _patched(
    model: Model, config: VRGAConfig | str | None, tokenizer: Tokenizer
) -> Iterator[Patch]:
    """The model's own patch, whose config is put back at the end, or one for the time being."""
    found = patch_of(model)
    if found is None:
        with patch(model, config, tokenizer=tokenizer) as steered:
            yield steered
        return
    if not found.enabled:
        raise ValueError(
            "the model's patch is switched off: set patch.enabled = True, or call "
            "vrga.unpatch(model) first"
        )
    before = found.config
    try:
        if config is not None:
            found.config = choose(config, {}, *checkpoint_of(found.model)).config
        yield found
    finally:
        found.config = before


@contextmanager
def _unsteered(steered: Patch) -> Iterator[None]:
    """A patch that changes nothing for a while, and measures."""
    config, ablated = steered.config, steered.ablated
    steered.config, steered.ablated = unsteered_config(config), None
    try:
        yield
    finally:
        steered.config, steered.ablated = config, ablated


def _in_notebook() -> bool:
    """Whether this process draws what a cell returns."""
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell" or "google.colab" in sys.modules


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else text[:57] + "...")
