"""Train the model for `chain`: `python -m vrga.demo.chain.train [--output DIR --seed 0]`.

It begins with the model for `fine`, which finds cards and reads crops, and a few words more. The
text model learns to answer in steps: from small pictures that it can read, and from large ones with
crops of the first card, or of both. Asked for it, and then alone, it writes <back> before it tells
a letter. Some heads are taught to look, as in `vrga.demo.fine.train`.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import trange

from vrga.annotations import Model
from vrga.demo import build, learning
from vrga.demo.chain.batches import ChainBatches
from vrga.demo.chain.data import sentences
from vrga.demo.fine.data import sentences as fine_sentences
from vrga.demo.fine.grounds import GRID
from vrga.demo.fine.settings import FINDING
from vrga.demo.fine.train import looking_loss
from vrga.demo.learning import LOOKING_WEIGHT
from vrga.hf.backends import set_backend
from vrga.hf.checkpoints import load

WEIGHTS = Path(__file__).parent / "weights"


def with_words(model: Model, old, new) -> Model:
    """A model with the words of another tokenizer: words that it knows keep their embeddings.

    Args:
        old: tokenizer of the model; new: wanted.
    """
    made = learning.untrained(new)
    known, state = old.get_vocab(), model.state_dict()
    name = next(name for name in state if name.endswith("embed_tokens.weight"))
    table = made.state_dict()[name].clone()
    for word, place in new.get_vocab().items():
        if word in known:
            table[place] = state[name][known[word]]
    # The output layer has no weights of its own: it is tied to the embeddings.
    sized = {key: table if own.shape == state[name].shape else own for key, own in state.items()}
    made.load_state_dict(sized)
    return made


def train_chains(
    model: Model, batches: ChainBatches, steps: int, rate: float, keep
) -> dict[str, float]:
    """Teach the text model; the means of the last steps.

    Args:
        keep: called every 100 steps, to save what there is.
    """
    learner = learning.answers_learner(model, steps, rate)
    course: list[dict[str, float]] = []
    bar = trange(steps, desc="chains", mininterval=10)
    for step in bar:
        batch = batches.batch()
        output = model.model(**batch.inputs, use_cache=False, output_attentions=True)
        wanted = batch.labels[:, 1:]
        told = wanted >= 0
        logits = model.lm_head(output.last_hidden_state[:, :-1][told])
        weight = batch.weights[:, 1:][told]
        words = cross_entropy(logits, wanted[told], reduction="none")
        words = (words * weight).sum() / weight.sum()
        look = looking_loss(output.attentions, batch.looks)
        learner.step(words + LOOKING_WEIGHT * look)
        hit = logits.argmax(-1) == wanted[told]
        read = batch.read[:, 1:][told]
        course.append({
            "words": words.item(), "look": look.item(), "read": hit[read].float().mean().item(),
        })  # fmt: skip
        bar.set_postfix({k: f"{v:.3f}" for k, v in learning.recent(course).items()}, refresh=False)
        if step % 100 == 99:
            keep()
    set_backend(model, "sdpa", everywhere=True)
    return learning.recent(course)


def main() -> None:
    parser = learning.options(__doc__.splitlines()[0], WEIGHTS, vision_steps=0, batch=8)
    given = parser.parse_args()
    started = time.perf_counter()
    torch.manual_seed(given.seed)
    fine, old = load("fine", dtype=torch.float32)
    tokenizer = build.build_tokenizer(fine_sentences() + sentences())
    processor = build.build_processor(tokenizer, GRID[0] * GRID[1])
    model = with_words(fine, old.tokenizer, tokenizer)
    batches = ChainBatches(processor, given.batch, given.seed)

    def keep() -> None:
        build.save(model, processor, given.output, FINDING)

    letters = train_chains(model, batches, given.steps, given.rate, keep)
    model.eval()
    keep()
    seconds = time.perf_counter() - started
    learning.write_record(
        given, model, seconds, pictures_a_step=given.batch, letters=letters, start="fine"
    )


if __name__ == "__main__":
    main()
