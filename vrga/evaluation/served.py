"""Asking a server that runs VRGA in vLLM, in the place of a model in this process."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Generator, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from vrga.config import VRGAConfig
from vrga.engine.client import ServerError, address, ask_chat
from vrga.evaluation.request import Answer, Request, with_images
from vrga.images import read_image
from vrga.steering.steps import OUTSIDE, Steps

# What a server is asked for, by the name that `generate` has for it.
OPTIONS = {"max_new_tokens": "max_tokens", "until": "stop", "temperature": "temperature",
           "top_p": "top_p", "top_k": "top_k"}  # fmt: skip


class ServerAsker:
    """Answers requests as `Asker` does, by a server.

    Args:
        url: of the server, without /v1; model: its name there.
        config: how to steer; None asks for answers that are not steered.
        batch: requests at once.
        seed: of sampling.
        context: tokens of a prompt and its answer that the server takes, where that is known.
    """

    def __init__(
        self, url: str, model: str, config: VRGAConfig | None, *, batch: int = 8, seed: int = 0,
        context: int | None = None,
    ):  # fmt: skip
        self._url, self._model, self._config = url, model, config
        self._batch, self._seed, self._context = batch, seed, context

    def ask(self, requests: Iterable[Request]) -> Generator[Answer]:
        """Answer every request, in no fixed order; one that fails is answered with its error.

        Raises:
            ServerError: the server answered, and did not steer what it was asked to steer; or it
                has no room for answers as long as are asked for.
        """
        with concurrent.futures.ThreadPoolExecutor(self._batch) as pool:
            waiting: set[concurrent.futures.Future[Answer]] = set()
            for request in requests:
                waiting.add(pool.submit(self._answer, request))
                if len(waiting) >= 2 * self._batch:
                    done, waiting = concurrent.futures.wait(
                        waiting, return_when=concurrent.futures.FIRST_COMPLETED
                    )
                    yield from (one.result() for one in done)
            for one in concurrent.futures.as_completed(waiting):
                yield one.result()

    def _answer(self, request: Request) -> Answer:
        longest = request.options.get("max_new_tokens", 0)
        if self._context is not None and longest >= self._context:
            raise ServerError(
                f"{request.id} may be answered with {longest} tokens, and the server at "
                f"{self._url} has room for {self._context} of prompt and answer: give "
                "--max-new-tokens, or start the server with a larger --max-model-len"
            )
        try:
            chat, question = request.chat()
            messages = with_images(chat, _picture)
            images = any(p["type"] == "image_url" for one in messages for p in one["content"]
                         if not isinstance(one["content"], str))  # fmt: skip
            options = _options(request.options) | {"seed": self._seed}
            vrga: dict[str, Any] | bool = False
            if self._config is not None:
                vrga = {**self._config.to_dict(), "query": question.strip()}
            reply = ask_chat(self._url, self._model, messages, vrga=vrga, **options)
        except Exception as error:  # whatever a damaged file makes its reader say, or a server
            return Answer(request.id, error=f"{type(error).__name__}: {error}")
        text, looked = (reply.text or "").strip(), reply.looked
        if looked is None:
            if images and self._config is not None and self._config.steers:
                raise ServerError(
                    f"the server at {self._url} answered {request.id} and did not steer it: "
                    "figures from here on would be of unsteered answers; is vrga installed there?"
                )
            return Answer(request.id, text=text, tokens=len(reply.tokens))
        if not looked["steered"]:
            return Answer(request.id, error=looked["fault"])
        count = len(looked["share"]["steps"])
        left = max(len(reply.tokens) - 1 - count, 0)
        steps = Steps(len(reply.tokens), count, {OUTSIDE: left} if left else {})
        region = {
            "image_tokens": sum(h * w for h, w in looked["grids"]),
            "region_tokens": looked["tokens"],
            "visual_heads": len(looked["heads"]),
            "query": looked["query"],
        }
        return Answer(
            request.id, text=text, tokens=len(reply.tokens), steered=count > 0, region=region,
            steps=asdict(steps),
        )  # fmt: skip


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `generate` as a server takes them; greedy where nothing is sampled.

    Raises:
        ValueError: one that a server does not have.
    """
    own = {name: value for name, value in given.items() if name != "do_sample"}
    unknown = sorted(set(own) - set(OPTIONS))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: a server is asked for {', '.join(OPTIONS)} alone")
    found = {OPTIONS[name]: value for name, value in own.items()}
    return found if given.get("do_sample") else found | {"temperature": 0}


def _picture(image) -> dict:
    """An image of a chat as the server takes it."""
    return {"type": "image_url", "image_url": {"url": address(read_image(image))}}
