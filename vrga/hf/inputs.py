"""The inputs of generate() and of forward passes: what is refused, and how they are cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vrga.hf.cache import KeyCache, cache_among

# Beginnings of the names of inputs that come with images and videos.
MEDIA = ("pixel_values", "mm_encoder_outputs", "image_", "video_", "second_per_grid")
PIXELS = MEDIA[:2]  # sizes alone may come with every pass
TYPES = "mm_token_type_ids"
# Inputs with one column per token of the pass, in their last dimension; in their second one.
LAST, SECOND = ("position_ids", "cache_position"), ("input_ids", "inputs_embeds")


@dataclass(frozen=True)
class ForwardInputs:
    """The inputs of one forward pass, or of one call of generate().

    Args:
        named: all of them by their names.
        ids: int64 [B, Q], or None; embeds: [B, Q, hidden], or None. One of them is there.
        mask: attention mask [B, S], or of four dimensions, or None.
        positions: rotary positions, or None.
        types: 1 on image and 2 on video tokens, [B, Q], or None.
        cache: the key cache, or None.
    """

    named: dict[str, Any]
    ids: Tensor | None
    embeds: Tensor | None
    mask: Tensor | None
    positions: Tensor | None
    types: Tensor | None
    cache: KeyCache | None

    @classmethod
    def of(cls, named: dict[str, Any]) -> ForwardInputs:
        """Inputs by their names.

        Raises:
            ValueError: neither input_ids nor inputs_embeds, or a cache of an unknown kind.
        """
        ids, embeds = named.get("input_ids"), named.get("inputs_embeds")
        if ids is None and embeds is None:
            raise ValueError("a prompt needs input_ids or inputs_embeds")
        mask = named.get("attention_mask")
        if isinstance(mask, dict):  # by the kind of layer; all of them hide the same padding
            mask = mask.get("full_attention", next(iter(mask.values())))
        raw = cache_among(named)
        return cls(
            named, ids, embeds, mask, named.get("position_ids"), named.get(TYPES),
            None if raw is None else KeyCache(raw),
        )  # fmt: skip

    @property
    def tokens(self) -> Tensor:
        """The ids, or the embeddings where there are none."""
        found = self.embeds if self.ids is None else self.ids
        assert found is not None  # `of` refuses inputs with neither
        return found

    @property
    def rows(self) -> int:
        """B."""
        return self.tokens.shape[0]

    @property
    def width(self) -> int:
        """Tokens of each row in these inputs."""
        return self.tokens.shape[1]

    @property
    def brings_images(self) -> bool:
        """Whether pixels come with them, and not sizes alone."""
        media = [value for name, value in self.named.items() if name.startswith(PIXELS)]
        return any(v is not None and (isinstance(v, Tensor) or bool(v)) for v in media)

    def cut(self, chosen: slice, past: int) -> dict[str, Any]:
        """Those of a pass for some of its tokens, behind `past` keys, which masks keep."""
        found, width = dict(self.named), self.width
        for name, value in self.named.items():
            if not isinstance(value, Tensor):
                continue
            if name == "attention_mask":
                if value.ndim != 2:
                    raise ValueError(
                        f"assisted decoding needs an attention mask [B, S]; got {list(value.shape)}"
                    )
                found[name] = value[:, : past + (width if chosen.stop is None else chosen.stop)]
            elif name in SECOND or name.endswith("token_type_ids"):
                found[name] = value[:, -width:][:, chosen]
            elif name in LAST:
                found[name] = value[..., -width:][..., chosen]
        return found


def refusal(method: str) -> Callable:
    """What stands in the place of a method that a patched model must not run."""

    def refused(*args, **kwargs):
        raise ValueError(
            f"{method} packs requests into one row and hides the cache, so a patched model cannot "
            "steer it: use model.generate, or vrga.unpatch(model) first"
        )

    return refused
