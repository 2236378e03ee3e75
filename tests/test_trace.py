"""What a trace says of every step: image, region, question, generated text, <back> spans."""

import pytest
import torch
from families import FAMILIES
from test_back import INSIDE, SAID, WORDS, say
from tiny import EOS, IMAGE, generate

import vrga
from vrga import VRGAConfig
from vrga.plots import save, trend_figure

QWEN = FAMILIES["qwen2_5_vl"]


@pytest.fixture
def model():
    return QWEN.shared


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_shares_are_those_of_the_attention_matrices(model, impl):
    batch = QWEN.batch([1, 2])
    with vrga.patch(model, VRGAConfig(gain=1.0), impl=impl) as patch:
        with patch.record() as trace:
            tokens = generate(model, batch.inputs, 5)[0]
    own = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation({"text_config": "eager"})
    try:
        out = model.generate(**batch.inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False,
                             output_attentions=True, return_dict_in_generate=True)  # fmt: skip
    finally:
        model.set_attn_implementation({"text_config": own})
    ids = batch.inputs["input_ids"]
    length = ids.shape[1]
    assert torch.equal(out.sequences[:, length:], tokens)
    for row in range(2):
        image = ids[row] == IMAGE
        question = torch.zeros(length, dtype=torch.bool)
        last = int(image.nonzero().max()) + 2  # behind the closing marker
        question[last : batch.query[row] + 1] = True
        assert int((ids[row] == EOS).nonzero().max()) == batch.query[row] + 1
        for step in range(4):
            for layer in range(3):
                a = out.attentions[step + 1][layer][row, :, 0]
                wanted = {
                    "image": a[:, :length][:, image].sum(-1),
                    "question": a[:, :length][:, question].sum(-1),
                    "prompt": a[:, :length][:, ~image & ~question].sum(-1),
                    "generated": a[:, length:].sum(-1),
                    "spread": torch.distributions.Categorical(a[:, :length][:, image]).entropy(),
                }
                for name, value in wanted.items():
                    found = getattr(trace, name)[step, layer, row]
                    torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-5)


def test_shares_after_steering_add_up(model):
    batch = QWEN.batch([1, 2])
    with vrga.patch(model, VRGAConfig(gain=1.0)) as patch:
        with patch.record() as before:
            generate(model, batch.inputs, 3)
        patch.config = VRGAConfig(gain=4.0)
        with patch.record() as after:
            generate(model, batch.inputs, 3)
    for trace in (before, after):
        total = trace.image + trace.question + trace.prompt + trace.generated
        torch.testing.assert_close(total, torch.ones_like(total))
        assert (trace.region <= trace.image + 1e-6).all()
    # The first layer of the first step sees the same input: shares are reweighted exactly.
    for name, factor in (("region", 4.0), ("question", 1.0), ("generated", 1.0)):
        opened = after.gate[0, 0] > 0
        assert opened.any()
        norm = 1 + 3 * before.region[0, 0]
        wanted = getattr(before, name)[0, 0] * factor / norm
        torch.testing.assert_close(getattr(after, name)[0, 0][opened], wanted[opened])


def test_watched_cells_take_the_place_of_the_text(model):
    batch = QWEN.batch([1])
    cells = [[torch.rand(3, 4) < 0.5]]
    with vrga.patch(model) as patch, patch.record(watch=cells) as trace:
        generate(model, batch.inputs, 3)
    assert trace.watched is not None and trace.question is None
    with pytest.raises(ValueError, match="without watch"):
        trend_figure(trace)


def test_the_trend_shades_back_spans(model, tmp_path):
    batch = QWEN.batch([1, 2])
    with vrga.patch(model, VRGAConfig(gain=3.0, when="back"), tokenizer=WORDS) as patch:
        with patch.record() as trace:
            say(model, batch, SAID)
        figure = trend_figure(trace, 1, heads=patch.region[1].visual)
    assert trace.inside.tolist() == [[bool(x)] * 2 for x in INSIDE[:-1]]
    axis = figure.axes[0]
    assert [line.get_label() for line in axis.lines] == ["image", "region", "question", "generated"]
    shaded = [(p.get_x(), p.get_x() + p.get_width()) for p in axis.patches]
    assert shaded == [(3.5, 8.5), (12.5, 13.5)]  # tokens 4 to 8, and 13
    assert save(figure, tmp_path / "trend.png").stat().st_size > 0
    with vrga.patch(model) as patch, patch.record() as trace:
        generate(model, batch.inputs, 3)
    assert trace.inside is None and not trend_figure(trace).axes[0].patches
