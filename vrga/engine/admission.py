"""The admission of a request: what it asks becomes a plan, or is refused in words."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from vrga.annotations import Config, Tokenizer
from vrga.engine.plan import Plan
from vrga.engine.request import Asked
from vrga.hf.families import FAMILIES, Family
from vrga.hf.generate_options import token_ids
from vrga.hf.question_ends import question_end, template_end, user_end
from vrga.hf.tokenizers import template_beside
from vrga.hf.turns import TurnMarks
from vrga.method.prompt import Grid, Prompt, check_query

TESTED = ("qwen2_5_vl",)  # model types that were run in the engine


@dataclass(frozen=True)
class Picture:
    """An image or video of a request.

    Args:
        kind: "image", "video", or what else there is.
        place: position of its first token; count: tokens that it takes.
    """

    kind: str
    place: int
    count: int


class Reader:
    """Reads prompts of one model, by its tokenizer and its chat template.

    Args:
        config: the model's, as transformers has it.
        checkpoint: its folder or hub id.
        tokenizer: None where the engine runs without one.
        ends: ids that end a turn.

    Raises:
        ValueError: a model that is not known, or was not run in the engine.
    """

    def __init__(
        self, config: Config, checkpoint: str, tokenizer: Tokenizer | None, ends: set[int]
    ):
        self.config, self.checkpoint, self.tokenizer = config, checkpoint, tokenizer
        self._ends = ends
        kind = getattr(config, "model_type", None)
        if kind not in TESTED:
            raise ValueError(
                f"a model of the type {kind!r} is not steered in vLLM: {', '.join(TESTED)} is "
                "tested there; use vrga.patch(model) in transformers"
            )
        self.family: Family = FAMILIES[kind]

    @functools.cached_property
    def marks(self) -> TurnMarks | None:
        """The marks of the chat template; None where there is none."""
        tokenizer = self.tokenizer
        beside = SimpleNamespace(name_or_path=self.checkpoint)
        template = None if tokenizer is None else template_beside(beside, tokenizer)
        if tokenizer is None or template is None:
            return None
        return TurnMarks.of(tokenizer, template)

    def admit(
        self, asked: Asked, ids: Sequence[int] | None, pictures: Sequence[Picture]
    ) -> Plan | None:
        """The plan of a request; None where there is nothing to steer: no image, a gain of 1.

        Args:
            ids: of its prompt, image tokens included, as the engine runs it.

        Raises:
            ValueError: what cannot be steered, and what to do.
        """
        if asked.given is not None and len(asked.given) != len(pictures):
            raise ValueError(
                f"given has boxes for {len(asked.given)} images, and the request has "
                f"{len(pictures)}: give one list per image, empty where there is nothing to see"
            )
        if not pictures or not asked.config.steers:
            return None
        others = sorted({one.kind for one in pictures} - {"image"})
        if others:
            raise ValueError(
                f"the request has {', '.join(others)}, and images alone are steered to in vLLM: "
                "leave vrga out of this request, or use vrga.patch(model) in transformers"
            )
        if ids is None:
            raise ValueError(
                "the prompt is given as embeddings, which do not tell where its question ends: "
                "give token ids or text"
            )
        prompt = self._prompt(list(ids), pictures)
        query = check_query(torch.tensor([self._query(asked, prompt)]), prompt)
        images = tuple((one.place, one.count) for one in pictures)
        if asked.config.reproduces and (len(images) != 1 or images[0][0] == 0):
            raise ValueError(
                f"method={asked.config.method!r} knows one image per row, after a vision-start "
                f"token; the request has {len(images)} images: use the preset paper"
            )
        return Plan(asked.config, len(ids), int(query), images, asked.given)

    def _prompt(self, ids: list[int], pictures: Sequence[Picture]) -> Prompt:
        """The prompt as the method reads it; the rows of its images are not told apart yet."""
        found = torch.tensor([ids])
        image = torch.zeros_like(found, dtype=torch.bool)
        grids = []
        for one in sorted(pictures, key=lambda one: one.place):
            index = torch.arange(one.place, one.place + one.count)
            image[0, index] = True
            grids.append(Grid(index, 1, one.count))
        token = getattr(self.config, self.family.image_token)
        if not torch.equal(image, found == token):
            raise ValueError(
                f"the prompt has {int((found == token).sum())} image tokens, and the engine says "
                f"that images stand at {int(image.sum())} places: this version of vLLM lays "
                "images out in a way that is not known; run `vrga doctor`, and report it"
            )
        return Prompt(found, torch.ones_like(image), image, [grids])

    def _query(self, asked: Asked, prompt: Prompt) -> int:
        """Position of the question's last token."""
        if asked.query is not None:
            return int(question_end(prompt, [asked.query], self._decode)[0])
        if self.marks is not None:
            told = template_end(prompt, self._decode, self.marks, 0)
            if told is not None and prompt.image[0, :told].any():
                return told
        family, vision = self.family, self.family.vision_ids(self.config)
        found = user_end(prompt, self._ends, vision, header=family.header, unlisted=family.unlisted)
        return int(found[0])

    @property
    def _decode(self) -> Callable[[list[int]], str]:
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise ValueError(
                "query as text needs a tokenizer, and the engine runs without one "
                "(skip_tokenizer_init): leave query out"
            )
        return functools.partial(tokenizer.decode, skip_special_tokens=False)


def end_ids(*found: Any) -> set[int]:
    """Ids that end a turn, of one id, several, or None each."""
    return set().union(*map(token_ids, found))
