"""A question to a model, and the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vrga.method.region import Region


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


def with_images(chat: list[dict], shown: Callable[[object], dict]) -> list[dict]:
    """A chat in whose image parts stands what `shown` makes of their images.

    Raises:
        ValueError: a part that is neither image nor text.
    """
    messages = []
    for message in chat:
        content = message["content"]
        if not isinstance(content, str):
            other = next((p["type"] for p in content if p["type"] not in ("image", "text")), None)
            if other is not None:
                raise ValueError(f"a {other} in the chat; images and text are read")
            content = [shown(p["image"]) if p["type"] == "image" else p for p in content]
        messages.append({"role": message["role"], "content": content})
    return messages


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
        zoom: of an asker that looks closer, the decision with its crops, and the cost, see
            `Closer.numbers`; None of others, and with an error.
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
    zoom: dict[str, object] | None = None

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
            "zoom": self.zoom,
            "error": self.error,
        }


@dataclass
class Ready:
    """A request with its chat and images read."""

    request: Request
    messages: list[dict]
    chat: str
    question: str
    images: list[Image.Image]

    @property
    def length(self) -> int:
        """An estimate that sorts requests by the tokens of their prompts."""
        return sum(image.width * image.height for image in self.images) // 784 + len(self.chat) // 4
