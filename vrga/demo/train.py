"""Train the embedded model: `python -m vrga.demo.train [--output DIR --seed 0 --steps 900]`.

First the vision tower alone learns to name the letter and colour of every cell; then the whole
model learns to answer and to list. Naming the letter before its colour is what makes this quick:
the letter just written is the key with which attention finds its cell. Some heads are also taught
to look at the cell in question, from the question mark, from <back> and from the answer: see
`LOOKING`.
"""

import argparse
import json
import math
import platform
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from tqdm import trange
from transformers import Qwen2_5_VLForConditionalGeneration

from vrga.demo import build
from vrga.demo.arm import run_arm
from vrga.demo.data import (
    CAPTION,
    CELL,
    COLORS,
    LETTERS,
    PROMPTS,
    TEST_SEEDS,
    TRAIN_SEEDS,
    VALIDATION_SEEDS,
    Sample,
    answer,
    caption,
    make_samples,
)
from vrga.hf.backends import set_backend
from vrga.hf.inputs import TYPES
from vrga.method.back_spans import Phase, tag_table

WEIGHTS = Path(__file__).parent / "weights"
KINDS = {"direct": 0.25, "cot": 0.25, "back": 0.25, "caption": 0.25}  # shares of a batch
OBJECTS = (4, 8)  # letters in an image
CROWDED = (12, 16)  # the same while the vision tower learns alone: more to learn from in each
EMPTY = 0.3  # weight of an empty cell in the loss of the vision tower
# (layer, head): one KV group in each of two middle layers learns to look at what is spoken of, so
# that the model has visual heads that retrieve, as large ones have after training at scale.
LOOKING = tuple((layer, head) for layer in (2, 3) for head in range(4))
LOOKING_WEIGHT = 0.1
LOOKING_SHARE = 0.5  # of a head's attention; beyond it nothing is taught, and steering has room
NOISE = 60.0  # each training image gets Gaussian noise of a strength drawn from [0, NOISE]


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


class Batches:
    """Endless training batches, each of images never drawn before."""

    def __init__(self, processor, size: int, seed: int) -> None:
        self.processor, self.size = processor, size
        self.rng = np.random.default_rng(seed)
        self.next_seed = TRAIN_SEEDS[seed * 1_000_000]
        tokens = processor.tokenizer
        self.ids = {name: tokens.convert_tokens_to_ids(name) for name in build.SPECIAL_TOKENS}
        (self.mark,) = tokens.encode("?")
        self.tags = tag_table(tokens, len(tokens))
        self.letters = {letter: tokens.encode(f" {letter}")[0] for letter in LETTERS}

    def images(self, objects: tuple[int, int]) -> tuple[list[Sample], dict[str, Tensor]]:
        """Samples, and their noisy pixels as keyword arguments for the model."""
        samples = make_samples(self.size, seed=self.next_seed, objects=objects)
        self.next_seed += self.size
        clean = np.stack([np.asarray(s.image) for s in samples]).astype(np.float32)
        sigma = self.rng.uniform(0, NOISE, (self.size, 1, 1, 1)).astype(np.float32)
        noisy = clean + sigma * self.rng.standard_normal(clean.shape, dtype=np.float32)
        rows, columns = samples[0].grid
        return samples, {
            "pixel_values": patchify(noisy.clip(0, 255), self.processor.image_processor),
            "image_grid_thw": torch.tensor([[1, 2 * rows, 2 * columns]]).expand(self.size, 3),
        }

    def conversations(self) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Model arguments of one batch, labels [N, T] and looks [N, T].

        Labels are -100 but on assistant tokens. Looks holds, for "?", for the last token of a
        <back> tag and for every letter of the answer, the position of the image token that shows
        what is spoken of, and -1 elsewhere.
        """
        samples, inputs = self.images(OBJECTS)
        kinds = self.rng.choice(list(KINDS), size=self.size, p=list(KINDS.values()))
        pairs = [self._encode(s, kind) for s, kind in zip(samples, kinds, strict=True)]
        length = max(len(prompt) + len(target) for prompt, target in pairs)
        ids = torch.full((self.size, length), self.ids["<|endoftext|>"])
        labels, looks = torch.full_like(ids, -100), torch.full_like(ids, -1)
        mask = torch.zeros_like(ids)
        for i, (sample, (prompt, target)) in enumerate(zip(samples, pairs, strict=True)):
            start, end = len(prompt), len(prompt) + len(target)
            ids[i, :end] = torch.tensor(prompt + target)
            labels[i, start:end] = torch.tensor(target)
            mask[i, :end] = 1
            image = prompt.index(self.ids["<|image_pad|>"])
            places = {
                self.letters[letter]: image + row * sample.grid[1] + column
                for letter, _, (row, column) in sample.objects
            }
            if self.mark in prompt:
                looks[i, prompt.index(self.mark)] = places[self.letters[sample.letter]]
            for t in range(start, end):
                looks[i, t] = places.get(int(ids[i, t]), -1)
            looks[i, start:end][self._opens(target)] = places[self.letters[sample.letter]]
        types = (ids == self.ids["<|image_pad|>"]).int()
        inputs |= {"input_ids": ids, "attention_mask": mask, TYPES: types}
        return inputs, labels, looks

    def _opens(self, target: list[int]) -> Tensor:
        """Whether each token of a target completes a <back> tag, bool [T]."""
        phase = Phase(self.tags, 1, torch.device("cpu"))
        phase.advance(torch.tensor([target]), 0)
        return phase.opened[0]

    def _encode(self, sample: Sample, kind: str) -> tuple[list[int], list[int]]:
        if kind == "caption":
            text, target = CAPTION, caption(sample)
        else:
            text, target = PROMPTS[kind].format(question=sample.question), answer(sample, kind)
        content = [{"type": "image"}, {"type": "text", "text": text}]
        chat = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        rows, columns = sample.grid
        chat = chat.replace("<|image_pad|>", "<|image_pad|>" * (rows * columns))
        encode = self.processor.tokenizer.encode
        return encode(chat), encode(target + "<|im_end|>")


def train_vision(model: nn.Module, batches: Batches, steps: int) -> float:
    """Teach the vision tower to name each cell's letter and colour; returns the last accuracy.

    The classifiers are the (fixed) embeddings of the words themselves, so that an image token
    comes out as the sum of the two words that describe it, and text can find it from the start.
    """
    encode = batches.processor.tokenizer.encode
    words = [torch.tensor([encode(f" {w}")[0] for w in names]) for names in (LETTERS, COLORS)]
    table = model.get_input_embeddings().weight.detach().clone()
    classifiers = [8 * table[ids] / table[ids].square().sum(-1, keepdim=True) for ids in words]
    weights = [torch.tensor([EMPTY] + [1.0] * len(ids)) for ids in words]
    visual, colors = model.model.visual, list(COLORS)
    optimizer = torch.optim.AdamW(visual.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 20))
    hits = torch.zeros(0)
    for _ in trange(steps, desc="vision", mininterval=10):
        samples, inputs = batches.images(CROWDED)
        rows, columns = samples[0].grid
        labels = torch.zeros(2, len(samples), rows, columns, dtype=torch.long)  # 0: empty cell
        for i, sample in enumerate(samples):
            for letter, color, (row, column) in sample.objects:
                named = [1 + LETTERS.index(letter), 1 + colors.index(color)]
                labels[:, i, row, column] = torch.tensor(named)
        labels = labels.flatten(1)
        cells = visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        logits = [pad(cells @ c.T, (1, 0), value=4.0) for c in classifiers]  # empty: a fixed 4
        loss = sum(map(cross_entropy, logits, labels, weights))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        found = torch.stack([part.argmax(-1) for part in logits]) == labels
        hits = found.all(0)[labels[0] > 0].float()
    return hits.mean().item()


def looking_loss(attentions: tuple[Tensor, ...], looks: Tensor) -> Tensor:
    """Mean of -log(attention on the token to look at), over `LOOKING` heads and their rows.

    Attention above `LOOKING_SHARE` counts as that, so heads are not driven to look nowhere else.

    Args:
        attentions: Per layer, float [N, H, T, T].
        looks: Key position for each row, int [N, T]; -1 where no head need look anywhere.
    """
    rows, queries = (looks >= 0).nonzero(as_tuple=True)
    keys = looks[rows, queries]
    taught = [attentions[layer][rows, head, queries, keys] for layer, head in LOOKING]
    return -torch.stack(taught).clamp(1e-9, LOOKING_SHARE).log().mean()


def train_answers(model: nn.Module, batches: Batches, steps: int, rate: float) -> float:
    """Teach the text model to answer and list; returns the mean loss of its last words."""
    model.model.visual.requires_grad_(False)
    set_backend(model, "eager")  # the only one to return attention
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = min(50, steps // 5 + 1)

    def schedule(step: int) -> float:
        done = max(0.0, (step - warmup) / max(1, steps - warmup))
        return min(1.0, (step + 1) / warmup) * (0.51 + 0.49 * math.cos(math.pi * done))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    spoken, total = [], []
    bar = trange(steps, desc="answers", mininterval=10)
    for _ in bar:
        inputs, labels, looks = batches.conversations()
        output = model.model(**inputs, use_cache=False, output_attentions=True)
        hidden, wanted = output.last_hidden_state[:, :-1], labels[:, 1:]
        loss = cross_entropy(model.lm_head(hidden[wanted >= 0]), wanted[wanted >= 0])
        spoken.append(loss.item())
        loss = loss + LOOKING_WEIGHT * looking_loss(output.attentions, looks)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        scheduler.step()
        total.append(loss.item())
        means = {"words": np.mean(spoken[-20:]), "total": np.mean(total[-20:])}
        bar.set_postfix({k: f"{v:.4f}" for k, v in means.items()}, refresh=False)
    set_backend(model, "sdpa", everywhere=True)
    return float(np.mean(spoken[-20:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vision-steps", type=int, default=100)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--test", type=int, default=512)
    options = parser.parse_args()

    started = time.perf_counter()
    torch.manual_seed(options.seed)
    tokenizer = build.build_tokenizer()
    processor = build.build_processor(tokenizer)
    model = Qwen2_5_VLForConditionalGeneration(build.build_config(tokenizer))
    model.generation_config = build.build_generation_config(tokenizer)
    batches = Batches(processor, options.batch, options.seed)
    vision = train_vision(model, batches, options.vision_steps)
    print(f"cells named right by the vision tower: {vision:.3f}", flush=True)
    loss = train_answers(model, batches, options.steps, options.rate)
    seconds = time.perf_counter() - started
    model.eval()
    build.save(model, processor, options.output)
    results = {}
    for split, seeds in {"validation": VALIDATION_SEEDS, "test": TEST_SEEDS}.items():
        samples = make_samples(options.test, seed=seeds[0])
        for prompt in PROMPTS:
            right = int(run_arm(model, processor, samples, prompt, None).right.sum())
            results[f"{split}_{prompt}"] = {"correct": right, "of": len(samples)}
            print(split, prompt, f"{right} of {len(samples)}", flush=True)
    record = {
        "seed": options.seed,
        "vision_steps": options.vision_steps,
        "steps": options.steps,
        "batch": options.batch,
        "learning_rate": options.rate,
        "seconds": round(seconds),
        "final_loss": round(loss, 5),
        "accuracy": results,
        "parameters": model.num_parameters(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    path = options.output / "training.json"
    path.write_text(json.dumps(record, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
