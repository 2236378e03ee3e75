"""Tiny random models of every family, and batches for them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
import transformers
from tiny import EOS, IMAGE, VIDEO, VISION_END, VISION_START, tiny_model, token_types

TEXT = dict(
    vocab_size=100, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.2,
    bos_token_id=0, eos_token_id=EOS, pad_token_id=0,
)  # fmt: skip
ROPE = dict(rope_type="default", type="default", rope_theta=10000.0, mrope_section=[4, 2, 2])


@dataclass
class Image:
    """An image in a prompt.

    Args:
        ids: its tokens, markers included.
        grids: (offsets from its first token, h, w) of each grid.
        media: the model's inputs for it.
    """

    ids: list[int]
    grids: list[tuple[list[int], int, int]]
    media: dict[str, torch.Tensor]


@dataclass
class Batch:
    """Left-padded inputs; each row's grids and query position in the padded row."""

    inputs: dict[str, torch.Tensor]
    grids: list[list[tuple[list[int], int, int]]]
    query: list[int]
    rows: list[list] = field(default_factory=list)


class Family:
    """A tiny model and its way of writing images down."""

    def model(self):
        raise AssertionError

    def image(self, g, number):
        """One image; `number` varies its size."""
        raise AssertionError

    def join(self, media, ids, per_row):
        """All images' media, and inputs that go with the ids, for one call."""
        names = dict.fromkeys(name for each in media for name in each)
        return {name: torch.cat([m[name] for m in media if name in m]) for name in names}

    @functools.cached_property
    def shared(self):
        torch.manual_seed(0)
        model = self.model().eval()
        model.generation_config.eos_token_id = EOS
        model.generation_config.pad_token_id = 0
        return model

    def batch(self, counts, seed=0):
        """Rows with the given numbers of images: text, images, question, end of turn, text."""
        g = torch.Generator().manual_seed(seed)

        def words(n):
            return torch.randint(2, 80, (n,), generator=g).tolist()

        rows, number = [], 0
        for i, count in enumerate(counts):
            row = [words(3 + i)]
            for _ in range(count):
                row += [self.image(g, number), words(1)]
                number += 1
            rows.append([*row, [*words(3 + i), EOS, *words(2)]])
        return self.assemble(rows)

    def alone(self, batch, row):
        """One row of a batch on its own, without padding."""
        return self.assemble([batch.rows[row]])

    def assemble(self, rows):
        flat, grids, query, media, per_row = [], [], [], [], []
        for row in rows:
            ids, found, images, pictures = [], [], [], 0
            for part in row:
                if isinstance(part, Image):
                    found += [([len(ids) + o for o in offs], h, w) for offs, h, w in part.grids]
                    images.append(part.media)
                    pictures += "pixel_values" in part.media
                    ids += part.ids
                else:
                    ids += part
            flat.append(ids)
            grids.append(found)
            media += images
            per_row.append(pictures)
            query.append(len(ids) - 4)
        length = max(map(len, flat))
        pads = [length - len(ids) for ids in flat]
        ids = torch.tensor([[0] * n + row for n, row in zip(pads, flat, strict=True)])
        inputs = dict(
            input_ids=ids,
            attention_mask=torch.tensor(
                [[0] * n + [1] * (length - n) for n in pads], dtype=torch.long
            ),
            **self.join(media, ids, per_row),
        )
        shifted = [
            [([p + n for p in index], h, w) for index, h, w in found]
            for n, found in zip(pads, grids, strict=True)
        ]
        return Batch(inputs, shifted, [q + n for q, n in zip(query, pads, strict=True)], rows)


class Qwen(Family):
    def __init__(self, name, merge=2, patch=14):
        self.name, self.merge, self.patch = name, merge, patch

    def model(self):
        if self.name == "qwen2_5_vl":
            return tiny_model()
        prefix = {"qwen2_vl": "Qwen2VL", "qwen3_vl": "Qwen3VL", "qwen3_vl_moe": "Qwen3VLMoe"}
        config_class = getattr(transformers, prefix[self.name] + "Config")
        model_class = getattr(transformers, prefix[self.name] + "ForConditionalGeneration")
        text = TEXT | dict(hidden_size=64, head_dim=16, rope_parameters=ROPE, rope_scaling=ROPE)
        vision = dict(depth=2, patch_size=14, spatial_merge_size=2, temporal_patch_size=2,
                      initializer_range=0.2)  # fmt: skip
        if self.name == "qwen2_vl":
            vision |= dict(embed_dim=32, num_heads=2, mlp_ratio=1, hidden_size=64, in_channels=3)
        else:
            vision |= dict(hidden_size=32, num_heads=2, intermediate_size=32, out_hidden_size=64,
                           num_position_embeddings=64, deepstack_visual_indexes=[0],
                           in_channels=3)  # fmt: skip
        if self.name == "qwen3_vl_moe":
            text |= dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
                         decoder_sparse_step=1, mlp_only_layers=[])  # fmt: skip
        config = config_class(
            text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
            vision_start_token_id=VISION_START, vision_end_token_id=VISION_END,
        )  # fmt: skip
        return model_class._from_config(config, attn_implementation="sdpa")

    def image(self, g, number):
        h, w = 3 + number % 3, 4 + number % 2
        patches = torch.randn(4 * h * w, 3 * 2 * 14 * 14, generator=g)
        return Image(
            [VISION_START, *[IMAGE] * (h * w), VISION_END],
            [(list(range(1, 1 + h * w)), h, w)],
            dict(pixel_values=patches, image_grid_thw=torch.tensor([[1, 2 * h, 2 * w]])),
        )

    def video(self, g, number):
        h, w, frames = 3, 4 + number % 2, 3
        patches = torch.randn(frames * 4 * h * w, 3 * 2 * 14 * 14, generator=g)
        media = dict(pixel_values_videos=patches,
                     video_grid_thw=torch.tensor([[frames, 2 * h, 2 * w]]))  # fmt: skip
        if not self.name.startswith("qwen3"):
            if self.name == "qwen2_5_vl":
                media["second_per_grid_ts"] = torch.tensor([1.0])
            ids = [VISION_START, *[VIDEO] * (frames * h * w), VISION_END]
            starts = [1 + f * h * w for f in range(frames)]
        else:  # a time stamp before every frame
            ids, starts = [], []
            for f in range(frames):
                starts.append(len(ids) + 3)
                ids += [20 + f, 21, VISION_START, *[VIDEO] * (h * w), VISION_END]
        grids = [(list(range(start, start + h * w)), h, w) for start in starts]
        return Image(ids, grids, media)

    def join(self, media, ids, per_row):
        types = token_types(ids)
        for found in types.values():
            found[ids == VIDEO] = 2
        return super().join(media, ids, per_row) | types


class Tiled(Family):
    """Families whose images, or tiles of them, have a fixed number of tokens."""

    def __init__(self, name):
        self.name = name

    def model(self):
        return getattr(self, "_" + self.name)()

    def _llava(self):
        from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

        vision = CLIPVisionConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                                  num_attention_heads=2, image_size=32, patch_size=8)  # fmt: skip
        text = transformers.LlamaConfig(**TEXT, hidden_size=64)
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE,
                             image_seq_length=16)  # fmt: skip
        return LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa")

    def _internvl(self):
        from transformers import InternVLConfig, InternVLForConditionalGeneration

        vision = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                      num_attention_heads=2, image_size=[32, 32], patch_size=[4, 4])  # fmt: skip
        text = dict(model_type="qwen2", hidden_size=64, **TEXT)
        config = InternVLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE,
                                image_seq_length=16, downsample_ratio=0.5)  # fmt: skip
        return InternVLForConditionalGeneration._from_config(config, attn_implementation="sdpa")

    def _gemma3(self):
        from transformers import Gemma3Config, Gemma3ForConditionalGeneration

        vision = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                      num_attention_heads=2, image_size=32, patch_size=4)  # fmt: skip
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        text = TEXT | dict(hidden_size=64, head_dim=16, sliding_window=24, layer_types=kinds,
                           query_pre_attn_scalar=16)  # fmt: skip
        config = Gemma3Config(
            text_config=text, vision_config=vision, mm_tokens_per_image=16,
            image_token_index=IMAGE, boi_token_index=VISION_START, eoi_token_index=VISION_END,
        )  # fmt: skip
        return Gemma3ForConditionalGeneration._from_config(config, attn_implementation="sdpa")

    def _shuffled(self, prefix):
        vision = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                      num_attention_heads=2, image_size=32, patch_size=4)  # fmt: skip
        text = transformers.LlamaConfig(**TEXT, hidden_size=64)
        config = getattr(transformers, prefix + "Config")(
            vision_config=vision, text_config=text, image_token_id=IMAGE, scale_factor=2,
            pad_token_id=0,
        )  # fmt: skip
        model_class = getattr(transformers, prefix + "ForConditionalGeneration")
        return model_class._from_config(config, attn_implementation="sdpa")

    def _smolvlm(self):
        return self._shuffled("SmolVLM")

    def _idefics3(self):
        return self._shuffled("Idefics3")

    def image(self, g, number):
        tiles = 1 + number % 2 if self.name == "internvl" else 1
        ids = [VISION_START, *[IMAGE] * (16 * tiles), VISION_END]
        grids = [(list(range(1 + 16 * t, 17 + 16 * t)), 4, 4) for t in range(tiles)]
        return Image(ids, grids, dict(pixel_values=torch.randn(tiles, 3, 32, 32, generator=g)))

    def join(self, media, ids, per_row):
        joined = super().join(media, ids, per_row)
        if self.name == "gemma3":
            joined["token_type_ids"] = (ids == IMAGE).long()
        if self.name in ("smolvlm", "idefics3") and media:  # [rows, images, 3, H, W]
            most = max(per_row)
            stacked = torch.zeros(len(per_row), most, 3, 32, 32)
            pixels = list(joined["pixel_values"])
            for row, count in enumerate(per_row):
                for i in range(count):
                    stacked[row, i] = pixels.pop(0)
            joined["pixel_values"] = stacked
        return joined


class OneVision(Family):
    name = "llava_onevision"
    # (height, width) in pixels -> the tiles' tokens without padding, per the model's own code.
    sizes = [((64, 64), 8, 8), ((40, 64), 5, 8), ((64, 30), 8, 4), ((30, 96), 4, 12)]

    def model(self):
        from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

        vision = dict(model_type="siglip_vision_model", hidden_size=32, intermediate_size=32,
                      num_hidden_layers=2, num_attention_heads=2, image_size=32,
                      patch_size=8)  # fmt: skip
        text = dict(model_type="qwen2", hidden_size=64, **TEXT)
        config = LlavaOnevisionConfig(
            vision_config=vision, text_config=text, image_token_index=IMAGE,
            video_token_index=VIDEO, image_grid_pinpoints=[[64, 64], [32, 96], [96, 32]],
            vision_feature_layer=-1,
        )  # fmt: skip
        return LlavaOnevisionForConditionalGeneration._from_config(
            config, attn_implementation="sdpa"
        )

    def batch(self, counts, seed=0):
        self._several = [count > 1 for count in counts for _ in range(count)]
        return super().batch(counts, seed)

    def image(self, g, number):
        size, h, w = self.sizes[number % len(self.sizes)]
        grids, count, tiles = [(list(range(16)), 4, 4)], 16, 1
        if self._several[number]:
            count += 1  # a newline
        else:
            rows = [[16 + r * (w + 1) + c for c in range(w)] for r in range(h)]
            grids.append((sum(rows, []), h, w))
            count += h * (w + 1)
            tiles += 3 if size == (30, 96) else 4
        pixels = torch.zeros(1, 5, 3, 32, 32)
        pixels[0, :tiles] = torch.randn(tiles, 3, 32, 32, generator=g)
        media = dict(pixel_values=pixels, image_sizes=torch.tensor([size]))
        return Image([IMAGE] * count, grids, media)

    def video(self, g, number):
        frames = 3
        grids = [(list(range(4 * f, 4 * f + 4)), 2, 2) for f in range(frames)]
        pixels = torch.randn(1, frames, 3, 32, 32, generator=g)
        return Image([VIDEO] * (4 * frames + 1), grids, dict(pixel_values_videos=pixels))

    def join(self, media, ids, per_row):
        joined = super().join(media, ids, per_row)
        if "pixel_values" in joined:
            joined["batch_num_images"] = torch.tensor(per_row)
        return joined


FAMILIES = {
    family.name: family
    for family in (
        *(Qwen(name) for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")),
        OneVision(),
        *(Tiled(name) for name in ("llava", "internvl", "gemma3", "smolvlm", "idefics3")),
    )
}
