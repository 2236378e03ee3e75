"""An OpenAI-compatible server: vLLM's, SGLang's, llama.cpp's, or a service on the web."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vrga.engine.client import address
from vrga.evaluation.request import Answer
from vrga.images import read_image

KEY = "OPENAI_API_KEY"  # environment variable; servers of one's own need none
LONGEST = 1_000_000  # seconds, eleven days: sockets and threads take no wait without an end


@dataclass(frozen=True)
class Server:
    """Where to ask.

    Args:
        url: its address up to /v1, such as http://localhost:8000/v1.
        timeout: seconds that one reply may take.
        parallel: questions under way at a time.

    Raises:
        ValueError: no address of the web, or numbers that cannot be.
    """

    url: str
    timeout: float = 600.0
    parallel: int = 8

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(
                f"server {self.url!r}: give an address such as http://localhost:8000/v1"
            )
        check_timeout(self.timeout)
        if self.parallel < 1:
            raise ValueError(f"--parallel {self.parallel}: at least 1")

    def client(self):
        """A client of the openai package.

        Raises:
            ImportError: the package is missing.
        """
        try:
            import openai
        except ImportError as error:
            raise ImportError(
                "asking a server needs the openai package: pip install 'vrga[train]'"
            ) from error
        key = os.environ.get(KEY) or "none"
        return openai.OpenAI(base_url=self.url, api_key=key, timeout=self.timeout, max_retries=1)

    def ask(
        self,
        questions: Mapping[str, tuple[str, Sequence[Image.Image | Path | str]]],
        model: str,
        *,
        samples: int = 1,
        temperature: float = 1.0,
        max_new_tokens: int = 2048,
    ) -> Generator[tuple[str, list[Answer]]]:
        """Ask questions, each a text and its images, by their ids; in the order of the replies.

        A question that fails, or whose reply takes too long, is one answer with an error.

        Raises:
            ConnectionError: nobody answers at the address; what was answered before is there.
        """
        client = self.client()
        options = dict(model=model, temperature=temperature, top_p=1.0, max_tokens=max_new_tokens)
        pool = ThreadPoolExecutor(self.parallel)
        try:
            waiting: dict[Future, str] = {
                pool.submit(self._samples, client, *asked, samples, options): id
                for id, asked in questions.items()
            }
            for done in as_completed(waiting):
                id = waiting[done]
                texts = done.result()
                if isinstance(texts, str):
                    yield id, [Answer(id, error=texts)]
                else:
                    yield id, [Answer(id, text=text, tokens=tokens) for text, tokens in texts]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _samples(
        self, client, text: str, images: Sequence, samples: int, options: dict
    ) -> list[tuple[str, int | None]] | str:
        """So many replies with their tokens where they are told, or what went wrong."""
        import openai

        found: list[tuple[str, int | None]] = []
        try:
            content = [*map(_part, images), {"type": "text", "text": text}]
            while len(found) < samples:  # not every server heeds n
                wanted = samples - len(found)
                many = {"n": wanted} if wanted > 1 else {}
                reply = client.chat.completions.create(
                    messages=[{"role": "user", "content": content}], **many, **options
                )
                choices = reply.choices or []
                if not choices:
                    return "the server replied without an answer"
                alone = reply.usage is not None and len(choices) == 1
                tokens = reply.usage.completion_tokens if alone else None
                found += [((one.message.content or "").strip(), tokens) for one in choices]
        except openai.APITimeoutError:
            return f"no reply within {self.timeout:g} seconds"
        except openai.APIConnectionError as error:
            raise ConnectionError(
                f"nobody answers at {self.url} ({error}): start the server, or mend the address"
            ) from error
        except (openai.OpenAIError, OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return found[:samples]


def check_timeout(timeout: float) -> None:
    """Raise ValueError for seconds that nobody can wait."""
    if not 0 < timeout <= LONGEST:
        raise ValueError(f"--timeout {timeout:g}: seconds above 0, at most {LONGEST}")


def _part(image: Image.Image | Path | str) -> dict:
    """An image as a part of a message."""
    return {"type": "image_url", "image_url": {"url": address(read_image(image))}}
