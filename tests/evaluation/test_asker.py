"""Asking many questions: batches, failures, and what is measured beside."""

import contextlib
import math

import pytest
import torch
from PIL import Image

import vrga
from vrga import VRGAConfig
from vrga.demo.data import make_samples
from vrga.evaluation.asker import Asker
from vrga.evaluation.items import drawn_items
from vrga.evaluation.region_attention import cells_in
from vrga.evaluation.request import Request, request
from vrga.steering.patching import patch_of

SAMPLES = make_samples(7, seed=11, objects=(4, 8)) + make_samples(2, seed=50, grid=(4, 7))
ITEMS = drawn_items(SAMPLES)


@pytest.fixture(scope="module")
def embedded():
    return vrga.load(dtype=torch.float32)


def requests(prompt="cot", **options):
    return [item.request(prompt, item.id, **{"max_new_tokens": 12, **options}) for item in ITEMS]


def ask(embedded, config=None, asked=None, **options):
    asker = Asker(*embedded, config, **options)
    return {answer.id: answer for answer in asker.ask(requests() if asked is None else asked)}


@pytest.mark.slow
@pytest.mark.parametrize("config", [None, VRGAConfig.published(gain=4.0)], ids=["off", "on"])
def test_answers_do_not_depend_on_the_batch(embedded, config):
    alone = ask(embedded, config, batch=1)
    for batch in (2, 5, 64):
        found = ask(embedded, config, batch=batch)
        assert {i: a.text for i, a in found.items()} == {i: a.text for i, a in alone.items()}
        assert {i: a.tokens for i, a in found.items()} == {i: a.tokens for i, a in alone.items()}
    assert set(alone) == {item.id for item in ITEMS}


@pytest.mark.parametrize(
    "config, patched, steered",
    [
        (None, False, False),
        (VRGAConfig.published(gain=1.0), True, False),
        (VRGAConfig.published(), True, True),
    ],
    ids=["off", "gain1", "on"],
)
def test_an_answer_says_whether_it_was_steered(embedded, monkeypatch, config, patched, steered):
    model, seen = embedded[0], []
    own = type(model).generate

    def generate(self, *args, **kwargs):
        seen.append(patch_of(self) is not None)
        return own(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "generate", generate)
    found = ask(embedded, config)
    assert set(seen) == {patched} and patch_of(model) is None
    for answer in found.values():
        assert answer.steered is steered and (answer.region is not None) is patched


def test_an_answer_of_one_token_was_not_steered(embedded):
    """It comes from the prompt's pass, which never is: whatever the gain, it is the base's own."""
    config = VRGAConfig.published(gain=1000.0)
    one = ask(embedded, config, requests("direct", max_new_tokens=1)[:3])
    base = ask(embedded, None, requests("direct", max_new_tokens=1)[:3])
    assert {i: a.text for i, a in one.items()} == {i: a.text for i, a in base.items()}
    for answer in one.values():
        assert answer.steered is False and answer.region is not None
        assert answer.steps == {"generated": 1, "steered": 0, "left_alone": {}}
    more = ask(embedded, config, requests("direct", max_new_tokens=4)[:3])
    for answer in more.values():
        assert answer.steered and answer.steps["steered"] == answer.tokens - 1


def test_a_run_that_is_not_steered_ends(embedded, monkeypatch):
    """Not as an error of each sample: the installation is at fault, and every figure would be."""
    from vrga.steering.passes import SteeringError
    from vrga.steering.steps import Ledger

    monkeypatch.setattr(Ledger, "note", lambda *args: None)
    with pytest.raises(SteeringError, match="the patch saw 0"):
        ask(embedded, VRGAConfig.published(), requests("direct")[:2])


def test_the_query_is_the_end_of_the_question(embedded):
    _, processor = embedded
    found = ask(embedded, VRGAConfig.published(), batch=1)
    for item in ITEMS:
        chat, query = found[item.id].prompt, found[item.id].region["query"]
        tokens = found[item.id].region["image_tokens"]
        chat = chat.replace("<|image_pad|>", "<|image_pad|>" * tokens)
        ids = processor.tokenizer.encode(chat)
        assert processor.tokenizer.decode(ids[: query + 1]).endswith(item.question)


def test_one_bad_sample_leaves_the_others_alone(embedded, tmp_path):
    good = ask(embedded)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    bad = [
        request("missing", "what is this?", [tmp_path / "gone.png"]),
        request("broken", "what is this?", [broken]),
        request("unasked", "what is this?", [SAMPLES[0].image], question="who is that?"),
        request("silent", "", [SAMPLES[0].image]),
    ]
    asked = requests()
    found = ask(embedded, asked=[*bad[:2], *asked[:4], *bad[2:], *asked[4:]], batch=4)
    assert {i: a.text for i, a in found.items() if a.error is None} == {
        i: a.text for i, a in good.items()
    }
    assert "gone.png does not exist" in found["missing"].error
    assert "broken.png cannot be read" in found["broken"].error
    assert "'who is that?' is not in the chat" in found["unasked"].error
    assert found["silent"].error and found["silent"].text is None


class Odd:
    """A document whose reader fails in a way of its own."""

    def __init__(self, error):
        self.error = error

    def __call__(self):
        raise self.error


@pytest.mark.parametrize("error", [AttributeError("no convert"), SyntaxError("broken PNG"),
                                   EOFError(), Image.DecompressionBombError("bomb")])  # fmt: skip
def test_whatever_reading_a_sample_says_is_the_samples(embedded, error):
    found = ask(embedded, asked=[Request("odd", Odd(error)), *requests()])
    assert type(error).__name__ in found["odd"].error
    assert all(found[item.id].error is None for item in ITEMS)


def test_a_box_outside_its_image_is_told(embedded):
    asked = [request("out", "what color is the K?", [SAMPLES[0].image], box=(0, 0, 9999, 5)),
             *requests()]  # fmt: skip
    found = ask(embedded, VRGAConfig.published(), asked=asked, measure=True, batch=16)
    assert "is not inside an image of 168 x 168" in found["out"].error
    assert all(found[item.id].looks is not None for item in ITEMS)


def test_a_question_is_found_in_whatever_form_it_is_written(embedded):
    """Tokenizers compose what they read."""
    question = "what color is the cafe\u0301?"
    asked = [request("e", question + " now.", [SAMPLES[0].image], question=question)]
    found = ask(embedded, VRGAConfig.published(), asked=asked)
    assert found["e"].error is None and found["e"].region["query"] > 0


def test_an_error_of_one_row_leaves_its_batch_alone(embedded, monkeypatch):
    model, expected = embedded[0], ask(embedded)
    own = type(model).generate

    def generate(self, *args, **kwargs):
        if kwargs["image_grid_thw"][:, 2].eq(14).any():  # the wider images of the last samples
            raise ValueError("not this one")
        return own(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "generate", generate)
    found = ask(embedded, batch=4)
    wide = [item.id for item, s in zip(ITEMS, SAMPLES, strict=True) if s.grid == (4, 7)]
    assert wide and all("not this one" in found[i].error for i in wide)
    assert all(found[i].text == expected[i].text for i in found if i not in wide)


def test_an_arm_on_a_patched_model_is_refused(embedded):
    with vrga.patch(embedded[0], VRGAConfig.published(gain=3.0)):
        with pytest.raises(ValueError, match="the model is patched already"):
            ask(embedded)


def test_a_run_that_is_stopped_leaves_the_model_unpatched(embedded):
    answers = Asker(*embedded, VRGAConfig.published(), batch=2).ask(requests())
    with contextlib.closing(answers):
        next(answers)
    assert patch_of(embedded[0]) is None


@pytest.mark.slow
def test_looks_are_measured_with_the_heads_of_the_question(embedded):
    """A <back> finds other heads, and another query; arms must stay comparable."""
    asked = requests("back", max_new_tokens=64)
    off = ask(embedded, None, asked=asked, measure=True, keep=True)
    config = VRGAConfig.published(gain=1.0001, when="back", relocate="back")
    anew = ask(embedded, config, asked=asked, measure=True, keep=True)
    for item in ITEMS:
        assert anew[item.id].region == off[item.id].region
        assert torch.equal(anew[item.id].found.visual, off[item.id].found.visual)
        assert anew[item.id].looks.rrar == pytest.approx(off[item.id].looks.rrar, rel=1e-2)


def test_boxes_follow_beams(embedded):
    asked = requests(num_beams=2)
    found = ask(
        embedded, VRGAConfig.published(gain=2.0), asked=asked, measure=True, given=True, batch=3
    )
    assert all(answer.error is None and answer.looks.rrar > 0 for answer in found.values())


def test_what_exceeds_the_context_is_told_and_the_batch_goes_on(embedded):
    large = Image.new("RGB", (28 * 35, 28 * 35))
    long = request("large", "what is this?", [large], options={"max_new_tokens": 4000})
    found = ask(embedded, asked=[*requests(), long], batch=16)
    assert "new ones exceed the context of 4096" in found["large"].error
    assert all(found[item.id].text for item in ITEMS)


@pytest.mark.slow
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_halves_the_batch_and_goes_on(embedded, monkeypatch, error):
    expected, sizes = ask(embedded), []
    model = embedded[0]
    own = type(model).generate

    def generate(self, *args, **kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 2:
            raise error
        return own(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "generate", generate)
    asker = Asker(*embedded, None, batch=9)
    found = {answer.id: answer for answer in asker.ask(requests() * 2)}
    assert {i: a.text for i, a in found.items()} == {i: a.text for i, a in expected.items()}
    assert asker.batch <= 2 and sizes.count(9) <= 2 and max(sizes[-4:]) <= 2


def test_a_sample_too_large_for_memory_alone_is_told(embedded, monkeypatch):
    def generate(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(embedded[0]), "generate", generate)
    found = ask(embedded)
    assert all("out of memory" in answer.error for answer in found.values())


def test_other_errors_of_the_model_are_not_swallowed(embedded, monkeypatch):
    def generate(self, *args, **kwargs):
        raise RuntimeError("a fault of the code")

    monkeypatch.setattr(type(embedded[0]), "generate", generate)
    with pytest.raises(RuntimeError, match="a fault of the code"):
        ask(embedded)
    assert patch_of(embedded[0]) is None


def test_every_request_has_its_own_options(embedded):
    whole = ask(embedded)["0"].text
    word = whole.split()[2]
    asked = [
        ITEMS[0].request("cot", "short", max_new_tokens=3),
        ITEMS[0].request("cot", "long", max_new_tokens=12),
        ITEMS[0].request("cot", "cut", max_new_tokens=12, until=[word]),
    ]
    found = ask(embedded, asked=asked)
    assert found["short"].tokens == 3 and found["long"].text == whole
    assert found["cut"].text == whole.split(word)[0].strip()


@pytest.mark.slow
def test_sampling_is_repeatable_in_any_batch(embedded):
    asked = requests(do_sample=True, temperature=3.0)
    first = ask(embedded, asked=asked, seed=1)
    for others in (dict(batch=1), dict(batch=3)):
        found = ask(embedded, asked=asked[::-1], seed=1, **others)
        assert {i: a.text for i, a in found.items()} == {i: a.text for i, a in first.items()}
    again, other = ask(embedded, asked=asked, seed=1), ask(embedded, asked=asked, seed=2)
    assert [a.text for a in first.values()] == [a.text for a in again.values()]
    assert [a.text for a in first.values()] != [a.text for a in other.values()]


def test_samples_of_one_question_differ_by_their_ids(embedded):
    names = [f"{i}" for i in range(6)]
    asked = [
        ITEMS[0].request("cot", name, max_new_tokens=12, do_sample=True, temperature=3.0)
        for name in names
    ]
    found = ask(embedded, asked=asked, seed=1)
    assert len({found[name].text for name in names}) > 3


def test_a_checkpoint_without_an_end_token_answers_to_the_end(embedded, monkeypatch):
    monkeypatch.setattr(embedded[0].generation_config, "eos_token_id", None)
    for config in (None, VRGAConfig()):
        found = ask(embedded, config, asked=requests(max_new_tokens=5))
        assert [(one.error, one.tokens) for one in found.values()] == [(None, 5)] * len(found)


def test_half_a_surrogate_pair_fails_its_sample_alone(embedded):
    asked = [request("bad", "what\ud800?"), *requests(max_new_tokens=3)]
    found = ask(embedded, asked=asked)
    assert found["bad"].error is not None and found["0"].error is None


def test_pixels_bound_the_images(embedded):
    found = ask(embedded, VRGAConfig.published(), pixels=(None, 28 * 28 * 16))
    assert found["0"].region["image_tokens"] == 16
    assert ask(embedded, VRGAConfig.published())["0"].region["image_tokens"] == 36


@pytest.mark.parametrize("pixels", [(10_000, 9_000), (10**9, None)], ids=str)
def test_bounds_that_cross_are_refused(embedded, pixels):
    with pytest.raises(ValueError, match="images of at least"):
        Asker(*embedded, None, pixels=pixels)


def test_a_question_without_an_image_is_answered(embedded):
    asked = [request("text", "what color is the K?", options={"max_new_tokens": 3}), *requests()]
    found = ask(embedded, VRGAConfig.published(), asked=asked)
    assert found["text"].error is None and found["text"].region is None


@pytest.mark.slow
def test_looks_are_those_of_the_trace(embedded):
    """Measured in a batch, against the trace of one row alone."""
    model, processor = embedded
    found = ask(embedded, VRGAConfig.published(gain=3.0), measure=True, batch=4)
    for item, sample in list(zip(ITEMS, SAMPLES, strict=True))[::4]:
        chat = processor.apply_chat_template(
            item.request("cot", "").chat()[0], add_generation_prompt=True
        )
        inputs = processor(text=[chat], images=[sample.image], return_tensors="pt")
        truth = torch.from_numpy(sample.region)
        with vrga.patch(
            model, VRGAConfig.published(gain=3.0), tokenizer=processor.tokenizer
        ) as patch:
            patch.query = item.question
            with patch.record(watch=[[truth]]) as trace:
                model.generate(**inputs, max_new_tokens=12, do_sample=False)
            region = patch.region[0]
        share = trace.watched[:, :, 0] / trace.image[:, :, 0]
        looks = found[item.id].looks
        assert looks.rrar == pytest.approx(float(share[:, region.visual].mean()), rel=1e-4)
        assert looks.image == pytest.approx(float(trace.image.mean()), rel=1e-4)
        assert math.isnan(looks.image_inside)
        mask = region.mask[region.grids[0].index].view(truth.shape)
        assert looks.hit == bool(mask[sample.cell]) and looks.coverage == float(mask.float().mean())
        assert looks.peak == (int(region.map[0].argmax()) == int(truth.flatten().int().argmax()))


@pytest.mark.parametrize("beams", [1, 2])
def test_heads_to_ablate_are_chosen_for_each_request(embedded, beams):
    calls = []

    def choose(key, region):
        calls.append((key, region.heads.focus))
        return region.visual if int(key) % 2 else torch.zeros_like(region.visual)

    text = request("text", "what color is the K?", options={"max_new_tokens": 12})
    given, asked = VRGAConfig.ablation("given"), [*requests(num_beams=beams), text]
    found = ask(embedded, given, asked=asked, batch=4, ablated=choose, keep=True)
    assert sorted(key for key, _ in calls) == sorted([item.id for item in ITEMS] * beams)
    for key, focus in calls:
        assert torch.equal(focus, found[key].found.heads.focus)
    own = ask(embedded, None, asked=asked)
    for item in ITEMS[::2]:  # whose heads all keep the image
        assert found[item.id].text == own[item.id].text
    assert found["text"].text == own["text"].text


def test_the_region_is_kept_on_demand(embedded):
    assert all(answer.found is None for answer in ask(embedded, VRGAConfig.published()).values())
    for config in (None, VRGAConfig.published()):
        found = ask(embedded, config, keep=True)
        for answer in found.values():
            assert answer.region["visual_heads"] == int(answer.found.visual.sum()) > 0
            assert answer.found.heads.focus.shape == answer.found.visual.shape == (6, 8)


@pytest.mark.slow
@pytest.mark.parametrize("config", [None, VRGAConfig.published(gain=3.0)], ids=["off", "on"])
def test_looks_do_not_depend_on_rows_that_speak_longer(embedded, config):
    asked = requests(max_new_tokens=64)
    alone = ask(embedded, config, asked=asked, measure=True, batch=1)
    together = ask(embedded, config, asked=asked, measure=True, batch=9)
    assert len({answer.tokens for answer in alone.values()}) > 1
    for id, answer in alone.items():
        found = together[id].looks
        assert found.rrar == pytest.approx(answer.looks.rrar, rel=1e-3)
        assert found.image == pytest.approx(answer.looks.image, rel=1e-4)


def test_a_box_meets_the_cells_it_covers():
    assert cells_in((0, 0, 56, 28), (112, 56), (2, 4)).tolist() == [[1, 1, 0, 0], [0] * 4]
    assert cells_in((27, 27, 29, 29), (112, 56), (2, 4)).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    # An image that was resized: the box is in pixels of the original.
    assert cells_in((0, 0, 500, 1000), (1000, 1000), (3, 2)).tolist() == [[1, 0]] * 3
    for box in ((5, 5, 5, 9), (0, 0, 113, 5), (-1, 0, 5, 5)):
        with pytest.raises(ValueError, match="is not inside an image of 112 x 56 pixels"):
            cells_in(box, (112, 56), (2, 4))
