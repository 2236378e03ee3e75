"""Train the model for `fine`: `python -m vrga.demo.fine.train [--output DIR --seed 0]`.

First the vision tower alone learns to name the letter and the card's colour in every token, of
overviews and of crops; letters in overviews as well, which it cannot, so that what follows does
not rest on its having never tried. Then the text model learns to answer, in three courses. The
first is of all that it will be asked: the overview alone, a larger picture alone, and the overview
with crops of the original; it learns to read crops there, and hardly to find. The second is of one
picture alone, where the places of cards are what there is to learn, until heads look at them: when
they begin to differs much from one training to the next. The third is of all again. Some heads are
taught to look, from the question mark to the card and from the answer's colour to its letter, as in
`vrga.demo.train`.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import trange

from vrga.annotations import Model
from vrga.demo import build, learning
from vrga.demo.data import LETTERS
from vrga.demo.fine.batches import FineBatches
from vrga.demo.fine.cards import CARDS
from vrga.demo.fine.data import sentences
from vrga.demo.fine.grounds import GRID
from vrga.demo.fine.settings import FINDING
from vrga.demo.learning import LOOKING, LOOKING_SHARE, LOOKING_WEIGHT
from vrga.hf.backends import set_backend
from vrga.hf.checkpoints import load

WEIGHTS = Path(__file__).parent / "weights"
EMPTY = 0.1  # weight of a token without a letter in the loss of the vision tower
COARSE = 0.3  # weight of letters in overviews, where they cannot be told
# Weights of the letters in the loss of the answers: those that a crop shows, and those that can
# only be guessed, whose gradients are mostly noise.
READ, GUESSED = 4.0, 0.25
FOUND = 0.2  # the heads' loss at which they look at the cards


def train_vision(model: Model, batches: FineBatches, steps: int) -> dict[str, float]:
    """Teach the vision tower to name each token's letter and colour; the last accuracies."""
    classifiers = learning.word_classifiers(model, batches.processor, LETTERS, list(CARDS))
    visual = model.model.visual

    def schedule(step: int) -> float:
        return min(1, (step + 1) / 20, 0.05 + 2 * (1 - step / steps))

    learner = learning.Learner(visual.parameters(), learning.RATE, schedule)
    course: list[dict[str, float]] = []
    bar = trange(steps, desc="vision", mininterval=10)
    for _ in bar:
        inputs, labels, fine = batches.cells()
        cells = visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        cells = torch.cat(list(cells)) if isinstance(cells, (tuple, list)) else cells
        logits = learning.named(cells, classifiers)
        some = labels[0] > 0
        weight = torch.where(some, 1.0, EMPTY)
        losses = [
            cross_entropy(x, y, reduction="none") for x, y in zip(logits, labels, strict=True)
        ]
        letter = weight * torch.where(fine | ~some, 1.0, COARSE)
        loss = (losses[0] * letter).sum() / letter.sum()
        learner.step(loss + (losses[1] * weight).sum() / weight.sum())
        hit = [part.argmax(-1) == label for part, label in zip(logits, labels, strict=True)]
        course.append({
            "crop_letters": hit[0][some & fine].float().mean().item(),
            "overview_letters": hit[0][some & ~fine].float().mean().item(),
            "crop_colors": hit[1][some & fine].float().mean().item(),
            "overview_colors": hit[1][some & ~fine].float().mean().item(),
            "empty": (hit[0] & hit[1])[~some].float().mean().item(),
        })  # fmt: skip
        bar.set_postfix({k: f"{v:.3f}" for k, v in learning.recent(course).items()}, refresh=False)
    return learning.recent(course)


def looking_loss(attentions: tuple[Tensor, ...], looks: Tensor) -> Tensor:
    """Mean of -log(attention on the tokens to look at), over `LOOKING` heads and all looks.

    Attention above `LOOKING_SHARE`, divided among a query's looks, counts as that.

    Args:
        attentions: per layer, float [N, H, T, T].
        looks: see `FineBatches.conversations`.
    """
    rows, queries, keys, among = looks.T
    taught = [attentions[layer][rows, head, queries, keys] for layer, head in LOOKING]
    found = torch.stack(taught) * among / LOOKING_SHARE
    return -found.clamp(1e-9, 1.0).log().mean()


def train_answers(
    model: Model, batches: FineBatches, steps: int, rate: float, keep, finding: bool = False
) -> tuple[dict[str, float], int]:
    """Teach the text model to answer; the last shares of letters that it gets right, and the steps.

    Args:
        steps: how many; with `finding`, the most.
        keep: called every 200 steps, to save what there is.
        finding: of one picture alone, until the heads find the cards in it.

    Raises:
        SystemExit: they do not, after all steps.
    """
    learner = learning.answers_learner(model, steps, rate)
    encode = batches.processor.tokenizer.encode
    letters = torch.tensor([encode(f" {letter}")[0] for letter in LETTERS])
    course: list[dict[str, float]] = []
    bar = trange(steps, desc="finding" if finding else "answers", mininterval=10)
    for step in bar:
        inputs, labels, looks, kinds = batches.conversations(finding)
        output = model.model(**inputs, use_cache=False, output_attentions=True)
        wanted = labels[:, 1:]
        hidden = output.last_hidden_state[:, :-1]
        logits = model.lm_head(hidden[wanted >= 0])
        asked, own = torch.isin(wanted, letters), np.array(kinds)
        shown = torch.from_numpy(own == "closer")[:, None]
        weight = torch.where(asked, torch.where(shown, READ, GUESSED), 1.0)[wanted >= 0]
        words = cross_entropy(logits, wanted[wanted >= 0], reduction="none")
        words = (words * weight).sum() / weight.sum()
        look = looking_loss(output.attentions, looks)
        learner.step(words + LOOKING_WEIGHT * look)
        right = torch.zeros_like(wanted, dtype=torch.bool)
        right[wanted >= 0] = logits.argmax(-1) == wanted[wanted >= 0]
        told = {"words": words.item(), "look": look.item()}
        for kind in ("once", "larger", "closer", "elsewhere"):
            rows = torch.from_numpy(own == kind)
            if rows.any():
                told[kind] = right[rows][asked[rows]].float().mean().item()
        course.append(told)
        last = learning.recent(course)
        bar.set_postfix({k: f"{v:.3f}" for k, v in last.items()}, refresh=False)
        if step % 200 == 199:
            keep()
        if finding and len(course) >= learning.RECENT and last["look"] < FOUND:
            bar.close()
            break
    else:
        if finding:
            raise SystemExit(
                f"the heads do not find the cards after {steps} steps (their loss is "
                f"{last['look']:.2f}, and {FOUND} is what finds); "
                "give more --find-steps or another --seed"
            )
    set_backend(model, "sdpa", everywhere=True)
    return last, len(course)


def main() -> None:
    parser = learning.options(__doc__.splitlines()[0], WEIGHTS, vision_steps=500, batch=16)
    parser.set_defaults(steps=900)
    parser.add_argument("--read-steps", type=int, default=800, help="of the answers' first course")
    parser.add_argument(
        "--find-steps", type=int, default=1000, help="of one picture alone, at most"
    )
    parser.add_argument("--start", type=Path, help="only to find and answer, of this checkpoint")
    given = parser.parse_args()

    started = time.perf_counter()
    torch.manual_seed(given.seed)
    tokenizer = build.build_tokenizer(sentences())
    processor = build.build_processor(tokenizer, GRID[0] * GRID[1])
    model = learning.untrained(tokenizer)
    batches = FineBatches(processor, given.batch, given.seed)
    vision = None
    if given.start is None:
        vision = train_vision(model, batches, given.vision_steps)
        print("vision tower:", vision, flush=True)
        build.save(model, processor, given.output, FINDING)
    else:
        model, processor = load(given.start, dtype=torch.float32)
        batches.next_seed += 500_000  # pictures that it was not trained on before

    def keep() -> None:
        build.save(model, processor, given.output, FINDING)

    if given.start is None:
        train_answers(model, batches, given.read_steps, given.rate, keep)
    _, found = train_answers(model, batches, given.find_steps, given.rate, keep, finding=True)
    letters, _ = train_answers(model, batches, given.steps, given.rate, keep)
    seconds = time.perf_counter() - started
    model.eval()
    keep()
    print("letters:", letters, flush=True)
    learning.write_record(
        given, model, seconds, pictures_a_step=given.batch, read_steps=given.read_steps,
        find_steps=found, vision_tower=vision, letters=letters,
        start=None if given.start is None else given.start.name,
    )  # fmt: skip


if __name__ == "__main__":
    main()
