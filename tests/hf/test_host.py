"""What a version of transformers calls things is found at patch(); what is not found is told."""

import copy
import types
import warnings

import pytest
import torch
from families import FAMILIES
from tiny import batch, generate, tiny_model
from transformers import DynamicCache

import vrga
from vrga import VRGAConfig
from vrga.hf import host, versions
from vrga.hf.cache import NAMES, KeyCache, cache_in

GAIN = VRGAConfig.published(gain=3.0)


def renamed(module, name, **fixed):
    """Make a module's forward() call its cache something else, as a release might."""
    own = module.forward

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, memory=None,
                inputs_embeds=None, use_cache=None, **kwargs):  # fmt: skip
        return own(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{name: memory},
            **kwargs,
        )

    module.forward = types.MethodType(forward, module)


@pytest.mark.parametrize("part", ["model", "model.model", "model.model.language_model"])
def test_a_model_that_calls_its_cache_something_else_is_refused(part):
    model = tiny_model()
    module = {"model": model, "model.model": model.model}.get(part, model.model.language_model)
    renamed(module, host.Host(model).cache_name)
    before = dict(vars(model)), model.config.text_config._attn_implementation
    told = r"transformers \d.*no key cache under a known name \(cache, past_key_values\).*memory"
    with pytest.raises(ValueError, match=told):
        vrga.patch(model)
    assert (dict(vars(model)), model.config.text_config._attn_implementation) == before


def test_two_names_on_the_way_are_refused(monkeypatch):
    """What one module calls `cache` the next one calls by its old name: it could get lost."""
    model = tiny_model()
    name = host.Host(model).cache_name
    other = next(n for n in NAMES if n != name)
    own = host._parameters

    def parameters(module):
        found = dict(own(module))
        if module is model.model.language_model:
            found[other] = found.pop(name)
        return found

    monkeypatch.setattr(host, "_parameters", parameters)
    with pytest.raises(ValueError, match="several names.*'cache' in|several names.*in Qwen"):
        vrga.patch(model)


@pytest.mark.parametrize("name", ["set_attn_implementation", "_prepare_generation_config"])
def test_a_method_that_a_version_lacks_is_named(name, monkeypatch):
    class Without(type(tiny_model())):
        def __getattribute__(self, asked):
            if asked == name:
                raise AttributeError(asked)
            return super().__getattribute__(asked)

    model = tiny_model()
    model.__class__ = Without
    with pytest.raises(ValueError, match=rf"transformers \d.* has no .*{name}.*vrga doctor"):
        vrga.patch(model)


def test_a_part_that_a_version_lacks_is_named(monkeypatch):
    from dataclasses import replace

    from vrga.hf import families

    moved = replace(families.FAMILIES["qwen2_5_vl"], text="decoder")
    monkeypatch.setitem(families.FAMILIES, "qwen2_5_vl", moved)
    with pytest.raises(ValueError, match="has no Qwen2_5_VLModel.decoder"):
        vrga.patch(tiny_model())


def test_attention_layers_without_numbers_are_told():
    model = tiny_model()
    del model.model.language_model.layers[1].self_attn.layer_idx
    for module in model.model.language_model.modules():
        if getattr(module, "layer_idx", None) == 1:
            del module.layer_idx
    with pytest.raises(ValueError, match="layer_idx"):
        vrga.patch(model)


def test_an_output_without_a_cache_under_a_known_name_is_an_error():
    """Not: "no cache"."""
    model, inputs = tiny_model(), batch([[(6, 6)]])

    def rename(module, args, kwargs, output):
        return types.SimpleNamespace(last_hidden_state=output.last_hidden_state, memory=1)

    model.model.language_model.register_forward_hook(rename, with_kwargs=True)
    with vrga.patch(model), pytest.raises(RuntimeError, match="no key cache under a known name"):
        generate(model, inputs, 3)


def names(model):
    """Those by which this version's forward() takes a cache."""
    if "cache" in host._parameters(model.model):
        return ["cache", "past_key_values"]
    return ["past_key_values"]


@pytest.mark.filterwarnings("ignore:.*past_key_values.*")
@torch.no_grad()
def test_a_cache_is_taken_by_every_name_that_the_version_takes():
    model, inputs = tiny_model(), batch([[(6, 6)]])
    plain, found = None, {}
    for name in names(model):
        with vrga.patch(model, GAIN) as patch:
            held = DynamicCache(config=model.config.get_text_config())
            out, logits = model(**inputs, **{name: held}, use_cache=True), []
            for i in range(3):
                out = model(input_ids=torch.tensor([[40 + i]]), use_cache=True,
                            **{name: cache_in(out)})  # fmt: skip
                logits.append(out.logits)
            assert patch.steps[0].steered == 3
            found[name] = torch.cat(logits, 1)
            again = DynamicCache(config=model.config.get_text_config())
            generate(model, inputs, 4, **{name: again})
            assert patch.steps[0].steered == 3
        plain = found[name] if plain is None else plain
        assert torch.equal(found[name], plain)


def test_a_cache_that_is_none_of_transformers_is_refused():
    model, inputs = tiny_model(), batch([[(6, 6)]])
    legacy = tuple((torch.zeros(1, 2, 4, 16),) * 2 for _ in range(3))
    with vrga.patch(model), pytest.raises(ValueError, match="is a tuple.*DynamicCache"):
        model(**inputs, **{names(model)[0]: legacy}, use_cache=True)


def test_a_copied_cache_is_another_prompts():
    """Its keys are there, but what was found belongs to the first: nothing is shared in silence."""
    model, inputs = tiny_model(), batch([[(6, 6)]])
    with vrga.patch(model, GAIN), torch.no_grad():
        held = cache_in(model(**inputs, use_cache=True))
        assert KeyCache(held).run is not None and KeyCache(copy.deepcopy(held)).run is None
        with pytest.raises(ValueError, match="has not seen"):
            model(input_ids=torch.tensor([[7]]), **{names(model)[0]: copy.deepcopy(held)})


def test_a_run_ends_with_its_cache():
    """The state of a prompt holds no keys: a cache is gone when its owner lets go of it."""
    import gc
    import weakref

    model, inputs = tiny_model(), batch([[(6, 6)]])
    with vrga.patch(model, GAIN) as patch, torch.no_grad():
        out = model(**inputs, use_cache=True)
        gone = weakref.ref(cache_in(out))
        del out
        gc.collect()
        assert gone() is None and patch.region[0].mask.any()


@pytest.mark.parametrize(("version", "told"), [("99.1.0", True), ("99.1.0.dev0", True),
                                               ("5.10.4", False)])  # fmt: skip
def test_a_version_newer_than_the_newest_tested_is_told_once(version, told, monkeypatch):
    monkeypatch.setattr(versions.transformers, "__version__", version)
    versions.warn_if_untested.cache_clear()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for _ in range(2):
            vrga.patch(FAMILIES["llava"].shared).remove()
    heard = [str(w.message) for w in heard if "vrga doctor" in str(w.message)]
    assert len(heard) == told
    assert not told or f"transformers {version} is newer" in heard[0]
    versions.warn_if_untested.cache_clear()
