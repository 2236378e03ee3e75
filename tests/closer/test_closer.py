"""look_closer: two looks at one question, on an untrained model of the embedded kind."""

import functools
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from command import run, worked
from PIL import Image
from untrained import NARROW, untrained

import vrga
from vrga import VRGAConfig, Zoom, look_closer
from vrga.closer.plots import closer_figure
from vrga.closer.two_looks import TwoLooks, steered_cells
from vrga.demo import build
from vrga.demo.fine.data import make_fine_samples
from vrga.demo.fine.settings import FINDING
from vrga.hf.families import FAMILIES
from vrga.hf.processors import image_only_processor_class
from vrga.hf.second_look import batch_inputs, most_pixels, turn_of
from vrga.steering.patching import patch_of

QUESTION = "which letter is on the red card?"


@functools.cache
def picture(seed=0):
    return make_fine_samples(1, seed=seed)[0].image


def chat_inputs(processor, images, question, pixels=None):
    """Model inputs of one turn: images of at most so many pixels, then the question."""
    chat = processor.apply_chat_template(turn_of(len(images), question), add_generation_prompt=True)
    return batch_inputs(processor, [chat], list(images), most_pixels(processor, pixels))


def look(zoom=NARROW, images=None, config=FINDING, tokens=5, **more):
    images = picture() if images is None else images
    return look_closer(*untrained(), images, QUESTION, config, zoom, max_new_tokens=tokens, **more)


def logits_of(call):
    """What a call returns, and the logits [T, V] from which each token was chosen."""
    model, found = untrained()[0], []
    hook = model.lm_head.register_forward_hook(lambda m, a, out: found.append(out[0, -1].clone()))
    try:
        return call(), torch.stack(found)
    finally:
        hook.remove()


@pytest.mark.parametrize("steer", ["place", "anew"])
def test_the_first_looks_cache_gives_the_logits_of_a_fresh_prompt(steer):
    zoom = {"steer": steer, "crops": 2, "threshold": 0.9}
    zoom = {**NARROW.settings(), **zoom, "pixels": 72 * 784, "share": 1.0}
    kept, reused = logits_of(lambda: look(Zoom(**zoom)))
    fresh, anew = logits_of(lambda: look(Zoom(**{**zoom, "reuse": False})))
    assert kept.zoomed and kept.cost.reused == 41 and fresh.cost.reused == 0
    assert kept.cost.second + kept.cost.reused == fresh.cost.second
    torch.testing.assert_close(reused, anew, rtol=1e-4, atol=1e-4)
    assert kept.text == fresh.text and len(reused) > 3
    for one, other in zip(kept.second.map, fresh.second.map, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_second_answer_is_steered_to_what_the_zoom_says():
    (_, place), (_, anew) = (
        logits_of(lambda s=s: look(Zoom(**{**NARROW.settings(), "steer": s})))
        for s in ("place", "anew")
    )
    _, off = logits_of(lambda: look(config=VRGAConfig(gain=1.0)))
    # The first token of the second prompt comes before steering; those after it differ.
    torch.testing.assert_close(place[1], anew[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(place[2], anew[2], atol=1e-3)
    assert not torch.allclose(place[2], off[2], atol=1e-3)


@pytest.mark.parametrize("zoom", [NARROW, Zoom(gain=50)], ids=["closer", "not closer"])
def test_what_is_chosen_by_hand_is_what_generate_would_choose(zoom, monkeypatch):
    """Also with what a checkpoint's generation_config.json does to logits and ends."""
    own = untrained()[0].generation_config
    by_hand, generated = look(zoom, tokens=6), look(zoom, tokens=6, record=True)
    assert by_hand.text == generated.text and by_hand.cost.answer == generated.cost.answer
    said = untrained()[1].tokenizer.encode(by_hand.text)
    monkeypatch.setattr(own, "suppress_tokens", said)
    monkeypatch.setattr(own, "min_new_tokens", 5)
    other, generated = look(zoom, tokens=6), look(zoom, tokens=6, record=True)
    assert other.text == generated.text != by_hand.text
    assert other.cost.answer == generated.cost.answer


def test_the_configuration_is_what_the_checkpoint_brings(tmp_path, monkeypatch):
    model = untrained()[0]
    monkeypatch.setattr(model, "name_or_path", str(tmp_path))
    VRGAConfig(gain=1.0).save_pretrained(tmp_path)
    _, own = logits_of(lambda: look(config=None))
    _, same = logits_of(lambda: look(config=VRGAConfig(gain=1.0)))
    _, named = logits_of(lambda: look(config="paper"))
    assert torch.equal(own, same)
    assert own.shape != named.shape or not torch.allclose(own, named)


@pytest.mark.parametrize("record", [False, True])
def test_a_second_look_may_go_unsteered_behind_a_steered_first(record):
    """Its passes are those of a steering that steers nothing; in the first look all stays."""
    off = Zoom(**{**NARROW.settings(), "steer": "off"})
    found, own = logits_of(lambda: look(off, record=record))
    plain, same = logits_of(lambda: look(NARROW, config=replace(FINDING, gain=1.0), record=record))
    _, steered = logits_of(lambda: look(NARROW, record=record))
    assert found.zoomed and found.boxes == plain.boxes and torch.equal(own, same)
    assert own.shape != steered.shape or not torch.equal(own, steered)
    assert (found.second is None) is not record
    if record:
        assert found.trace.config["gain"] == 1 and found.trace.steps.numel()


def test_a_patch_is_as_before_behind_an_unsteered_second_look():
    model, processor = untrained()
    zoom = Zoom(**{**NARROW.settings(), "steer": "off"})
    looks = TwoLooks(model, processor, zoom, 5)
    messages = turn_of(1, QUESTION)
    chat = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = looks.first_inputs(chat, [picture()])
    with vrga.patch(model, FINDING, tokenizer=processor.tokenizer) as patch:
        with torch.inference_mode():
            looks.answer(patch, messages, [picture()], dict(inputs), 0.0)
        assert patch.enabled and patch.config == FINDING


def test_the_place_is_the_region_and_all_of_a_crop():
    found = look()
    model, processor = untrained()
    inputs = chat_inputs(processor, found.images, QUESTION, 168 * 168)
    with vrga.patch(model, FINDING, tokenizer=processor.tokenizer) as patch:
        model.generate(**inputs, max_new_tokens=1)
        grids = patch.region[0].grids
    seen, crop = steered_cells(grids, found.region, 1, NARROW)
    assert crop.shape == (4, 4) and crop.all()
    grid = found.region.grids[0]
    assert torch.equal(seen.flatten(), found.region.mask[grid.index])
    turned = steered_cells(grids[::-1], found.region, 1, Zoom(order="crops", reuse=False))
    assert torch.equal(turned[0], crop) and torch.equal(turned[1], seen)


@pytest.mark.parametrize("zoom", [Zoom(share=0.001), Zoom(gain=50)], ids=["share", "gain"])
def test_without_a_closer_look_the_answer_is_the_steered_models_own(zoom):
    found = look(zoom)
    model, processor = untrained()
    inputs = chat_inputs(processor, [picture()], QUESTION)
    with vrga.patch(model, FINDING, tokenizer=processor.tokenizer):
        tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    new = tokens[:, inputs["input_ids"].shape[1] :]
    assert found.text == processor.batch_decode(new, skip_special_tokens=True)[0].strip()
    assert not found.zoomed and found.crops == () and found.boxes == [] and found.second is None
    assert found.decision.crops and found.cost.answer == new.shape[1]
    assert [image.size for image in found.images] == [(168, 168)]


def test_the_crop_is_of_the_original_where_the_map_is_highest():
    found = look()
    row, column = divmod(int(found.region.map[0].argmax()), 6)
    box = (column * 112, row * 112, column * 112 + 112, row * 112 + 112)
    assert found.zoomed and found.boxes == [box]
    assert np.array_equal(np.asarray(found.images[1]), np.asarray(picture().crop(box)))
    assert [grid.index.numel() for grid in found.second.grids] == [36, 16]
    assert found.cost.seen == 36 and found.cost.crops == 16
    assert "1 crop of 3 % of the picture, 4.0 times larger" in found.decision.reason


def test_the_question_names_neither_crop_nor_place():
    found = look(record=True)
    text = "".join(found.trace.asked[0]) if found.trace.asked else ""
    assert QUESTION in text
    words = text.split(QUESTION)
    assert not any("crop" in word or "zoom" in word for word in words)


def test_the_trace_holds_picture_and_crop_and_the_numbers_are_json(tmp_path):
    found = look(record=True)
    assert [image.size for image in found.trace.images[0]] == [(168, 168), (112, 112)]
    found.trace.save(tmp_path / "trace")
    again = vrga.Trace.load(tmp_path / "trace")
    assert len(again.images[0]) == 2
    told = json.loads(json.dumps(found.numbers()))
    assert told["decision"]["zooms"] and told["decision"]["crops"][0]["box"] == list(found.boxes[0])
    assert told["zoom"]["threshold"] == 1.0 and told["cost"]["reused"] == 0


def test_several_pictures_are_seen_whole_and_the_crop_is_of_the_right_one():
    found = look(images=[picture(0), picture(1)])
    assert [image.size for image in found.images] == [(168, 168), (168, 168), (112, 112)]
    crop = found.crops[0]
    cut = np.asarray(picture(crop.image).crop(crop.box))
    assert np.array_equal(np.asarray(found.images[2]), cut)
    assert found.cost.reused == 3 + 2 * 38


def test_crops_may_come_first_and_nothing_is_reused_then():
    found = look(Zoom(**{**NARROW.settings(), "order": "crops", "reuse": False}))
    assert [image.size for image in found.images] == [(112, 112), (168, 168)]
    assert found.cost.reused == 0
    figure = closer_figure([picture()], found)
    assert [axis.get_title() for axis in figure.axes] == [
        "original, 672 x 672", "as seen, 168 x 168", "crop, 112 x 112",
    ]  # fmt: skip


def test_the_overview_may_be_smaller_than_the_processor_allows():
    found = look(Zoom(**{**NARROW.settings(), "overview_pixels": 84 * 84}))
    assert found.images[0].size == (84, 84) and found.cost.seen == 9


def test_a_picture_without_more_pixels_is_answered_straight_and_said_so():
    small = picture().resize((168, 140))
    with pytest.warns(UserWarning, match="nothing to gain") as told:
        found = look(images=small)
    assert len(told) == 1 and told[0].filename == __file__
    assert not found.zoomed and "168 x 140" in found.decision.reason
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        look()


@pytest.mark.parametrize(
    "images, told",
    [
        ("film.mp4", "is a video"),
        (["a.WEBM"], "is a video"),
        ([[Image.new("RGB", (8, 8))] * 2], "a video, or a list of frames"),
        (np.zeros((2, 8, 8, 3)), "PIL images or image files"),
        ([np.zeros((2, 8, 8, 3))], "a video, or a list of frames"),
        ([torch.zeros(3, 8, 8)], "a Tensor"),
        ([], "images is empty"),
        (None, "a NoneType"),
    ],
    ids=[
        "video",
        "video in a list",
        "frames",
        "array",
        "array in a list",
        "tensor",
        "none",
        "None",
    ],
)
def test_what_is_no_picture_is_refused_in_words(images, told):
    with pytest.raises(ValueError, match=told):
        look_closer(*untrained(), images, QUESTION)


@pytest.mark.parametrize(
    "arguments, told",
    [
        ({"question": " "}, "question="),
        ({"question": None}, "question="),
        ({"zoom": 3}, "zoom=3"),
        ({"config": 3}, "is not a VRGAConfig"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": True}, "max_new_tokens=True"),
        ({"streamer": object()}, "record=True"),
    ],
)
def test_bad_arguments_are_named(arguments, told):
    with pytest.raises(ValueError, match=told):
        look_closer(*untrained(), **{"images": picture(), "question": QUESTION, **arguments})


def test_what_relocates_is_refused_beside_a_place_to_keep_to():
    config = VRGAConfig.published(relocate="back")
    with pytest.raises(ValueError, match="relocate='back' finds .*steer='anew'"):
        look(config=config)
    assert look(Zoom(**{**NARROW.settings(), "steer": "anew"}), config=config).zoomed


def test_an_image_file_that_is_missing_is_an_error_of_reading(tmp_path):
    with pytest.raises(OSError, match="does not exist"):
        look(images=tmp_path / "none.png")


def test_a_model_whose_processor_cuts_tiles_is_refused():
    import families

    for kind in ("llava_onevision", "internvl", "gemma3"):
        model = families.FAMILIES[kind].model()
        with pytest.raises(ValueError, match=f"{kind} models cannot look closer here.*qwen3_vl"):
            look_closer(model, untrained()[1], picture(), QUESTION)


def test_the_model_is_as_before_also_after_an_exception(monkeypatch):
    model = untrained()[0]
    inputs = chat_inputs(untrained()[1], [picture()], QUESTION)

    def tokens():
        return model.generate(**inputs, max_new_tokens=5, do_sample=False)

    before = tokens()
    look()
    assert patch_of(model) is None and torch.equal(tokens(), before)

    def broken(*args):
        raise RuntimeError("broken")

    monkeypatch.setattr("vrga.closer.two_looks.crops_around", broken)
    with pytest.raises(RuntimeError, match="broken"):
        look()
    assert patch_of(model) is None and torch.equal(tokens(), before)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl", "qwen3_vl_moe"])
def test_the_other_qwen_families_go_on_from_the_cache_as_well(kind, monkeypatch):
    import families

    tokenizer, ids = untrained()[1].tokenizer, build.SPECIAL_TOKENS
    numbers = dict(zip(ids, tokenizer.convert_tokens_to_ids(list(ids)), strict=True))
    for name in ("IMAGE", "VIDEO", "VISION_START", "VISION_END"):
        token = f"<|{name.lower()}{'_pad' if name in ('IMAGE', 'VIDEO') else ''}|>"
        monkeypatch.setattr(families, name, numbers[token])
    ends = dict(eos_token_id=numbers["<|im_end|>"], pad_token_id=numbers["<|endoftext|>"])
    monkeypatch.setattr(families, "TEXT", families.TEXT | {"vocab_size": len(tokenizer)} | ends)
    torch.manual_seed(0)
    model = families.FAMILIES[kind].model().eval()
    model.generation_config.eos_token_id = ends["eos_token_id"]
    model.generation_config.pad_token_id = ends["pad_token_id"]
    processor = image_only_processor_class(FAMILIES[kind].processor)(
        untrained()[1].image_processor, tokenizer, chat_template=tokenizer.chat_template
    )

    def ask(reuse):
        logits = []
        zoom = Zoom(**{**NARROW.settings(), "reuse": reuse})
        hook = model.lm_head.register_forward_hook(lambda m, a, out: logits.append(out[0, -1]))
        found = look_closer(model, processor, picture(), QUESTION, FINDING, zoom, max_new_tokens=4)
        hook.remove()
        return found, torch.stack(logits)

    (kept, reused), (fresh, anew) = ask(True), ask(False)
    assert kept.zoomed and kept.cost.reused == 41 and fresh.cost.reused == 0
    torch.testing.assert_close(reused, anew, rtol=1e-3, atol=1e-4)


def test_an_answer_of_one_token_needs_no_second_generate():
    assert look(tokens=1).cost.answer == 2  # the first look's, and the second's


def test_the_command_prints_answer_decision_and_cost(tmp_path):
    model, processor = untrained()
    build.save(model, processor, tmp_path / "model", VRGAConfig.published(gain=2.5))
    picture().save(tmp_path / "picture.png")
    command = ["generate", "--model", str(tmp_path / "model"), "--question", QUESTION]
    command += ["--image", str(tmp_path / "picture.png"), "--zoom", "--max-new-tokens", "3"]
    command += ["--zoom-option", "threshold=1", "--zoom-option", "within=map"]
    more = ["--map", str(tmp_path / "map.png"), "--trace", str(tmp_path / "trace")]
    done = worked(*command, *more)
    own = "config: published, gain 2.5 (vrga_config.json of the checkpoint)"
    assert own in done.stderr.splitlines()  # as without --zoom
    for words in ("looked closer: 1 crop", "shown 168 x 168", "reused", "closer.json"):
        assert words in done.output
    assert (tmp_path / "map.png").stat().st_size > 10_000
    assert vrga.Trace.load(tmp_path / "trace" / "closer").images
    assert vrga.Trace.load(tmp_path / "trace" / "closer").config["gain"] == 2.5
    told = json.loads((tmp_path / "trace" / "closer.json").read_text())
    assert told["decision"]["zooms"]
    done = run(*command, "--preset", "paper")
    assert "config: paper (preset paper)" in done.stderr.splitlines()


@pytest.mark.parametrize(
    "more, told",
    [
        (["--zoom-option", "crops=2"], "add --zoom"),
        (["--zoom", "--no-vrga"], "leave out --no-vrga"),
        (["--zoom", "--zoom-option", "crops=0"], "crops=0"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, more, told):
    picture().save(tmp_path / "picture.png")
    command = ["generate", "--question", QUESTION, "--image", str(tmp_path / "picture.png")]
    done = run(*command, *more)
    assert done.exit_code != 0 and told in str(done.exception)
