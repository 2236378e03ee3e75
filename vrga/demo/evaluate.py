"""How often the embedded model answers right, by real generation."""

import torch
from torch import Tensor

from vrga.demo.data import Sample, messages, parse_answer


def prepare(processor, samples: list[Sample], prompt: str) -> dict[str, Tensor]:
    """Model inputs of a left-padded batch; `prompt` is a key of `vrga.demo.data.PROMPTS`."""
    processor.tokenizer.padding_side = "left"
    chats = [
        processor.apply_chat_template(messages(s, prompt), add_generation_prompt=True)
        for s in samples
    ]
    images = [s.image for s in samples]
    return processor(text=chats, images=images, padding=True, return_tensors="pt")


@torch.inference_mode()
def answers(
    model,
    processor,
    samples: list[Sample],
    prompt: str,
    *,
    batch: int = 64,
    max_new_tokens: int = 96,
) -> list[str]:
    """The model's text for each sample, generated greedily.

    Args:
        batch: samples per call of `generate`.
    """
    texts = []
    for start in range(0, len(samples), batch):
        inputs = prepare(processor, samples[start : start + batch], prompt).to(model.device)
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        output = output[:, inputs["input_ids"].shape[1] :]
        texts += processor.batch_decode(output, skip_special_tokens=True)
    return texts


def accuracy(model, processor, samples: list[Sample], prompt: str, **options) -> int:
    """Number of samples whose final colour is right; an answer without colour is wrong."""
    texts = answers(model, processor, samples, prompt, **options)
    return sum(parse_answer(t) == s.color for t, s in zip(texts, samples, strict=True))
