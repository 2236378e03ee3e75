"""What transformers says will go: heard in the tests, and still steered while it works."""

import logging
import warnings

import pytest
import torch
from tiny import CACHE, batch, generate, shared_model

import vrga
from vrga import VRGAConfig

OLD = "past_key_values"
renamed = pytest.mark.skipif(CACHE == OLD, reason="this version's cache has one name")
GAIN = VRGAConfig.published(gain=3.0)


def steps(model, inputs, tokens, name):
    """Logits of the prompt's end and behind each token, with the cache under this name."""
    out = model(**inputs, use_cache=True)
    cache, logits = out[CACHE], [out.logits[:, -1]]
    place = inputs["input_ids"].shape[1] + model.model.rope_deltas.view(1, 1, 1)
    for i in range(tokens.shape[1]):
        more = {name: cache, "position_ids": (place + i).expand(3, 1, 1), "use_cache": True}
        logits.append(model(input_ids=tokens[:, i : i + 1], **more).logits[:, -1])
    return torch.stack(logits)


@renamed
def test_the_cache_under_its_old_name_is_steered_alike():
    model, inputs = shared_model(), batch([[(4, 5)]])
    tokens = torch.tensor([[7, 8, 9]])
    unsteered = steps(model, inputs, tokens, CACHE)
    with vrga.patch(model, GAIN):
        steered = steps(model, inputs, tokens, CACHE)
        with pytest.warns(FutureWarning, match=OLD):
            assert torch.equal(steps(model, inputs, tokens, OLD), steered)
    assert not torch.allclose(steered[1:], unsteered[1:], atol=1e-2)


@renamed
def test_generate_takes_the_cache_under_both_names():
    from transformers import DynamicCache

    model, inputs = shared_model(), batch([[(4, 5)]])
    with vrga.patch(model, GAIN):
        logits = generate(model, inputs, 4, **{CACHE: DynamicCache()})[1]
        with pytest.warns(FutureWarning, match=OLD):
            assert torch.equal(generate(model, inputs, 4, **{OLD: DynamicCache()})[1], logits)


@renamed
def test_a_deprecation_that_is_logged_is_heard_every_time(deprecations):
    out = shared_model()(**batch([[(4, 5)]]), use_cache=True)
    for _ in range(2):
        logging.Logger.warning_once.cache_clear()
        assert getattr(out, OLD) is out[CACHE]
    assert len(deprecations) == 2 and all(OLD in told for told in deprecations)
    deprecations.clear()


@pytest.mark.parametrize("text", [
    "`x` is deprecated! Use `y` instead!",
    "`x` will be removed in a later release",
    "From v5.25 the entry will NOT be added automatically",
    "a list with one entry per layer from v5.30; Use `y`",
])  # fmt: skip
def test_what_ends_is_heard_in_each_of_its_wordings(deprecations, text):
    logger = logging.getLogger("transformers.models")
    logger.warning("a slow path is taken on v5 of the hardware")
    assert not deprecations
    logger.warning(text)
    assert deprecations == [text]
    deprecations.clear()


def test_warnings_of_names_that_go_are_errors():
    with pytest.raises(FutureWarning, match="goes"):
        warnings.warn("it goes", FutureWarning, stacklevel=1)
    with pytest.raises(DeprecationWarning, match="goes"):
        warnings.warn("it goes", DeprecationWarning, stacklevel=1)
