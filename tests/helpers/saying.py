"""A model made to say certain words, <back> among them."""

import torch
from families import TEXT
from tiny import generate
from transformers import LogitsProcessor

LESS, BACK, MORE, CLOSE_LESS, WORD, STOP = 70, 71, 72, 73, 40, 74
OPENS, SHUTS = [LESS, BACK, MORE], [CLOSE_LESS, BACK, MORE]
# The answer that the tests make the model give, and where it is inside a span after each token.
SAID = [WORD, *OPENS, 41, 42, *SHUTS, 43, *OPENS, 44]
INSIDE = [0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1]


class Words:
    """A tokenizer of a hundred words."""

    added_tokens_encoder: dict = {}

    def __len__(self):
        return TEXT["vocab_size"]

    def convert_ids_to_tokens(self, ids):
        tags = {LESS: "<", BACK: "back", MORE: ">", CLOSE_LESS: "</", STOP: ">."}
        return [tags.get(i, f"w{i}") for i in ids]

    def decode(self, ids, skip_special_tokens=True):
        return " ".join(self.convert_ids_to_tokens(ids))


WORDS = Words()


class Say(LogitsProcessor):
    """Makes the model say certain tokens; its own logits are still given out."""

    def __init__(self, tokens):
        self.tokens, self.step = torch.as_tensor(tokens), 0

    def __call__(self, ids, scores):
        said = self.tokens.expand(len(scores), -1) if self.tokens.ndim == 1 else self.tokens
        forced = torch.full_like(scores, -torch.inf)
        forced.scatter_(1, said[:, self.step : self.step + 1], 0.0)
        self.step += 1
        return forced


def say(model, batch, tokens, **options):
    """Logits [B, T, V] of the model before each of the tokens."""
    length = torch.as_tensor(tokens).shape[-1]
    said, logits = generate(model, batch.inputs, length, logits_processor=[Say(tokens)], **options)
    assert torch.equal(said, torch.as_tensor(tokens).expand(len(said), -1))
    return logits
