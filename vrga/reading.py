"""Reading the inputs of a forward pass: the prompt, and where its question ends."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vrga.models import Family, load_tokenizer
from vrga.tokens import Prompt, Query, expanded, question_end, read_prompt, user_end


class PromptReader:
    """Reads the prompts of one model.

    Args:
        model: of the given family.
        tokenizer: for queries as text; None loads the model's own on first use.
    """

    def __init__(self, model: nn.Module, family: Family, tokenizer: object | None):
        self.model, self.family, self._tokenizer = model, family, tokenizer

    def read(self, inputs: dict, mask: Tensor | None, shape: tuple[int, int]) -> Prompt:
        """The prompt in the keyword arguments of the multimodal model's forward.

        Args:
            mask: the attention mask [B, S or more], or None.
            shape: (B, S) of the tokens that are new in this forward pass.
        """
        config = self.model.config
        return read_prompt(
            inputs.get("input_ids"),
            mask,
            inputs.get("mm_token_type_ids"),
            image_grids=inputs.get("image_grid_thw"),
            video_grids=inputs.get("video_grid_thw"),
            positions=inputs.get("position_ids"),
            image_token=getattr(config, self.family.image_token),
            video_token=getattr(config, self.family.video_token),
            merge=config.vision_config.spatial_merge_size,
            shape=shape,
        )

    def positions(self, prompt: Prompt, query: Query, past: int) -> Tensor:
        """The query positions of the new tokens behind `past` cached ones, counted from the first
        cached token, [B]; see `Patch.query`."""
        rows = len(prompt.grids)
        if isinstance(query, str) and query == "user_end":
            config = self.model.config
            vision = {getattr(config, name, None) for name in self.family.vision_tokens}
            found = user_end(prompt, self.end_tokens(), vision - {None})
        elif callable(query):
            found = torch.as_tensor(query(prompt.ids, prompt.visible))
        elif isinstance(query, str):
            found = question_end(prompt, [query] * rows, self._decode)
        elif isinstance(query, (list, tuple)) and query and isinstance(query[0], str):
            texts = expanded(list(query), rows)
            if len(texts) != rows:
                raise ValueError(f"query has {len(texts)} texts for {rows} rows")
            found = question_end(prompt, texts, self._decode)
        else:
            given = torch.as_tensor(query)
            if given.ndim == 0:
                return given.expand(rows)
            return torch.tensor(expanded(given.tolist(), rows)) if given.ndim == 1 else given
        return found + past

    def end_tokens(self) -> set[int]:
        """Ids that close a turn: the model's end-of-sequence tokens."""
        ends: set[int] = set()
        for config in (self.model.generation_config, self.model.config.get_text_config()):
            value = getattr(config, "eos_token_id", None)
            ends |= set(value if isinstance(value, (list, tuple)) else [value])
        return ends - {None}

    def _decode(self, ids: list[int]) -> str:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.model)
        return self._tokenizer.decode(ids, skip_special_tokens=False)
