"""The parts of the embedded model: tokenizer, processor and configuration, all untrained."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre
from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2TokenizerFast

from vrga.config import VRGAConfig
from vrga.demo.data import CAPTION, CELL, COLORS, LETTERS, PROMPTS
from vrga.hf.processors import image_only_processor_class, image_processor_class

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VOCABULARY = 512

# How Qwen cuts text into words before byte pairs are merged.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' or 'video' in part -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def build_tokenizer(sentences: list[str] | None = None) -> Qwen2TokenizerFast:
    """A byte-level BPE tokenizer: one token for each letter and colour, any text encodable.

    Args:
        sentences: what it learns its words from; None is the grid's.
    """
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    split = pre.Split(Regex(WORDS), behavior="isolated", invert=False)
    bpe.pre_tokenizer = pre.Sequence([split, pre.ByteLevel(False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_sentences() if sentences is None else sentences, trainer)
    bpe.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL_TOKENS])
    return Qwen2TokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
    )


def build_processor(tokenizer, cells: int = 1280):
    """The processor for `tokenizer`; images keep their size when it is a multiple of 28.

    Args:
        cells: most visual tokens of an image; a larger one is shrunk.
    """
    pixels = CELL * CELL
    image_processor = image_processor_class()(min_pixels=pixels, max_pixels=pixels * cells)
    processor = image_only_processor_class()
    return processor(image_processor, tokenizer, chat_template=tokenizer.chat_template)


def build_config(tokenizer) -> Qwen2_5_VLConfig:
    """A Qwen2.5-VL of 1.5 million parameters: 6 text layers with 8 heads on 2 KV heads."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.05,  # at a width of 128 the usual 0.02 learns much more slowly
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [2, 3, 3],  # time, height, width; sums to half of the head size 16
        },
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_heads": 4,
        "patch_size": CELL // 2,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [2],
        "out_hidden_size": text["hidden_size"],
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def build_generation_config(tokenizer) -> GenerationConfig:
    """Greedy; a turn ends at <|im_end|> or <|endoftext|>."""
    stops = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    return GenerationConfig(do_sample=False, eos_token_id=stops, pad_token_id=stops[1])


def save(model, processor, folder: Path, config: VRGAConfig | None = None) -> None:
    """Write model, tokenizer and processor so that transformers 4.57 and 5.x load them.

    Args:
        config: of VRGA, that serves this model best; it is written beside them. None is
            `VRGAConfig.sparing()`.
    """
    (VRGAConfig.sparing() if config is None else config).save_pretrained(folder)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written for the owner alone
    processor.tokenizer.save_pretrained(folder)
    kept = processor.image_processor.to_dict()
    kept |= {"image_processor_type": "Qwen2VLImageProcessor"}  # the name that both majors know
    kept |= {"processor_class": "Qwen2_5_VLProcessor"}
    _write(folder / "preprocessor_config.json", kept)
    path = folder / "config.json"
    written = json.loads(path.read_text("utf-8"))
    text = written["text_config"]
    text["tie_word_embeddings"] = written["tie_word_embeddings"]  # 4.57 looks for it here,
    rope = text["rope_parameters"]  # and reads two other names instead of this one
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    text["rope_theta"] = rope["rope_theta"]
    _write(path, written)


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def _sentences() -> list[str]:
    """What the tokenizer learns its words from."""
    text = [f"what color is the {letter}?" for letter in LETTERS]
    text += [
        f"<think> see {letter} {color}, {letter} {color}. </think> answer {letter} {color}. "
        f"\\boxed{{{color}}} <back> see {letter} {color}. </back> "
        f"<think> answer {letter} {color}.\nanswer"
        for letter in LETTERS
        for color in COLORS
    ]
    text += [*(prompt.format(question=text[0]) for prompt in PROMPTS.values()), CAPTION] * 8
    text += ["user\nassistant\nsystem\n"] * 64
    text += [
        "where is this and which one do you see in the image: left, right, above or below?"
    ] * 2
    return text
