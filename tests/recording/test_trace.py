"""What a trace says of every step: image, region, question, generated text, <back> spans."""

import json
import sys
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import FAMILIES
from PIL import Image
from safetensors.torch import load_file, save_file
from saying import INSIDE, SAID, WORDS, say
from tiny import EOS, IMAGE, generate
from traces import Letters, filled_trace

import vrga
from vrga import Trace, VRGAConfig
from vrga.kernels.reference import attention_statistics, decode_attention_reference, key_sets
from vrga.method.key_groups import KeyGroups
from vrga.method.timeline import Relocation, Timeline
from vrga.plots import save, trend_figure
from vrga.recording.meter import Meter
from vrga.recording.recorder import Recorder
from vrga.recording.row_images import fitted
from vrga.recording.token_texts import back_spans, token_texts
from vrga.recording.trace import MEASURES

QWEN = FAMILIES["qwen2_5_vl"]


@pytest.fixture
def model():
    return QWEN.shared


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_shares_and_maps_are_those_of_the_attention_matrices(model, impl):
    batch = QWEN.batch([1, 2])
    chosen = [(0, 3), (2, 0), (2, 1)]
    with vrga.patch(model, VRGAConfig.published(gain=1.0), impl=impl) as patch:
        with patch.record(maps=chosen, layer_maps=True) as trace:
            tokens = generate(model, batch.inputs, 5)[0]
    assert trace.heads.tolist() == [list(pair) for pair in chosen]
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
                on_image, tokens_of = a[:, :length][:, image], int(image.sum())
                found = trace.layer_maps[step, layer, row].float()
                torch.testing.assert_close(
                    found[:tokens_of], on_image.mean(0), rtol=2e-3, atol=1e-5
                )
                assert (found[tokens_of:] == 0).all()
                for number, (i, head) in enumerate(chosen):
                    if i == layer:
                        found = trace.maps[step, number, row, :tokens_of].float()
                        torch.testing.assert_close(found, on_image[head], rtol=2e-3, atol=1e-5)


def test_shares_after_steering_add_up(model):
    batch = QWEN.batch([1, 2])
    with vrga.patch(model, VRGAConfig.published(gain=1.0)) as patch:
        with patch.record() as before:
            generate(model, batch.inputs, 3)
        patch.config = VRGAConfig.published(gain=4.0)
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
    with vrga.patch(model, VRGAConfig.published(gain=3.0, when="back"), tokenizer=WORDS) as patch:
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


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("heads", [(8, 2), (7, 1)], ids=str)
def test_statistics_without_an_output_are_those_with_one(heads, rows, static):
    g = torch.Generator().manual_seed(0)
    q = 3 * torch.randn(2, heads[0], rows, 16, generator=g)
    k, v = torch.randn(2, 2, heads[1], 63, 16, generator=g)
    image = torch.arange(63) % 63 < 40
    flags = (torch.randint(0, 4, (2, 63), generator=g) << 1 | image).int()
    flags[1, :5] = -1
    extent = torch.tensor([[0, 63, 63], [5, 63, 58]], dtype=torch.int32)
    images = torch.tensor([40, 35], dtype=torch.int32)
    gate = torch.rand(2, heads[0], generator=g) < 0.5 if static else None
    wanted, found = torch.full((2, 2, heads[0], rows, 7), torch.nan)
    numbers = dict(scale=0.25, focus=0.6, entropy=0.2, gate=gate)
    weights = (1.0, 2.0, 1.0, 1.0), (1.0,) * 4
    decode_attention_reference(
        q, k, v, flags, images, opened=weights[0], closed=weights[1], extent=extent, stats=wanted,
        **numbers,
    )  # fmt: skip
    sets = key_sets(flags, extent, 63, rows, *weights, torch.float32)
    attention_statistics(q, k, images, sets, found, **numbers)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert 0 < wanted[..., 2].mean() < 1
    torch.testing.assert_close(wanted[..., 3:].sum(-1), torch.ones(2, heads[0], rows))


CONFIGS = {
    "boost": VRGAConfig.published(gain=4.0),
    "static": VRGAConfig.paper(gain=3.0),
    "hard mask": VRGAConfig.released_mask(),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_maps_after_steering_add_up_to_the_shares(model, config):
    batch = QWEN.batch([1, 0, 2]) if config.method == "vrga" else QWEN.batch([1, 1])
    with vrga.patch(model, config) as patch, patch.record(maps="all", layer_maps=True) as trace:
        generate(model, batch.inputs, 4)
    assert trace.gate.any() and not trace.gate.all()
    steps, layers, rows, heads = trace.image.shape
    maps = trace.maps.float().view(steps, layers, heads, rows, -1).transpose(2, 3)
    torch.testing.assert_close(maps.sum(-1), trace.image, rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(maps.mean(3), trace.layer_maps.float(), rtol=2e-3, atol=1e-5)
    for row, region in enumerate(patch.region):
        if region.grids:
            cells = region.mask[torch.cat([grid.index for grid in region.grids])]
            found = maps[:, :, row, :, : len(cells)][..., cells].sum(-1)
            torch.testing.assert_close(found, trace.region[:, :, row], rtol=2e-3, atol=1e-4)


def test_maps_of_ablated_heads_are_empty(model):
    batch = QWEN.batch([1])
    config = VRGAConfig.ablation("visual", heads=2, first_layer=1)
    with vrga.patch(model, config) as patch, patch.record(maps="all") as trace:
        generate(model, batch.inputs, 4)
    steps, layers, rows, heads = trace.image.shape
    maps = trace.maps.view(steps, layers, heads, rows, -1).transpose(2, 3)
    ablated = trace.gate > 0
    # The released code's image leaves out the last token, and has the marker before the first.
    assert (maps[ablated][:, :-1] == 0).all() and (maps[~ablated].sum(-1) > 0).all()
    assert int(ablated.sum()) == steps * 2 * 2


@pytest.mark.parametrize("drafts", [False, True], ids=["single", "drafts"])
def test_maps_see_what_a_sliding_window_holds(drafts):
    family = FAMILIES["gemma3"]
    batch = family.batch([1])
    options = {"prompt_lookup_num_tokens": 3} if drafts else {}
    with vrga.patch(family.shared, VRGAConfig.published(gain=3.0)) as patch:
        with patch.record(maps="all") as trace:
            family.shared.generate(**batch.inputs, max_new_tokens=6, do_sample=False, **options)
    steps, layers, rows, heads = trace.image.shape
    maps = trace.maps.float().view(steps, layers, heads, rows, -1).transpose(2, 3)
    torch.testing.assert_close(maps.sum(-1), trace.image, rtol=2e-3, atol=1e-4)
    unseen = (maps == 0) & (trace.image[..., None] > 0)
    assert unseen.any() and not unseen.all()  # some layer has lost a part of the image


def test_chosen_layers_and_steps_are_those_of_the_whole(model):
    batch = QWEN.batch([1, 2])
    with vrga.patch(model, VRGAConfig.published(gain=3.0)) as patch:
        with patch.record(maps="visual") as whole:
            tokens = generate(model, batch.inputs, 7)[0]
        with patch.record(layers=[2, 0], steps=range(1, 100, 2), maps="visual") as part:
            again = generate(model, batch.inputs, 7)[0]
    assert torch.equal(tokens, again)
    assert part.steps.tolist() == [1, 3, 5] and part.layers.tolist() == [0, 2]
    for name in MEASURES:
        if name != "watched":
            assert torch.equal(getattr(part, name), getattr(whole, name)[1::2][:, [0, 2]])
    kept = [i for i, (layer, _) in enumerate(whole.heads.tolist()) if layer != 1]
    assert torch.equal(part.heads, whole.heads[kept])
    # Maps of the whole are computed many steps at a time, in sums of another order.
    torch.testing.assert_close(part.maps, whole.maps[1::2][:, kept], rtol=2e-3, atol=1e-6)


def test_layers_left_out_run_the_models_own_attention(model, monkeypatch):
    batch, seen = QWEN.batch([1]), []
    own = Meter.statistics

    def statistics(self, layer, query, *args):
        seen.append((layer, query.shape[2]))
        return own(self, layer, query, *args)

    monkeypatch.setattr(Meter, "statistics", statistics)
    with vrga.patch(model, VRGAConfig.published(gain=1.0)) as patch:
        with patch.record(layers=[1], steps={0, 2}):
            generate(model, batch.inputs, 5)
    assert seen == [(1, 1), (1, 1)]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(layers=[3]), "give some of 0 to 2"),
        (dict(layers=[]), "give some of 0 to 2"),
        (dict(maps="visible"), "give 'visual'"),
        (dict(maps=[(0, 99)]), "head 99 of layer 0"),
        (dict(maps=torch.ones(2, 2, dtype=torch.bool)), "wanted: \\[3, 8\\]"),
        (dict(maps=[(1, 0)], layers=[0]), "layers \\[1\\]"),
        (dict(maps=np.ones((2, 2), dtype=bool)), "wanted: \\[3, 8\\]"),
        *((dict(layers=x), "layers=.*give some of 0 to 2") for x in (3, "all", [True], [0.5])),
        *((dict(maps=x), "pairs") for x in ((0, 1), True, 1.5, [(0, 1, 2)], [(0.5, 1)], [None])),
        *(
            (dict(steps=x), "steps=.*: give the numbers of generated tokens")
            for x in (5, [], [-1], [0, -2], range(-3, 2), "all", iter([1, 2]), [0.5], {True})
        ),
    ],
    ids=lambda value: str(value).split(" object at")[0],
)
def test_what_the_model_does_not_have_cannot_be_recorded(model, options, told):
    with vrga.patch(model) as patch:
        with pytest.raises(ValueError, match=told), patch.record(**options):
            pytest.fail("the block must not begin")


@pytest.mark.parametrize(
    "form", [np.array, lambda x: x, torch.tensor], ids=["numpy", "list", "torch"]
)
def test_heads_are_chosen_in_several_forms(model, form):
    mask = [[layer == 1 and head == 2 for head in range(8)] for layer in range(3)]
    for maps in (form(mask), form([(1, 2)])):
        with vrga.patch(model) as patch, patch.record(maps=maps, layers=form([1])) as trace:
            generate(model, QWEN.batch([1]).inputs, 3)
        assert trace.heads.tolist() == [[1, 2]] and trace.layers.tolist() == [1]


@pytest.mark.parametrize(
    ("images", "tokens", "options", "told"),
    [
        (1, 5, dict(steps=[1000]), r"steps=\[1000\] names none of those that came, 0 to 3"),
        (1, 1, {}, "its answer has one token"),
        (0, 5, {}, "no prompt with an image came"),
        (1, 5, None, "the patch was switched off"),
        (1, 0, {}, "no prompt with an image came"),
    ],
    ids=["steps", "one token", "no image", "off", "no call"],
)
def test_an_empty_trace_says_why(model, images, tokens, options, told):
    with vrga.patch(model, VRGAConfig.published(gain=1.0)) as patch:
        patch.enabled = options is not None
        with patch.record(**(options or {})) as trace:
            with pytest.raises(ValueError, match="the trace is empty: it was not recorded yet"):
                trace.check_filled()
            if tokens:
                generate(model, QWEN.batch([images]).inputs, tokens)
    with pytest.raises(ValueError, match=f"the trace is empty: {told}"):
        trace.to_pandas()


def test_a_recording_in_a_recording_is_refused(model):
    with vrga.patch(model) as patch, patch.record() as trace:
        with pytest.raises(RuntimeError, match="records already"), patch.record():
            pytest.fail("the block must not begin")
        generate(model, QWEN.batch([1]).inputs, 3)
    assert trace.steps_of(0) == [0, 1]


def test_positions_that_come_again_are_of_other_drafts():
    """Regions that rejected drafts brought go with them."""
    one, two, other = (SimpleNamespace(grids=[]) for _ in range(3))
    timeline, recorder = Timeline([one, two], 10), Recorder((1, 1))
    recorder.aim(timeline, KeyGroups.of(VRGAConfig()))

    def come(past, rows):
        timeline.forget_from(past)
        recorder.begin(past, rows)
        recorder.count(0)

    come(10, 1)
    come(11, 3)
    assert recorder.steps == [0, 1, 2, 3] and recorder.relocated == []
    timeline.turn(1, other, opened=12, position=14)
    assert recorder.relocated == [] and timeline.now == [one, other]  # no step has come since
    come(14, 1)
    assert recorder.relocated == [Relocation(1, 4, other)]
    come(13, 1)  # the span was opened before
    assert recorder.relocated == [Relocation(1, 3, other)] and recorder.steps == [0, 1, 2, 3]
    assert timeline.at(1, 12) is two and timeline.at(1, 13) is other
    come(12, 1)
    assert recorder.relocated == [] and timeline.now == [one, two]
    assert recorder.steps == [0, 1, 2]


def test_no_step_needs_a_copy_to_the_host(model, monkeypatch):
    """More steps than a recorder makes room for at a time, and one copy of all at the end."""
    batch, copies, own = QWEN.batch([1]), [], torch.Tensor.cpu
    with vrga.patch(model, VRGAConfig.published(gain=2.0)) as patch:
        with patch.record(maps=[(0, 1), (1, 2)], layers=[0, 1]) as trace:
            generate(model, batch.inputs, 70)
            monkeypatch.setattr(
                torch.Tensor, "cpu", lambda x, *a, **k: copies.append(x.shape) or own(x, *a, **k)
            )
    assert trace.image.shape[0] == trace.maps.shape[0] == 69
    assert 1 <= len(copies) <= 4  # statistics, and maps of each layer
    assert all(69 in shape for shape in copies)


@pytest.fixture
def filled():
    return filled_trace()


def test_a_saved_trace_is_the_same_when_loaded(filled, tmp_path):
    video = [replace(grid, video=True) for grid in filled.regions[0].grids]
    other = replace(filled.regions[0], grids=video)
    filled.relocated = [Relocation(1, 2, filled.regions[1]), Relocation(0, 3, other)]
    again = Trace.load(filled.save(tmp_path / "deep" / "trace"))
    names = [f.name for f in fields(Trace) if isinstance(getattr(filled, f.name), torch.Tensor)]
    assert {*MEASURES} - {"watched"} < {*names} and {"spread", "ends", "inside", "ids"} < {*names}
    for name in names:
        assert torch.equal(getattr(filled, name), getattr(again, name)), name
    for name in ("config", "versions", "texts", "asked"):
        assert getattr(filled, name) == getattr(again, name)
    assert again.config["gain"] == 3.0 and again.versions["torch"] == torch.__version__
    assert [(x.row, x.step) for x in again.relocated] == [(1, 2), (0, 3)]
    pairs = [*zip(filled.regions, again.regions, strict=True)]
    pairs += [
        (one.region, two.region) for one, two in zip(filled.relocated, again.relocated, strict=True)
    ]
    for one, two in pairs:
        assert one.query == two.query and one.question == two.question and one.question
        for name in ("focus", "mask", "image", "visual", "background"):
            assert torch.equal(getattr(one, name), getattr(two, name))
        assert torch.equal(one.heads.efr, two.heads.efr)
        assert all(torch.equal(a, b) for a, b in zip(one.map, two.map, strict=True))
        assert [(g.h, g.w, g.video, g.index.tolist()) for g in one.grids] == [
            (g.h, g.w, g.video, g.index.tolist()) for g in two.grids
        ]
    assert [[i.getpixel((0, 0)) for i in row] for row in again.images] == [
        [i.getpixel((0, 0)) for i in row] for row in filled.images
    ]
    filled.save(tmp_path / "deep" / "trace")  # over itself


def test_texts_join_to_the_answer_and_end_with_it(filled):
    assert filled.texts[0] == [f"<{i}>" for i in filled.ids[0].tolist()]
    assert filled.asked[1].count(f"<{IMAGE}>") == 2  # a run of image tokens is written once


def test_texts_end_where_the_row_ended(model):
    batch = QWEN.batch([1, 1])
    tokens = torch.tensor([[40, 41, EOS, 0], [40, 41, 42, 43]])  # padded behind its end
    with vrga.patch(model, tokenizer=WORDS) as patch, patch.record() as trace:
        say(model, batch, tokens)
    assert trace.attach(Letters()).texts == [
        ["<40>", "<41>", f"<{EOS}>"],
        ["<40>", "<41>", "<42>", "<43>"],
    ]


def test_rows_that_end_early_end_in_the_table_as_well(model):
    batch = QWEN.batch([1, 0, 1])
    tokens = torch.tensor([[40, 41, EOS, 0, 0], [40, 41, 42, 43, 44], [EOS, 0, 0, 0, 0]])
    with vrga.patch(model, tokenizer=WORDS) as patch, patch.record(steps=[0, 1, 3]) as trace:
        say(model, batch, tokens)
    assert trace.ends.tolist() == [2, 4, 0]  # an end is no query where a row is alone
    assert trace.steps_of(0) == [0, 1] and trace.steps_of(1) == [0, 1, 3]
    with pytest.raises(ValueError, match="row 2 has nothing to show: of its 1 tokens"):
        trace.steps_of(2)
    frame = trace.attach(Letters()).to_pandas()
    found = {row: sorted(set(part["step"])) for row, part in frame.groupby("row")}
    assert found == {0: [0, 1], 1: [0, 1, 3]} and frame.index.tolist() == [*range(len(frame))]
    assert set(frame.query("row == 1 and step == 3")["text"]) == {"<43>"}
    # A row without an image has no spread of attention over it.
    assert trace.spread[:, :, 1].isnan().all() and trace.spread[:, :, [0, 2]].isfinite().all()
    assert (trace.spread[:, :, [0, 2]] >= 0).all()


def test_a_folder_of_an_older_version_still_loads(filled, tmp_path):
    path = filled.save(tmp_path / "trace")
    words = json.loads((path / "trace.json").read_text())
    del words["relocated"]
    for region in words["regions"]:
        region["grids"] = [grid[:2] for grid in region["grids"]]
    (path / "trace.json").write_text(json.dumps(words))
    tensors = load_file(path / "trace.safetensors")
    del tensors["spread"], tensors["ends"]
    save_file(tensors, path / "trace.safetensors")
    again = Trace.load(path)
    assert again.spread is None and again.relocated == [] and torch.equal(again.ends, filled.ends)
    assert "spread" not in again.to_pandas() and "spread" in filled.to_pandas()


@pytest.mark.parametrize("returned", [1, 3])
def test_rows_of_beams_have_no_texts(model, returned):
    how = dict(max_new_tokens=5, min_new_tokens=5, num_return_sequences=returned)
    with vrga.patch(model) as patch:
        with patch.record() as beams:
            model.generate(**QWEN.batch([1]).inputs, num_beams=3, do_sample=False, **how)
        with patch.record() as sampled:
            model.generate(**QWEN.batch([1]).inputs, do_sample=True, **how)
    assert beams.attach(Letters()).texts is None and beams.ids is None and beams.ends is None
    assert beams.steps_of(2) == [0, 1, 2, 3] and "text" not in beams.to_pandas()
    assert len(sampled.attach(Letters()).texts) == len(sampled.asked) == returned


@pytest.mark.parametrize(
    ("damage", "error", "told"),
    [
        (lambda p: (p / "trace.json").unlink(), FileNotFoundError, "no trace at"),
        (lambda p: (p / "trace.json").write_text('{"format": "x"}'), ValueError, "not of a trace"),
        (lambda p: (p / "trace.json").write_text("[1]"), ValueError, "not of a trace"),
        (lambda p: (p / "trace.json").write_text("{"), ValueError, "is damaged"),
        (lambda p: (p / "trace.json").write_bytes(b"\xff\xfe"), ValueError, "is damaged"),
        (lambda p: edit(p, version=2), ValueError, "format version 2, and this vrga reads 1"),
        (lambda p: edit(p, regions=[]), ValueError, "do not fit together"),
        (lambda p: edit(p, texts=[["a"]]), ValueError, "do not fit together"),
        (lambda p: edit(p, config=None, regions=[{}, {}]), ValueError, "do not fit together"),
        (lambda p: (p / "trace.safetensors").unlink(), ValueError, "not complete"),
        (lambda p: cut(p / "trace.safetensors"), ValueError, "damaged or cut short"),
        (lambda p: (p / "image-0-0.png").unlink(), ValueError, "lacks its image"),
        (lambda p: cut(p / "image-0-0.png"), ValueError, "cannot be read"),
    ],
)
def test_a_damaged_or_foreign_folder_is_named(filled, tmp_path, damage, error, told):
    path = filled.save(tmp_path / "trace")
    damage(path)
    with pytest.raises(error, match=told) as raised:
        Trace.load(path)
    assert str(path) in str(raised.value)


def edit(path, **changed):
    words = json.loads((path / "trace.json").read_text()) | changed
    (path / "trace.json").write_text(json.dumps(words))


def cut(file):
    file.write_bytes(file.read_bytes()[:60])


def test_a_folder_with_other_files_is_left_alone(filled, tmp_path):
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(ValueError, match="holds other files"):
        filled.save(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        filled.save(tmp_path / "thesis.tex")
    with pytest.raises(ValueError, match="the trace is empty"):
        Trace().save(tmp_path / "empty")


def test_a_table_has_one_line_for_each_step_layer_head_and_row(filled):
    frame = filled.to_pandas()
    steps, layers, rows, heads = filled.image.shape
    assert len(frame) == steps * layers * rows * heads
    one = frame.query("step == 2 and layer == 1 and head == 3 and row == 1")
    assert len(one) == 1 and one["text"].item() == filled.texts[1][2]
    for name in ("image", "region", "question", "prompt", "generated", "entropy", "gate"):
        assert one[name].item() == getattr(filled, name)[2, 1, 1, 3].item()
    assert one["inside"].item() == bool(filled.inside[2, 1]) and "watched" not in frame


def test_without_pandas_the_table_says_what_to_install(filled, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="vrga\\[plot\\]"):
        filled.to_pandas()


def test_images_are_one_for_each_grid(filled):
    region, red = filled.regions[1], Image.new("RGB", (9, 9))  # two grids
    frames = [red, Image.new("RGB", (8, 8)), red.copy(), red]
    with pytest.raises(ValueError, match="4 images given; the region has 2 grids: give one for"):
        fitted(frames, region)
    video = replace(region, grids=[replace(grid, video=True) for grid in region.grids])
    assert fitted(frames, video) == [frames[0], frames[2]]  # merged in pairs
    with pytest.raises(ValueError, match="3 images given.*or a multiple"):
        fitted([red] * 3, video)
    with pytest.raises(ValueError, match="3 images given; the region has 2"):
        fitted([red] * 3, region)
    with pytest.raises(ValueError, match="images of 1 rows given; the trace has 2"):
        filled.attach(images=[[red]])


def test_a_character_of_several_tokens_is_added_by_the_last():
    said = "a€ b".encode()

    def decode(ids):
        return bytes(ids).decode("utf-8", "replace")

    assert token_texts(said, decode) == ["a", "", "", "€", " ", "b"]
    assert token_texts(said[:2], decode) == ["a", "\ufffd"]  # cut short: shown as what it is


def test_back_spans_follow_the_text_however_the_tags_are_split():
    texts = ["x <", "ba", "ck>", "in", "</ba", "ck> y", "<back>", "z</back><back>", "</back>"]
    assert back_spans(texts) == [False, False, True, True, True, False, True, True, False]


def test_spans_come_from_the_texts_where_none_were_followed(filled):
    filled.inside, filled.texts[1] = None, ["<back>", "a", "</back>", "b", "c"]
    assert filled.spans(1) == [(0, 2)] and filled.spans(0) == []


def test_spans_of_another_word_are_found_in_texts():
    texts = ["a", "<re", "check>", "b", "<back>", "</recheck>", "c"]
    assert back_spans(texts, "recheck") == [False, False, True, True, True, False, False]
    assert back_spans(texts) == [False] * 4 + [True] * 3
