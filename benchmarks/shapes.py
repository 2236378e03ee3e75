"""Random-weight models at real shapes, and inputs for them."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

IMAGE, VISION_START, VISION_END, END_OF_TURN = 5, 6, 7, 1


@dataclass(frozen=True)
class Shape:
    """The text model of a Qwen2.5-VL size, with the vision tower reduced to two layers.

    The vision tower is the same in both arms and steering never touches it, so a full one would
    only dilute the ratios.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int = 151936
    tied: bool = False

    @property
    def size(self) -> int:
        """Head size d."""
        return self.hidden // self.heads


SHAPES = {
    "tiny": Shape(2, 128, 8, 2, 256, vocabulary=1000),
    "small": Shape(4, 256, 8, 2, 1024, vocabulary=1000),
    "0.5b": Shape(24, 896, 14, 2, 4864, tied=True),
    "3b": Shape(36, 2048, 16, 2, 11008, tied=True),
    "7b": Shape(28, 3584, 28, 4, 18944, vocabulary=152064),
}


def random_model(
    name: str, device: str, dtype: torch.dtype, *, layers: int | None = None
) -> nn.Module:
    """A Qwen2.5-VL with random weights, on the device, in eval mode; cut to so many layers."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    shape = SHAPES[name]
    if layers is not None:
        shape = replace(shape, layers=layers)
    quarter = shape.size // 8
    rope = dict(
        rope_type="default",
        type="default",
        rope_theta=1e6,
        mrope_section=[shape.size // 2 - 6 * quarter // 2, 3 * quarter // 2, 3 * quarter // 2],
    )
    config = Qwen2_5_VLConfig(
        text_config=dict(
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            vocab_size=shape.vocabulary,
            max_position_embeddings=32768,
            tie_word_embeddings=shape.tied,
            rope_parameters=rope,
            rope_scaling=rope,
            bos_token_id=0,
            eos_token_id=END_OF_TURN,
            pad_token_id=0,
        ),
        vision_config=dict(
            depth=2,
            hidden_size=64,
            intermediate_size=64,
            num_heads=2,
            out_hidden_size=shape.hidden,
            fullatt_block_indexes=[1],
            in_channels=3,
        ),
        image_token_id=IMAGE,
        video_token_id=IMAGE + 10,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=shape.tied,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = END_OF_TURN
    model.generation_config.pad_token_id = 0
    return model.to(device).eval()


def sharing(model: nn.Module, arms: Iterable[str]) -> dict[str, nn.Module]:
    """A copy of the model for each arm; weights are shared."""
    shared = {id(x): x for x in (*model.parameters(), *model.buffers())}
    return {arm: copy.deepcopy(model, dict(shared)) for arm in arms}


def image_prompt(
    batch: int, side: int, device: str, dtype: torch.dtype, *, images: int = 1, more: int = 0
) -> dict[str, Tensor]:
    """Inputs of `batch` equal rows: some text, images of side x side tokens, a question.

    Args:
        more: words of text beside the 43 tokens that there always are; each image has two tokens
            around it.
    """
    g = torch.Generator().manual_seed(0)

    def words(n):
        return torch.randint(100, 900, (n,), generator=g).tolist()

    row = words(14 + more)
    row += [VISION_START, *[IMAGE] * side**2, VISION_END] * images
    row += [*words(24), END_OF_TURN]
    ids = torch.tensor([row + words(4)] * batch)
    patches = torch.randn(batch * images * 4 * side**2, 1176, generator=g)
    return dict(
        input_ids=ids.to(device),
        attention_mask=torch.ones_like(ids).to(device),
        mm_token_type_ids=(ids == IMAGE).int().to(device),
        image_grid_thw=torch.tensor([[1, 2 * side, 2 * side]] * (batch * images)).to(device),
        pixel_values=patches.to(device, dtype),
    )
