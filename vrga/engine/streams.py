"""The summary of a streamed answer: it comes with the chunk that says why the answer ended."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from vrga.engine.scheduler import FIELD

_START, _DONE = "data: ", "[DONE]"


class Watched:
    """What an engine gives of one streamed request, handed through.

    Args:
        results: vLLM's outputs of it, one after another.

    Attributes:
        summary: of the answer that has just ended, until it is sent; None before.
    """

    def __init__(self, results: AsyncIterator[Any]):
        self._results = results
        self.summary: dict[str, Any] | None = None

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for one in self._results:
            self.summary = (one.kv_transfer_params or {}).get(FIELD, self.summary)
            yield one


async def telling(
    own: Callable[..., AsyncIterator[str]],
    serving: Any,
    request: Any,
    results: AsyncIterator[Any],
    *args: Any,
    **kwargs: Any,
) -> AsyncIterator[str]:
    """The chunks of a stream, those that end a steered answer with its summary.

    Args:
        own: vLLM's method that makes them, of `serving`, with its arguments.
    """
    watched = Watched(results)
    async for chunk in own(serving, request, aiter(watched), *args, **kwargs):
        if watched.summary is None:
            yield chunk
            continue
        told = with_summary(chunk, watched.summary)
        if told is not chunk:
            watched.summary = None
        yield told


def with_summary(chunk: str, summary: dict[str, Any]) -> str:
    """A chunk with the summary in it, if it ends an answer; else as it is."""
    text = chunk.removeprefix(_START).strip()
    if not chunk.startswith(_START) or text == _DONE:
        return chunk
    found = json.loads(text)
    if not any(one.get("finish_reason") for one in found.get("choices", ())):
        return chunk
    found["kv_transfer_params"] = {FIELD: summary}
    return f"{_START}{json.dumps(found, ensure_ascii=False)}\n\n"
