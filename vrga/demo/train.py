"""Train the embedded model: `python -m vrga.demo.train [--output DIR --seed 0 --steps 900]`.

First the vision tower alone learns to name the letter and colour of every cell; then the whole
model learns to answer and to list. Naming the letter before its colour is what makes this quick:
the letter just written is the key with which attention finds its cell. Some heads are also taught
to look at the cell in question, from the question mark, from <back> and from the answer: see
`LOOKING`.
"""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import trange

from vrga.annotations import Model
from vrga.demo import build, learning
from vrga.demo.arm import run_arm
from vrga.demo.data import (
    CAPTION,
    COLORS,
    LETTERS,
    PROMPTS,
    TEST_SEEDS,
    VALIDATION_SEEDS,
    Sample,
    answer,
    caption,
    make_samples,
)
from vrga.demo.learning import LOOKING, LOOKING_SHARE, LOOKING_WEIGHT
from vrga.hf.backends import set_backend
from vrga.method.back_spans import BackSpans
from vrga.method.tag_table import tag_table

WEIGHTS = Path(__file__).parent / "weights"
KINDS = {"direct": 0.25, "cot": 0.25, "back": 0.25, "caption": 0.25}  # shares of a batch
OBJECTS = (4, 8)  # letters in an image
CROWDED = (12, 16)  # the same while the vision tower learns alone: more to learn from in each
EMPTY = 0.3  # weight of an empty cell in the loss of the vision tower


class Batches(learning.DrawnBatches):
    """Endless training batches, each of images never drawn before."""

    def __init__(self, processor, size: int, seed: int) -> None:
        super().__init__(processor, size, seed)
        tokens = processor.tokenizer
        self.tags = tag_table(tokens, len(tokens))
        self.letters = {letter: tokens.encode(f" {letter}")[0] for letter in LETTERS}

    def images(self, objects: tuple[int, int]) -> tuple[list[Sample], dict[str, Tensor]]:
        """Samples, and their noisy pixels as keyword arguments for the model."""
        samples = make_samples(self.size, seed=self.next_seed, objects=objects)
        self.next_seed += self.size
        clean = np.stack([np.asarray(s.image) for s in samples]).astype(np.float32)
        sigma = self.rng.uniform(0, learning.NOISE, (self.size, 1, 1, 1)).astype(np.float32)
        noisy = clean + sigma * self.rng.standard_normal(clean.shape, dtype=np.float32)
        rows, columns = samples[0].grid
        return samples, {
            "pixel_values": learning.patchify(noisy.clip(0, 255), self.processor.image_processor),
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
        filled, labels = self.filled(pairs)
        ids, looks = filled["input_ids"], torch.full_like(labels, -1)
        for i, (sample, (prompt, target)) in enumerate(zip(samples, pairs, strict=True)):
            start, end = len(prompt), len(prompt) + len(target)
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
        return inputs | filled, labels, looks

    def _opens(self, target: list[int]) -> Tensor:
        """Whether each token of a target completes a <back> tag, bool [T]."""
        spans = BackSpans(self.tags, 1, torch.device("cpu"))
        spans.advance(torch.tensor([target]), 0)
        return spans.opened[0]

    def _encode(self, sample: Sample, kind: str) -> tuple[list[int], list[int]]:
        if kind == "caption":
            text, target = CAPTION, caption(sample)
        else:
            text, target = PROMPTS[kind].format(question=sample.question), answer(sample, kind)
        return self.encoded([sample.grid], text, target)


def train_vision(model: Model, batches: Batches, steps: int) -> float:
    """Teach the vision tower to name each cell's letter and colour; returns the last accuracy."""
    colors = list(COLORS)
    classifiers = learning.word_classifiers(model, batches.processor, LETTERS, colors)
    weights = [torch.tensor([EMPTY] + [1.0] * len(one)) for one in classifiers]
    visual = model.model.visual
    learner = learning.Learner(
        visual.parameters(), learning.RATE, lambda step: min(1, (step + 1) / 20)
    )
    hits = torch.zeros(0)
    for _ in trange(steps, desc="vision", mininterval=10):
        samples, inputs = batches.images(CROWDED)
        rows, columns = samples[0].grid
        labels = torch.zeros(2, len(samples), rows, columns, dtype=torch.long)  # 0: empty cell
        for i, sample in enumerate(samples):
            for letter, color, (row, column) in sample.objects:
                words = [1 + LETTERS.index(letter), 1 + colors.index(color)]
                labels[:, i, row, column] = torch.tensor(words)
        labels = labels.flatten(1)
        cells = visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        logits = learning.named(cells, classifiers)
        of_letters, of_colors = map(cross_entropy, logits, labels, weights)
        learner.step(of_letters + of_colors)
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


def train_answers(model: Model, batches: Batches, steps: int, rate: float) -> float:
    """Teach the text model to answer and list; returns the mean loss of its last words."""
    learner = learning.answers_learner(model, steps, rate)
    spoken, total = [], []
    bar = trange(steps, desc="answers", mininterval=10)
    for _ in bar:
        inputs, labels, looks = batches.conversations()
        output = model.model(**inputs, use_cache=False, output_attentions=True)
        hidden, wanted = output.last_hidden_state[:, :-1], labels[:, 1:]
        loss = cross_entropy(model.lm_head(hidden[wanted >= 0]), wanted[wanted >= 0])
        spoken.append(loss.item())
        loss = loss + LOOKING_WEIGHT * looking_loss(output.attentions, looks)
        learner.step(loss)
        total.append(loss.item())
        means = {"words": np.mean(spoken[-20:]), "total": np.mean(total[-20:])}
        bar.set_postfix({k: f"{v:.4f}" for k, v in means.items()}, refresh=False)
    set_backend(model, "sdpa", everywhere=True)
    return float(np.mean(spoken[-20:]))


def main() -> None:
    parser = learning.options(__doc__.splitlines()[0], WEIGHTS, vision_steps=100, batch=48)
    parser.add_argument("--test", type=int, default=512)
    given = parser.parse_args()

    started = time.perf_counter()
    torch.manual_seed(given.seed)
    tokenizer = build.build_tokenizer()
    processor = build.build_processor(tokenizer)
    model = learning.untrained(tokenizer)
    batches = Batches(processor, given.batch, given.seed)
    vision = train_vision(model, batches, given.vision_steps)
    print(f"cells named right by the vision tower: {vision:.3f}", flush=True)
    loss = train_answers(model, batches, given.steps, given.rate)
    seconds = time.perf_counter() - started
    model.eval()
    build.save(model, processor, given.output)
    results = {}
    for split, seeds in {"validation": VALIDATION_SEEDS, "test": TEST_SEEDS}.items():
        samples = make_samples(given.test, seed=seeds[0])
        for prompt in PROMPTS:
            right = int(run_arm(model, processor, samples, prompt, None).right.sum())
            results[f"{split}_{prompt}"] = {"correct": right, "of": len(samples)}
            print(split, prompt, f"{right} of {len(samples)}", flush=True)
    learning.write_record(
        given, model, seconds, batch=given.batch, final_loss=round(loss, 5), accuracy=results
    )


if __name__ == "__main__":
    main()
