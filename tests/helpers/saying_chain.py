"""Words put into the mouth of the untrained model of `untrained`, whose answers may be cut."""

import contextlib

from transformers import LogitsProcessor, LogitsProcessorList
from untrained import untrained


class Script(LogitsProcessor):
    """Each row says the text of its question, wherever its answer goes on amid it, and ends, or
    says what it likes."""

    def __init__(self, scripts, header, end, free):
        self.scripts, self.header, self.end, self.free = scripts, header, end, free

    def __call__(self, ids, scores):
        for row, told in enumerate(ids.tolist()):
            (script,) = [own for asked, own in self.scripts if _last(told, asked) >= 0]
            said = len(told) - _last(told, self.header) - len(self.header)
            wanted = script[said] if said < len(script) else self.end
            if wanted not in (None, self.free):
                scores[row] = -1e9
                scores[row, wanted] = 0
        return scores


def _last(told, part):
    """Where a part stands last in tokens; -1 for nowhere."""
    places = [i for i in range(len(told)) if told[i : i + len(part)] == part]
    return places[-1] if places else -1


@contextlib.contextmanager
def saying(texts, ends=True):
    """Questions are answered by their texts; yields the number of tokens of the longest.

    Args:
        texts: question -> answer; at a * the model says one token of its own.
        ends: whether that is all, or the model goes on as it likes.
    """
    model, processor = untrained()
    encode = processor.tokenizer.encode
    scripts = [(encode(asked), encode(text)) for asked, text in texts.items()]
    end = processor.tokenizer.eos_token_id if ends else None
    (free,) = encode("*")
    script = Script(scripts, encode("<|im_start|>assistant\n"), end, free)
    own = type(model)._get_logits_processor

    def get(self, *args, **kwargs):
        return LogitsProcessorList([*own(self, *args, **kwargs), script])

    model._get_logits_processor = get.__get__(model)
    try:
        yield max(len(text) for _, text in scripts)
    finally:
        del model._get_logits_processor
