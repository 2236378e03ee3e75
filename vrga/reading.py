"""Reading the inputs of a model: the prompt, and where its question ends."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vrga.hf.checkpoints import load_tokenizer
from vrga.hf.families import Family
from vrga.tokens import Prompt, Query, expanded, question_end, read_prompt, user_end


@dataclass(frozen=True)
class Announcement:
    """The inputs of a prompt as the user gave them, before its first forward pass.

    Args:
        inputs: the keyword arguments of generate().
        width: tokens per row, the cached ones included if they were given again.
    """

    inputs: dict
    width: int

    @classmethod
    def of(cls, inputs: dict) -> Announcement:
        """The announcement of these inputs.

        Raises:
            ValueError: neither input_ids nor inputs_embeds.
        """
        for name in ("input_ids", "inputs_embeds"):
            if inputs.get(name) is not None:
                return cls(inputs, inputs[name].shape[1])
        raise ValueError("a prompt needs input_ids or inputs_embeds")

    def whole(self, past: int) -> bool:
        """Whether these inputs begin with the `past` tokens that are cached already."""
        mask = self.inputs.get("attention_mask")
        if mask is None or mask.ndim != 2:
            return self.width > past
        return self.width > past and mask.shape[1] == self.width

    def end(self, past: int) -> int:
        """Keys in the cache when the prompt is complete."""
        return self.width if self.whole(past) else past + self.width


class PromptReader:
    """Reads the prompts of one model.

    Args:
        model: of the given family.
        tokenizer: for queries as text; None loads the model's own on first use.
    """

    def __init__(self, model: nn.Module, family: Family, tokenizer: object | None):
        self.model, self.family, self._tokenizer = model, family, tokenizer

    def read(
        self, inputs: dict, shape: tuple[int, int], mask: Tensor | None, media: dict | None = None
    ) -> Prompt:
        """The prompt in the inputs of a forward pass or of generate().

        Args:
            shape: (B, S) of the tokens to read, the last S of the inputs.
            mask: the attention mask [B, S or more], or None.
            media: where the sizes of images stand, if not among the inputs.
        """
        config, family = self.model.config, self.family
        ids, types = inputs.get("input_ids"), inputs.get("mm_token_type_ids")
        media = inputs if media is None else media
        return read_prompt(
            None if ids is None else ids[:, -shape[1] :],
            mask,
            None if types is None else types[:, -shape[1] :],
            cells=family.layout(config, media),
            positions=inputs.get("position_ids"),
            image_token=getattr(config, family.image_token),
            video_token=getattr(config, family.video_token, None),
            named=tuple(name for name in family.inputs if media.get(name) is not None)
            or family.inputs,
            shape=shape,
        )

    def read_announced(
        self,
        announced: Announcement,
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
        inputs, start = announced.inputs, past
        whole = announced.whole(past)
        if past and not whole and held is None:
            raise ValueError(
                f"the cache holds {past} tokens of a prompt this patch has not seen: pass the "
                "input_ids of the whole conversation, fill the cache with the patched model, or "
                "switch the patch off (patch.enabled = False)"
            )
        if held is None:
            start = 0
        own_mask = inputs.get("attention_mask")
        if own_mask is not None and own_mask.ndim != 2:
            own_mask = None
        ids = inputs.get("input_ids")
        if own_mask is None and ids is not None:
            own_mask = self._padding(ids)
        samples = (inputs["inputs_embeds"] if ids is None else ids).shape[0]
        length = announced.width - start if whole else announced.width
        prompt = self.read(inputs, (samples, length), own_mask).repeated(rows)
        if start:
            prompt = held.extend(prompt, start)
        if mask is not None and tuple(mask.shape) == tuple(prompt.visible.shape):
            prompt = replace(prompt, visible=mask.cpu() != 0)
        return prompt, start

    def _padding(self, ids: Tensor) -> Tensor:
        """The attention mask that generate() makes of ids without one, int64 [B, S]."""
        pad = self.model.generation_config.pad_token_id
        if pad is None or pad in self.end_tokens():
            return torch.ones_like(ids)
        return (ids != pad).long()

    def positions(self, prompt: Prompt, query: Query, start: int) -> Tensor:
        """The query positions in a prompt of which `start` tokens were cached before, [B].

        They count from the first cached token; see `Patch.query`.
        """
        rows = len(prompt.grids)
        later = prompt.later(start)
        if isinstance(query, str) and query == "user_end":
            config = self.model.config
            vision = {getattr(config, name, None) for name in self.family.vision_tokens}
            found = user_end(later, self.end_tokens(), vision - {None})
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

    def question(self, prompt: Prompt, query: Tensor) -> Tensor:
        """The text of each row's question, bool [B, S]: up to its query position, and from the
        last image, vision marker or end of a turn before that."""
        config = self.model.config
        marks = {getattr(config, name, None) for name in self.family.vision_tokens} - {None}
        marks = torch.tensor(sorted(marks | self.end_tokens()))
        place = torch.arange(prompt.image.shape[1])
        mark = prompt.image | ~prompt.visible
        if prompt.ids is not None:
            mark = mark | torch.isin(prompt.ids, marks)
        before = mark & (place < query[:, None])
        start = torch.where(before, place, -1).amax(1, keepdim=True)
        return (place > start) & (place <= query[:, None]) & ~mark

    def end_tokens(self) -> set[int]:
        """Ids that close a turn: the model's end-of-sequence tokens."""
        ends: set[int] = set()
        for config in (self.model.generation_config, self.model.config.get_text_config()):
            value = getattr(config, "eos_token_id", None)
            ends |= set(value if isinstance(value, (list, tuple)) else [value])
        return ends - {None}

    @property
    def knows_words(self) -> bool:
        """Whether a tokenizer was given or loaded already."""
        return self._tokenizer is not None

    @property
    def tokenizer(self) -> object:
        """The tokenizer given, or the model's own."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.model)
        return self._tokenizer

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)
