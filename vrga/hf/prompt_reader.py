"""Reading the inputs of a model: the prompt, and where its question ends."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from vrga.annotations import Tokenizer
from vrga.hf.announced_prompt import AnnouncedPrompt
from vrga.hf.grids import read_prompt
from vrga.hf.host import Host
from vrga.hf.inputs import ForwardInputs
from vrga.hf.question_ends import Query, content_tokens, question_end, template_end, user_end
from vrga.hf.tokenizers import template_beside, tokenizer_beside
from vrga.hf.turns import TurnMarks
from vrga.method.prompt import Prompt, expanded

TAIL = 64  # tokens at the end of a prompt that hold what begins an answer


def on_cpu(function: Callable) -> Callable:
    """Run a function with the CPU as the default device, whatever its user has set."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        if torch.get_default_device().type == "cpu":
            # Within a device's context every call of torch takes a way through Python.
            return function(*args, **kwargs)
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return run


class PromptReader:
    """Reads the prompts of one model, on the CPU.

    Args:
        host: the model.
        tokenizer: for queries as text and for the chat template; a processor may be given. None
            loads the model's own on first use.
    """

    def __init__(self, host: Host, tokenizer: Tokenizer | None):
        self.host = host
        self._tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        self._template = getattr(tokenizer, "chat_template", None)
        self._marks: TurnMarks | None = None
        self._looked = False  # for a tokenizer and its template, beside the model's weights

    @on_cpu
    def read(self, inputs: dict, shape: tuple[int, int], mask: Tensor | None) -> Prompt:
        """The prompt in the inputs of a forward pass or of generate().

        Args:
            shape: (B, S) of the tokens to read, the last S of the inputs.
            mask: the attention mask [B, S or more], or None.
        """
        config, family = self.host.model.config, self.host.family
        given = ForwardInputs.of(inputs)
        ids, types = given.ids, given.types
        return read_prompt(
            None if ids is None else ids[:, -shape[1] :],
            mask,
            None if types is None else types[:, -shape[1] :],
            cells=family.layout(config, inputs),
            positions=given.positions,
            image_token=getattr(config, family.image_token),
            video_token=getattr(config, family.video_token, None),
            named=tuple(name for name in family.inputs if inputs.get(name) is not None)
            or family.inputs,
            shape=shape,
        )

    @on_cpu
    def read_announced(
        self,
        announced: AnnouncedPrompt,
        rows: int,
        mask: Tensor | None,
        held: Prompt | None,
        past: int,
    ) -> tuple[Prompt, int]:
        """The prompt of a call of generate(), and how many of its keys came before this call.

        Args:
            rows: of the forward pass; each sample may stand in several.
            mask: the forward pass's own attention mask, [rows, S], or None.
            held: the prompt that is cached already, or None.
            past: keys in the cache.

        Raises:
            ValueError: `past` keys of which nothing is known.
        """
        given, whole = announced.inputs, announced.whole(past)
        if past and not whole and held is None:
            raise ValueError(
                f"the cache holds {past} tokens of a prompt this patch has not seen: pass the "
                "input_ids of the whole conversation, fill the cache with the patched model, or "
                "switch the patch off (patch.enabled = False)"
            )
        own_mask = given.mask if given.mask is not None and given.mask.ndim == 2 else None
        if own_mask is None and given.ids is not None:
            own_mask = self._padding(given.ids)

        def read(start: int) -> Prompt:
            width = announced.width - start if whole else announced.width
            prompt = self.read(given.named, (given.rows, width), own_mask).repeated(rows)
            return prompt if held is None or not start else held.extend(prompt, start)

        start = 0 if held is None else past
        try:
            prompt = read(start)
        except ValueError:
            if not (start and whole):
                raise
            prompt = read(0)  # its sizes are of all the chat's images, not of the new ones alone
        if mask is not None and tuple(mask.shape) == tuple(prompt.visible.shape):
            prompt = replace(prompt, visible=mask.cpu() != 0)
        return prompt, start

    def _padding(self, ids: Tensor) -> Tensor:
        """The attention mask that generate() makes of ids without one, int64 [B, S]."""
        pad = self.host.pad_token
        if pad is None or pad in self.host.end_tokens:
            return torch.ones_like(ids)
        return (ids != pad).long()

    @on_cpu
    def positions(self, prompt: Prompt, query: Query, start: int, ends: set[int]) -> Tensor:
        """The query positions in a prompt of which `start` tokens were cached before, [B].

        They count from the first cached token; see `Patch.query`.

        Args:
            ends: ids that end a turn.
        """
        rows = len(prompt.grids)
        later = prompt.later(start)
        if isinstance(query, str) and query == "user_end":
            found = self._user_end(later, ends)
        elif callable(query):
            found = torch.as_tensor(query(later.ids, later.visible))
        elif isinstance(query, str):
            found = question_end(later, [query] * rows, self._decode)
        elif isinstance(query, (list, tuple)) and query and isinstance(query[0], str):
            texts = expanded(list(query), rows)
            if len(texts) != rows:
                raise ValueError(f"query has {len(texts)} texts for {rows} rows")
            found = question_end(later, texts, self._decode)
        else:
            given = torch.as_tensor(query)
            if given.ndim == 0:
                return given.expand(rows)
            return torch.tensor(expanded(given.tolist(), rows)) if given.ndim == 1 else given
        return found + start

    def _user_end(self, prompt: Prompt, ends: set[int]) -> Tensor:
        """The default query of each row, int64 [B]: by the chat template where it made the row,
        else by the tokens that end turns."""
        family, vision = self.host.family, self.host.vision_tokens
        found = user_end(prompt, ends, vision, header=family.header, unlisted=family.unlisted)
        marks = self.marks
        if marks is None:
            return found
        for row, grids in enumerate(prompt.grids):
            told = template_end(prompt, self._decode, marks, row) if grids else None
            if told is not None and prompt.image[row, :told].any():
                found[row] = told
        return found

    @on_cpu
    def question(self, prompt: Prompt, query: Tensor, ends: set[int]) -> Tensor:
        """The text of each row's question, bool [B, S]: up to its query position, and from the
        last image, vision marker or end of a turn before that."""
        marks = torch.tensor(sorted(self.host.vision_tokens | ends))
        place = torch.arange(prompt.image.shape[1])
        mark = prompt.image | ~prompt.visible
        if prompt.ids is not None:
            mark = mark | torch.isin(prompt.ids, marks)
        before = mark & (place < query[:, None])
        start = torch.where(before, place, -1).amax(1, keepdim=True)
        return (place > start) & (place <= query[:, None]) & ~mark

    @on_cpu
    def content(self, prompt: Prompt, query: Tensor, ends: set[int]) -> list[list[int]]:
        """The positions of each row's content tokens, ascending, its query position as the last.

        They are the tokens of `question` without special tokens, blanks, and what the chat
        template puts before a turn: the words, and punctuation, of the user's turn behind its last
        image, up to the query. A question before its image leaves the query alone: it cannot see.
        Raises what `content_tokens` does.
        """
        question, tokenizer = self.question(prompt, query, ends), self.known_tokenizer
        return content_tokens(prompt, question, query, tokenizer, self.marks)

    @on_cpu
    def words(self, prompt: Prompt, question: Tensor) -> list[str | None]:
        """Each row's question as text, from its mask [B, S]: the last turn's part of it, where
        the chat template tells; None without ids or a tokenizer."""
        if prompt.ids is None or self.known_tokenizer is None:
            return [None] * len(question)
        marks, found = self.marks, list[str | None]()
        for ids, mask in zip(prompt.ids, question, strict=True):
            text = self._decode(ids[mask].tolist())
            if marks is not None and marks.opening:
                text = text.rpartition(marks.opening)[2]
            found.append(text.strip())
        return found

    @on_cpu
    def opens_turn(self, inputs: ForwardInputs, ends: set[int], announced: bool) -> bool:
        """Whether tokens that follow a cached prompt bring a new question.

        They do where they bring an image, close a turn (a drafted answer ends with its end), or,
        by the chat template, open the user's next turn. Other words go on with the answer; but
        where no template is known, and the family's turns need not be closed, several tokens that
        generate() is given (`announced`) are taken for a question.
        """
        if inputs.brings_images:
            return True
        ids = inputs.ids
        if ids is None and inputs.width > 1 and not announced:
            raise ValueError(
                f"{inputs.width} tokens behind a cached prompt come as inputs_embeds, which do not "
                "tell a new question from more of the answer: pass input_ids, or tell of a new "
                "prompt by patch.announce(inputs)"
            )
        if ids is None or ids.shape[1] == 1:
            return False
        ids = ids.cpu()
        if bool(torch.isin(ids[:, :-1], torch.tensor(sorted(ends))).any()):
            return True
        marks = self.marks
        if marks is None or not marks.opening:
            return announced and not self.host.family.closes
        return any(marks.opening in self._decode(row) for row in ids.tolist())

    @on_cpu
    def opens_answer(self, prompt: Prompt) -> bool:
        """Whether a prompt ends where, by the chat template, an answer begins."""
        if self.marks is None or prompt.ids is None:
            return False
        tails = [ids[seen][-TAIL:].tolist() for ids, seen in zip(prompt.ids, prompt.visible,
                                                                 strict=True)]  # fmt: skip
        closing = self.marks.closing
        return all(self._decode(tail).rstrip().endswith(closing) for tail in tails)

    @property
    def marks(self) -> TurnMarks | None:
        """The marks of the chat template; None where there is none, or no tokenizer."""
        if self._marks is not None:
            return self._marks
        tokenizer = self.known_tokenizer  # which may find a template
        template = self._template
        if tokenizer is not None and template is not None:
            self._marks = TurnMarks.of(tokenizer, template)
            if self._marks is None:
                self._template = None  # it tells nothing
        return self._marks

    @property
    def known_tokenizer(self) -> Tokenizer | None:
        """The tokenizer given, or the one beside the model's weights; None where there is none."""
        if not self._looked:
            self._looked = True
            if self._tokenizer is None:
                self._tokenizer = tokenizer_beside(self.host.model)
            if self._template is None and self._tokenizer is not None:
                self._template = template_beside(self.host.model, self._tokenizer)
        return self._tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer given, or the model's own.

        Raises:
            ValueError: the model was not loaded from a checkpoint with a tokenizer.
        """
        found = self.known_tokenizer
        if found is None:
            raise ValueError(
                "query as text and <back> spans need a tokenizer, and none was found at "
                f"{self.host.model.name_or_path!r}: pass "
                "vrga.patch(model, tokenizer=processor.tokenizer)"
            )
        return found

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)
