"""Ways of generating: compiled, watched pass by pass, by hand."""

from contextlib import contextmanager

import torch
from transformers import CompileConfig

from vrga.hf.cache import cache_in

COMPILED = CompileConfig(fullgraph=True, dynamic=False, mode=None, backend="aot_eager")
COMPILED._compile_all_devices = True  # generate() compiles on a GPU alone otherwise


@contextmanager
def passes(model):
    """Collects the keyword arguments of the text model's forward passes."""
    seen = []

    def note(module, args, kwargs):
        seen.append(kwargs)

    handle = model.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def cache_name(model):
    from vrga.hf.host import Host

    return Host(model).cache_name


@torch.no_grad()
def loop(model, inputs, steps, **more):
    """A loop by hand: logits of each step."""
    out = model(**inputs, use_cache=True, **more)
    found, cache = [out.logits[:, -1]], cache_in(out)
    for _ in range(steps - 1):
        token = found[-1].argmax(-1, keepdim=True)
        out = model(input_ids=token, use_cache=True, **{cache_name(model): cache})
        found.append(out.logits[:, -1])
    return torch.stack(found, 1)
