"""A trace of tokens that were drafted is that of the same tokens one by one."""

import copy

import pytest
import torch
from families import FAMILIES
from saying import WORDS
from tiny import tiny_model
from traces import CLOSE, Letters, assert_same
from windowed import windowed

import vrga
from vrga import VRGAConfig

pytestmark = pytest.mark.slow

QWEN = FAMILIES["qwen2_5_vl"]
TOKENS = 14


def recorded(model, inputs, config, **how):
    """A trace, the tokens, and the number of queries of each pass."""
    widths = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    options = dict(maps="visual", layer_maps=True) | how.pop("options", {})
    try:
        with vrga.patch(model, config, tokenizer=WORDS) as patch, patch.record(**options) as trace:
            out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, **how)
    finally:
        hook.remove()
    assert trace.inside is not None
    return trace, out[:, inputs["input_ids"].shape[1] :], widths


CONFIGS = {
    "off": VRGAConfig.published(gain=1.0),
    "steered": VRGAConfig.published(gain=1.2),
    "inside": VRGAConfig.published(gain=1.2, when="back"),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("helper", ["itself", "another"])
@pytest.mark.parametrize("window", [None, 12], ids=["whole", "window"])
def test_an_assistants_tokens_are_traced_one_by_one(config, helper, window):
    model = QWEN.shared if window is None else windowed(window)
    inputs = QWEN.batch([1]).inputs
    assistant = copy.deepcopy(model) if helper == "itself" else tiny_model(layers=1, seed=5)
    wanted, tokens, _ = recorded(model, inputs, config)
    found, same, widths = recorded(model, inputs, config, assistant_model=assistant)
    assert torch.equal(tokens, same) and max(widths[1:]) > 1
    if helper == "another":
        assert sum(widths[1:]) > TOKENS - 1  # drafts were rejected
    assert wanted.steps.tolist() == list(range(tokens.shape[1] - 1))
    assert_same(found, wanted)


@pytest.mark.parametrize("config", [CONFIGS["off"], VRGAConfig.paper(gain=1.05)],
                         ids=["off", "known gate"])  # fmt: skip
@pytest.mark.parametrize("drafts", [1, 4])
def test_drafts_behind_the_prompt_are_traced_one_by_one(drafts, config):
    """The text that is looked up: some of it is said again, and some is not. With a known gate
    passes of drafts are measured at once, and those of one token later."""
    model, batch = QWEN.shared, QWEN.batch([1], seed=4)
    said = recorded(model, batch.inputs, config)[1][0].tolist()
    row = [*batch.rows[0][:-1], [*said, *batch.rows[0][-1], said[0]]]
    inputs = QWEN.assemble([row]).inputs
    chosen = dict(steps=range(1, 100, 2))
    whole, tokens, _ = recorded(model, inputs, config)
    looked_up = dict(prompt_lookup_num_tokens=drafts, max_matching_ngram_size=1)
    found, same, widths = recorded(model, inputs, config, **looked_up)
    assert torch.equal(tokens, same)
    assert widths[1] == drafts and sum(widths[1:]) > TOKENS - 1  # some of them were rejected
    assert_same(found, whole)
    part = recorded(model, inputs, config, options=chosen, **looked_up)[0]
    assert part.steps.tolist() == whole.steps.tolist()[1::2]
    torch.testing.assert_close(part.image, whole.image[1::2], **CLOSE)
    torch.testing.assert_close(part.maps.float(), whole.maps[1::2].float(), **CLOSE)
    found.attach(Letters())
    assert found.texts == [[f"<{token}>" for token in tokens[0].tolist()]]


def test_drafts_behind_the_end_of_the_answer_are_not_traced():
    model, inputs, config = QWEN.shared, QWEN.batch([1]).inputs, CONFIGS["off"]
    last = int(recorded(model, inputs, config)[1][0, 6])
    assistant = copy.deepcopy(model)
    assistant.generation_config.num_assistant_tokens = TOKENS
    how = dict(eos_token_id=last, assistant_model=assistant)
    found, tokens, widths = recorded(model, inputs, config, **how)
    assert tokens.shape[1] == 7 and sum(widths[1:]) > 6
    assert found.steps.tolist() == [0, 1, 2, 3, 4, 5]


def test_drafts_that_are_not_steered_are_not_traced():
    """The released code steers passes of a single query alone."""
    model, inputs = QWEN.shared, QWEN.batch([1]).inputs
    assistant = tiny_model(layers=1, seed=5)
    config = VRGAConfig.released(gain=1.0)
    whole, tokens, _ = recorded(model, inputs, config)
    found, same, widths = recorded(model, inputs, config, assistant_model=assistant)
    assert torch.equal(tokens, same)
    steps = found.steps.tolist() if found.image is not None else []
    assert len(steps) <= widths[1:].count(1) < TOKENS - 1
    torch.testing.assert_close(found.image, whole.image[steps], **CLOSE)
    assert torch.equal(found.inside, whole.inside[steps])
