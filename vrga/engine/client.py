"""Asking an OpenAI-compatible server about images, steered or not."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

PATIENCE = 600.0  # seconds for one answer


@dataclass(frozen=True)
class Reply:
    """What a server answered.

    Args:
        text: of the answer.
        tokens: each token's text; logprobs: the logarithm of its probability.
        looked: where the answer looked, as of `vrga.engine.summary`; None where it was not steered.
    """

    text: str
    tokens: list[str]
    logprobs: list[float]
    looked: dict[str, Any] | None


class ServerError(RuntimeError):
    """A server refused a request, or could not answer it; says what the server said."""


def model_of(url: str) -> str:
    """The name of the model that a server serves.

    Raises:
        OSError: it cannot be reached.
    """
    return _served(url)["id"]


def context_of(url: str) -> int | None:
    """Tokens of a prompt and its answer that a server takes; None where it does not say.

    Raises:
        OSError: it cannot be reached.
    """
    return _served(url).get("max_model_len")  # vLLM's own; other servers may leave it out


def _served(url: str) -> dict[str, Any]:
    """What a server says of its model."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
        return json.load(answer)["data"][0]


def ask(
    url: str,
    model: str,
    images: Sequence[Image],
    question: str,
    *,
    vrga: Mapping[str, Any] | bool | None = None,
    max_tokens: int = 256,
) -> Reply:
    """Ask a question about images, greedily.

    Args:
        url: of the server, without /v1.
        vrga: what the request asks of steering, see docs/serving.md; None says nothing.

    Raises:
        ServerError: it refused, or failed.
    """
    content: list[dict] = [{"type": "image_url", "image_url": {"url": address(x)}} for x in images]
    message = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
    return ask_chat(url, model, [message], vrga=vrga, max_tokens=max_tokens, temperature=0)


def ask_chat(
    url: str,
    model: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    vrga: Mapping[str, Any] | bool | None = None,
    **options: Any,
) -> Reply:
    """Ask with a whole chat.

    Args:
        url, model, vrga: as of `ask`; messages: as the server takes them.
        options: of the request, such as max_tokens, temperature, stop.

    Raises:
        ServerError: it refused, or failed.
    """
    body: dict[str, Any] = {"model": model, "messages": messages, "logprobs": True, **options}
    if vrga is not None:
        body["vllm_xargs"] = {"vrga": json.dumps(vrga)}
    found = _post(f"{url}/v1/chat/completions", body)
    choice = found["choices"][0]
    tokens = (choice["logprobs"] or {"content": []})["content"]
    return Reply(
        choice["message"]["content"],
        [one["token"] for one in tokens],
        [one["logprob"] for one in tokens],
        (found["kv_transfer_params"] or {}).get("vrga"),
    )


def address(image: Image) -> str:
    """A picture as an address that holds it, in PNG."""
    written = io.BytesIO()
    image.convert("RGB").save(written, "PNG")
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


def _post(url: str, body: dict) -> dict:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        told = error.read().decode("utf-8", "replace")
        try:
            told = json.loads(told)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            told = told[:500]
        raise ServerError(f"the server says {error.code}: {told}") from error
