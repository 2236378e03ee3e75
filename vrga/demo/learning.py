"""What the trainings of the small models have in common."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import Qwen2_5_VLForConditionalGeneration

from vrga.annotations import Model
from vrga.demo import build
from vrga.demo.data import CELL, TRAIN_SEEDS
from vrga.hf.backends import set_backend
from vrga.hf.inputs import TYPES
from vrga.recording.package_versions import versions

# (layer, head): one KV group in each of two middle layers learns to look at what is spoken of, so
# that the model has visual heads that retrieve, as large ones have after training at scale.
LOOKING = tuple((layer, head) for layer in (2, 3) for head in range(4))
LOOKING_WEIGHT = 0.1
LOOKING_SHARE = 0.5  # of a head's attention; beyond it nothing is taught, and steering has room
NOISE = 60.0  # each training image gets Gaussian noise of a strength drawn from [0, NOISE]
RATE = 2e-3  # of the vision tower
RECENT = 20  # steps whose means tell how far a training is


class DrawnBatches:
    """Endless training batches, of pictures never drawn before.

    Args:
        processor: of the model.
        size: pictures of a batch.
        seed: of the training.
    """

    def __init__(self, processor, size: int, seed: int):
        self.processor, self.size = processor, size
        self.rng = np.random.default_rng(seed)
        self.next_seed = TRAIN_SEEDS[seed * 1_000_000]
        tokens = processor.tokenizer
        self.ids = {name: tokens.convert_tokens_to_ids(name) for name in build.SPECIAL_TOKENS}
        (self.mark,) = tokens.encode("?")

    def encoded(
        self, grids: Sequence[tuple[int, int]], text: str, target: str
    ) -> tuple[list[int], list[int]]:
        """Tokens of a prompt and of its answer.

        Args:
            grids: rows and columns of visual tokens of each picture.
        """
        content = [{"type": "image"} for _ in grids] + [{"type": "text", "text": text}]
        chat, *parts = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        ).split("<|image_pad|>")
        for (rows, columns), part in zip(grids, parts, strict=True):
            chat += "<|image_pad|>" * (rows * columns) + part
        encode = self.processor.tokenizer.encode
        return encode(chat), encode(target + "<|im_end|>")

    def filled(
        self, pairs: Sequence[tuple[list[int], list[int]]]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Tokens of prompts and answers, filled up to one length, as model arguments; and labels
        [N, T], -100 but on the answers'."""
        length = max(len(prompt) + len(target) for prompt, target in pairs)
        ids = torch.full((len(pairs), length), self.ids["<|endoftext|>"])
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for i, (prompt, target) in enumerate(pairs):
            start, end = len(prompt), len(prompt) + len(target)
            ids[i, :end] = torch.tensor(prompt + target)
            labels[i, start:end] = torch.tensor(target)
            mask[i, :end] = 1
        types = (ids == self.ids["<|image_pad|>"]).int()
        return {"input_ids": ids, "attention_mask": mask, TYPES: types}, labels


class Learner:
    """Parameters with their optimizer and its schedule.

    Args:
        parameters: what learns.
        rate: highest learning rate.
        schedule: step, from 0 -> factor on the rate.
        clip: largest norm of the gradient, or None.
        options: of AdamW.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        rate: float,
        schedule: Callable[[int], float],
        clip: float | None = None,
        **options,
    ):
        self.parameters, self.clip = list(parameters), clip
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, **options)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule)

    def step(self, loss: Tensor) -> None:
        """One step down a loss."""
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.scheduler.step()


def answers_learner(model: Model, steps: int, rate: float) -> Learner:
    """The text model's: a warm-up, then a cosine; the vision tower stays as it is.

    The model's attention is "eager" from here on, the only one to return attention.
    """
    model.model.visual.requires_grad_(False)
    set_backend(model, "eager")
    warmup = min(50, steps // 5 + 1)

    def schedule(step: int) -> float:
        done = max(0.0, (step - warmup) / max(1, steps - warmup))
        return min(1.0, (step + 1) / warmup) * (0.51 + 0.49 * math.cos(math.pi * done))

    learned = (p for p in model.parameters() if p.requires_grad)
    return Learner(learned, rate, schedule, clip=1.0, betas=(0.9, 0.98), weight_decay=0.01)


def word_classifiers(model: Model, processor, *words: Sequence[str]) -> list[Tensor]:
    """For each list of words the (fixed) embeddings of the words themselves, scaled, [words, d].

    With them as its classifiers, an image token comes out as the sum of the words that describe
    it, and text can find it from the start.
    """
    encode = processor.tokenizer.encode
    table = model.get_input_embeddings().weight.detach().clone()
    ids = [torch.tensor([encode(f" {word}")[0] for word in names]) for names in words]
    return [8 * table[own] / table[own].square().sum(-1, keepdim=True) for own in ids]


def named(cells: Tensor, classifiers: Sequence[Tensor]) -> list[Tensor]:
    """Logits of each image token over no word, which is a fixed 4, and over a list's words."""
    return [pad(cells @ one.T, (1, 0), value=4.0) for one in classifiers]


def patchify(images: np.ndarray, image_processor) -> Tensor:
    """What the image processor computes, for many images of one size at once.

    Args:
        images: RGB in 0-255, float32 [N, H, W, 3], H and W multiples of 28.

    Returns:
        Pixel values, float32 [N * H/14 * W/14, 3 * 2 * 14 * 14].
    """
    mean, std = np.array(image_processor.image_mean), np.array(image_processor.image_std)
    pixels = ((images / 255.0 - mean) / std).astype(np.float32)
    n, height, width, _ = pixels.shape
    side = CELL // 2
    cells = pixels.reshape(n, height // CELL, 2, side, width // CELL, 2, side, 3)
    cells = cells.transpose(0, 1, 4, 2, 5, 7, 3, 6)  # [N, row, column, 2, 2, RGB, 14, 14]
    still = np.repeat(cells[:, :, :, :, :, :, None], 2, axis=6)  # one frame, twice
    return torch.from_numpy(still.reshape(-1, 3 * 2 * side * side))


def untrained(tokenizer) -> nn.Module:
    """The small model, its weights drawn."""
    model = Qwen2_5_VLForConditionalGeneration(build.build_config(tokenizer))
    model.generation_config = build.build_generation_config(tokenizer)
    return model


def options(told: str, output: Path, vision_steps: int, batch: int) -> argparse.ArgumentParser:
    """The options of a training; the numbers are defaults."""
    parser = argparse.ArgumentParser(description=told)
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vision-steps", type=int, default=vision_steps)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=batch, help="pictures a step")
    parser.add_argument("--rate", type=float, default=2e-3)
    return parser


def recent(course: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means of the last `RECENT` steps; of what some of them lack, over the others."""
    last = course[-RECENT:]
    keys = dict.fromkeys(key for one in last for key in one)
    return {key: float(np.mean([one[key] for one in last if key in one])) for key in keys}


def write_record(given: argparse.Namespace, model: Model, seconds: float, **own) -> None:
    """Write training.json: how the model was trained, and `own`, what came of it."""
    record = {
        "seed": given.seed,
        "vision_steps": given.vision_steps,
        "steps": given.steps,
        "learning_rate": given.rate,
        "seconds": round(seconds),
        **own,
        "parameters": model.num_parameters(),
        "versions": {name: versions()[name] for name in ("python", "torch", "transformers")},
    }
    path = given.output / "training.json"
    path.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
