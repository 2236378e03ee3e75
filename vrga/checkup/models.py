"""What a check-up looks at: tiny random models and prompts for them, or a checkpoint."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import transformers
from PIL import Image, ImageDraw
from torch import Tensor, nn

import vrga
from vrga.annotations import Model
from vrga.checkup.loops import Loops, Row
from vrga.checkup.plain_look import Picture
from vrga.hf.backends import set_backend
from vrga.hf.families import family_of
from vrga.hf.inputs import TYPES
from vrga.hf.processors import processed
from vrga.hf.second_look import turn_of

END, IMAGE, VIDEO, VISION_START, VISION_END = 1, 90, 91, 92, 93
WORDS = (2, 80)  # ids of tokens that are text
COPIED = 100_000_000  # a model of more parameters is not copied in float64

# Large weights make random models' attention peaked and their tokens varied.
_TEXT = dict(
    vocab_size=100, hidden_size=128, intermediate_size=64, num_hidden_layers=3,
    num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=4096,
    initializer_range=0.15, bos_token_id=0, eos_token_id=END, pad_token_id=0,
)  # fmt: skip
_ROPE = dict(rope_type="default", type="default", rope_theta=10000.0, mrope_section=[4, 2, 2])
_TILES = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)


@dataclass(frozen=True)
class Subject:
    """A model that is examined, and what it is asked.

    Args:
        name: for people.
        model: unpatched.
        loops: the same weights for the plain loops.
        batch: inputs of several prompts, padded on the left.
        rows: the same prompts one by one, without padding; the first one has an image. There may
            be more of them than in the batch.
        vision_tokens: ids that stand for images, which are no answer.
    """

    name: str
    model: Model
    loops: Loops
    batch: dict[str, Tensor]
    rows: list[Row]
    vision_tokens: list[int]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def halved(self) -> Subject:
        """A copy in float16."""
        model = copy.deepcopy(self.model).half()
        rounded = copy.deepcopy(model).to(next(self.loops.model.parameters()).device).double()
        set_backend(rounded, "eager")  # flash attention has no float64
        loops = Loops(rounded)
        return replace(self, model=model, loops=loops)


def _qwen(prefix: str, vision: dict, head_dim: bool = False) -> nn.Module:
    text = _TEXT | dict(rope_parameters=_ROPE, rope_scaling=_ROPE)  # transformers 5 and 4
    vision = vision | dict(
        depth=2, patch_size=14, spatial_merge_size=2, temporal_patch_size=2, in_channels=3,
        initializer_range=0.2, num_heads=2,
    )  # fmt: skip
    config = getattr(transformers, prefix + "Config")(
        text_config=text | (dict(head_dim=16) if head_dim else {}), vision_config=vision,
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )  # fmt: skip
    return getattr(transformers, prefix + "ForConditionalGeneration")._from_config(config)


def _llava() -> nn.Module:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Model

    vision = CLIPVisionConfig(**_TILES, image_size=32, patch_size=8)
    return Model._from_config(
        LlavaConfig(vision_config=vision, text_config=LlamaConfig(**_TEXT),
                    image_token_index=IMAGE, image_seq_length=16)
    )  # fmt: skip


def _internvl() -> nn.Module:
    from transformers import InternVLConfig
    from transformers import InternVLForConditionalGeneration as Model

    vision = dict(_TILES, image_size=[32, 32], patch_size=[4, 4])
    return Model._from_config(
        InternVLConfig(vision_config=vision, text_config=dict(model_type="qwen2", **_TEXT),
                       image_token_id=IMAGE, image_seq_length=16, downsample_ratio=0.5)
    )  # fmt: skip


# Families that a tiny random model can be made of, by model_type.
TINY: dict[str, Callable[[], Model]] = {
    "qwen2_5_vl": partial(_qwen, "Qwen2_5_VL", dict(
        hidden_size=32, intermediate_size=32, out_hidden_size=128, window_size=112,
        fullatt_block_indexes=[1],
    )),
    "qwen2_vl": partial(_qwen, "Qwen2VL", dict(embed_dim=32, mlp_ratio=1, hidden_size=128)),
    "qwen3_vl": partial(_qwen, "Qwen3VL", dict(
        hidden_size=32, intermediate_size=32, out_hidden_size=128, num_position_embeddings=64,
        deepstack_visual_indexes=[0],
    ), head_dim=True),
    "llava": _llava,
    "internvl": _internvl,
}  # fmt: skip


def tiny(family: str, device: torch.device) -> Subject:
    """A tiny random model of a family, asked about one image, about none and about two.

    Raises:
        ValueError: a family that no tiny model is made of.
    """
    if family not in TINY:
        raise ValueError(f"family {family!r}: tiny models are made of {', '.join(TINY)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TINY[family]().float().eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = END, 0
    set_backend(model, "sdpa")
    loops = Loops(copy.deepcopy(model).double())
    drawn = torch.Generator().manual_seed(0)
    draw = _qwen_image if family.startswith("qwen") else _tile
    types = {TYPES} & set(inspect.signature(type(model).forward).parameters)
    prompts = [_prompt(sizes, 3 + i, draw, drawn) for i, sizes in enumerate(_SIZES)]
    batch = _padded([prompt[0] for prompt in prompts], [prompt[2] for prompt in prompts], types)
    rows = [
        Row(_padded([ids], [media], types), pictures, len(ids) - 4)
        for ids, pictures, media in prompts
    ]
    batch = {name: value.to(device) for name, value in batch.items()}
    # The loops stay on the CPU, where nothing depends on the device that is examined.
    vision = [IMAGE, VIDEO, VISION_START, VISION_END]
    return Subject(f"random {family}", model.to(device), loops, batch, rows, vision)


_SIZES: list[list[tuple[int, int]]] = [[(5, 6)], [], [(4, 5), (3, 4)]]  # images of each prompt


def _qwen_image(h: int, w: int, drawn: torch.Generator) -> tuple[int, int, dict[str, Tensor]]:
    patches = torch.randn(4 * h * w, 3 * 2 * 14 * 14, generator=drawn)
    return h, w, dict(pixel_values=patches, image_grid_thw=torch.tensor([[1, 2 * h, 2 * w]]))


def _tile(h: int, w: int, drawn: torch.Generator) -> tuple[int, int, dict[str, Tensor]]:
    return 4, 4, dict(pixel_values=torch.randn(1, 3, 32, 32, generator=drawn))


def _prompt(
    sizes: list[tuple[int, int]], words: int, draw: Callable, drawn: torch.Generator
) -> tuple[list[int], list[Picture], list[dict[str, Tensor]]]:
    """Some text, images, a question of `words` tokens, the end of the turn and two tokens more."""

    def text(count: int) -> list[int]:
        return torch.randint(*WORDS, (count,), generator=drawn).tolist()

    ids, pictures, media = text(3), [], []
    for size in sizes:
        h, w, inputs = draw(*size, drawn)
        ids.append(VISION_START)
        pictures.append(Picture(list(range(len(ids), len(ids) + h * w)), h, w))
        ids += [*[IMAGE] * (h * w), VISION_END]
        media.append(inputs)
    return [*ids, *text(words), END, *text(2)], pictures, media


def _padded(
    prompts: list[list[int]], media: list[list[dict[str, Tensor]]], types: set[str]
) -> dict[str, Tensor]:
    """The model's inputs for prompts, padded on the left."""
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
    seen = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    inputs = dict(input_ids=ids, attention_mask=torch.tensor(seen))
    inputs |= {name: (ids == IMAGE).int() for name in types}
    images = [image for row in media for image in row]
    for name in images[0] if images else ():
        inputs[name] = torch.cat([image[name] for image in images])
    return inputs


# --- a checkpoint ---


def checkpoint(name: str, device: torch.device) -> Subject:
    """A checkpoint, asked about a drawn image: two questions, and one without the image.

    Raises:
        FileNotFoundError, ValueError: as of `vrga.load`.
    """
    model, processor = vrga.load(name, device_map={"": str(device)})
    images = [drawn_image(), drawn_image().transpose(Image.Transpose.ROTATE_90)]
    asked = ["What color is the circle?", "Is there a square in this image, and where is it?"]
    rows = []
    for image, question in zip(images, asked, strict=True):
        inputs = _inputs(model, processor, [question], [image])
        with vrga.patch(model) as patch:  # which knows where the image's tokens are
            model.generate(**inputs, max_new_tokens=2, do_sample=False)
            region = patch.region[0]
        pictures = [Picture(grid.index.tolist(), grid.h, grid.w) for grid in region.grids]
        rows.append(Row(inputs, pictures, region.query))
    batch = _inputs(model, processor, asked, images)
    rows.append(Row(_inputs(model, processor, ["What color is the sky?"], []), [], 0))
    small = sum(parameter.numel() for parameter in model.parameters()) <= COPIED
    loops = Loops(copy.deepcopy(model).double() if small else model, copied=small)
    vision = family_of(model).vision_ids(model.config)
    return Subject(str(name), model, loops, batch, rows, sorted(vision))


def _inputs(model: Model, processor, questions: list[str], images: list) -> dict[str, Tensor]:
    """The processor's inputs for questions, each about its image; padded on the left."""
    shown = 1 if images else 0
    chats = [
        processor.apply_chat_template(turn_of(shown, question), add_generation_prompt=True)
        for question in questions
    ]
    processor.tokenizer.padding_side = "left"
    found = processed(model, processor, chats, [[image] for image in images], {})
    return dict(found.to(next(model.parameters()).device))


def drawn_image() -> Image.Image:
    """A red circle, a blue square and a green triangle on white, 224 x 224."""
    image = Image.new("RGB", (224, 224), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 20, 95, 95), fill="red")
    draw.rectangle((125, 40, 200, 115), fill="blue")
    draw.polygon([(40, 200), (85, 125), (135, 200)], fill="green")
    return image
