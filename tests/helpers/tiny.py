"""Tiny random Qwen2.5-VL models and batches for them."""

import functools
import inspect

import torch
import transformers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

EOS, IMAGE, VIDEO, VISION_START, VISION_END = 1, 90, 91, 92, 93
# What this version's models call their cache, as an argument and in what they return.
CACHE = next(
    name
    for name in ("cache", "past_key_values")
    if name in inspect.signature(Qwen2_5_VLForConditionalGeneration.forward).parameters
)


def token_types(ids, image=IMAGE):
    """mm_token_type_ids as a keyword argument, where this version's models take it."""
    if transformers.__version__ < "5":
        return {}
    return {"mm_token_type_ids": (ids == image).int()}


def tiny_model(layers=3, heads=8, kv_heads=2, size=16, attention="sdpa", seed=0):
    """A random model; large weights make its attention peaked and its tokens varied."""
    torch.manual_seed(seed)
    hidden = heads * size
    config = Qwen2_5_VLConfig(
        text_config=dict(
            hidden_size=hidden,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            vocab_size=100,
            max_position_embeddings=4096,
            rope_parameters=dict(
                rope_type="default",
                rope_theta=10000.0,
                mrope_section=[size // 2 - 2 * (size // 6), size // 6, size // 6],
            ),
            rope_scaling=dict(
                type="default",
                rope_type="default",
                mrope_section=[size // 2 - 2 * (size // 6), size // 6, size // 6],
            ),
            bos_token_id=0,
            eos_token_id=EOS,
            pad_token_id=0,
            initializer_range=0.15,
        ),
        vision_config=dict(
            depth=2,
            hidden_size=32,
            intermediate_size=32,
            num_heads=2,
            out_hidden_size=hidden,
            patch_size=14,
            spatial_merge_size=2,
            temporal_patch_size=2,
            window_size=112,
            fullatt_block_indexes=[1],
            in_channels=3,
            initializer_range=0.2,
        ),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation=attention)
    # Several generated tokens in every test: the model must not stop at once.
    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = 0
    return model.eval()


@functools.cache
def shared_model():
    """One model for tests that leave it as they found it."""
    return tiny_model()


def batch(images, *, seed=0, question=4):
    """Left-padded inputs: for each row the (h, w) token grids of its images.

    The row is: text, images, `question` + row tokens of text, end of turn, two tokens.
    """
    g = torch.Generator().manual_seed(seed)

    def words(n):
        return torch.randint(2, 89, (n,), generator=g).tolist()

    rows = []
    for i, grids in enumerate(images):
        ids = words(3)
        for h, w in grids:
            ids += [VISION_START, *[IMAGE] * (h * w), VISION_END]
        rows.append([*ids, *words(question + i), EOS, *words(2)])
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(r)) + r for r in rows])
    inputs = dict(
        input_ids=ids,
        attention_mask=torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r in rows]),
        **token_types(ids),
    )
    flat = [grid for grids in images for grid in grids]
    if flat:
        inputs["image_grid_thw"] = torch.tensor([[1, 2 * h, 2 * w] for h, w in flat])
        patches = sum(4 * h * w for h, w in flat)
        inputs["pixel_values"] = torch.randn(patches, 1176, generator=g)
    return inputs


def single(inputs, row, images):
    """Row `row` of a batch on its own, without padding."""
    keep = inputs["attention_mask"][row].bool()
    alone = {k: inputs[k][row : row + 1, keep] for k in ("input_ids", "attention_mask")}
    alone |= token_types(alone["input_ids"])
    first = sum(len(grids) for grids in images[:row])
    if images[row]:
        grids = inputs["image_grid_thw"]
        chosen = slice(first, first + len(images[row]))
        sizes = grids.prod(1).tolist()
        start = sum(sizes[:first])
        alone["image_grid_thw"] = grids[chosen]
        alone["pixel_values"] = inputs["pixel_values"][start : start + sum(sizes[chosen])]
    return alone


def generate(model, inputs, tokens=6, **kwargs):
    """Greedy generation that never stops early: (new tokens [B, T], logits [B, T, V])."""
    out = model.generate(
        **inputs,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **kwargs,
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)
