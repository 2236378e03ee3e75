"""Closer looks at <back>, on an untrained model whose words are put into its mouth."""

import dataclasses
import json

import pytest
import torch
from PIL import Image
from saying_chain import saying
from test_closer import chat_inputs, logits_of, picture
from untrained import NARROW, untrained

import vrga
from vrga import VRGAConfig, Zoom, look_closer
from vrga.closer.at_back import whole
from vrga.demo.fine.settings import FINDING
from vrga.hf.begun import begun_answers
from vrga.hf.turns import TurnMarks
from vrga.method.prompt import Prompt
from vrga.report.page import render

QUESTION = "which letter is on the red card?"
BACK = Zoom(**{**NARROW.settings(), "when": "back"})
INSIDE = dataclasses.replace(FINDING, when="back", tag="b")  # a short word: tokens take time
ONE = "a <b> c"
TWICE = "a <b> c </b> d <b> e </b> f"


def look(text, zoom=BACK, config=INSIDE, more=4, image=None, **options):
    with saying({QUESTION: text}, ends=False) as length:
        return look_closer(
            *untrained(), picture() if image is None else image, QUESTION, config, zoom,
            max_new_tokens=length + more, **options,
        )  # fmt: skip


def plain(text, more=4, config=INSIDE):
    """The answer's tokens without a closer look."""
    model, processor = untrained()
    inputs = chat_inputs(processor, [picture()], QUESTION)
    with (
        saying({QUESTION: text}, ends=False) as length,
        vrga.patch(model, config, tokenizer=processor.tokenizer),
    ):
        found = model.generate(**inputs, max_new_tokens=length + more, do_sample=False)
    return found[0, inputs["input_ids"].shape[1] :].tolist()


def test_an_answer_without_back_is_the_plain_one():
    tokens = untrained()[1].tokenizer
    found = look("a c")
    said = tokens.decode(plain("a c"), skip_special_tokens=True)
    assert found.text == said.strip() and not found.zoomed and not found.looks
    assert found.decision.reason == "no <back> in the answer" and found.second is None
    assert found.cost.second == found.cost.crops == 0


def test_each_back_is_looked_at_closer_and_the_answer_goes_on_behind_it():
    found = look(TWICE, Zoom(**{**BACK.settings(), "seek": "back"}))
    assert [one.decision.zooms for one in found.looks] in ([True, True], [True, False])
    first, second = found.looks
    assert first.text == "a <b>" and second.text == "a <b> c </b> d <b>"
    assert found.text.startswith(TWICE)
    assert found.crops[: len(first.decision.crops)] == first.decision.crops
    assert len(found.images) == 1 + len(found.crops)
    told = json.loads(json.dumps(found.numbers()))
    assert [one["at"] for one in told["looks"]] == [first.at, second.at]
    assert told["decision"]["reason"].startswith("look 1: ")


def test_what_stands_before_the_first_back_is_what_was_said_without_a_look():
    """To the bit: the logits of every token up to the first one inside the span."""
    never = Zoom(**{**BACK.settings(), "share": 0.0})
    zoomed, with_look = logits_of(lambda: look(ONE))
    without, no_look = logits_of(lambda: look(ONE, never))
    at = zoomed.looks[0].at
    assert (
        zoomed.zoomed and not without.zoomed and torch.equal(with_look[: at + 1], no_look[: at + 1])
    )
    # The token behind the <back> is chosen anew, with the crop in the prompt.
    assert not torch.equal(with_look[at + 1], no_look[at])
    said = untrained()[1].tokenizer.decode(plain(ONE), skip_special_tokens=True)
    assert without.text == said.strip()


@pytest.mark.parametrize("steer", ["place", "anew"])
def test_cached_looks_give_the_answer_of_fresh_prompts_and_of_generate(steer):
    zoom = {**BACK.settings(), "steer": steer}
    kept = look(TWICE, Zoom(**zoom))
    fresh = look(TWICE, Zoom(**{**zoom, "reuse": False}))
    generated = look(TWICE, Zoom(**zoom), record=True)
    assert kept.text == fresh.text == generated.text
    assert kept.boxes == fresh.boxes == generated.boxes
    assert kept.cost.reused > 0 == fresh.cost.reused == generated.cost.reused
    assert kept.cost.second + kept.cost.reused == fresh.cost.second == generated.cost.second
    for one, other in zip(kept.second.map, fresh.second.map, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_span_that_a_look_cut_is_still_steered():
    """The rest of the answer begins inside <back>, and steers from its first step on."""
    found = look(ONE, record=True, more=6)
    assert found.zoomed and bool(found.trace.inside[0, 0])
    strong = look(ONE, config=dataclasses.replace(INSIDE, gain=50.0), record=True, more=6)
    assert not torch.equal(strong.trace.image[0], found.trace.image[0])


def test_looks_that_are_not_taken_say_why_and_the_answer_goes_on():
    small = Image.new("RGB", (168, 168), "white")
    with pytest.warns(UserWarning, match="nothing to gain"):
        found = look(ONE, image=small)
    assert not found.zoomed and "nothing to gain" in found.decision.reason
    found = look(TWICE, Zoom(**{**BACK.settings(), "looks": 1}))
    assert "looked 1 time already: looks=1 is the most" in found.looks[1].decision.reason
    found = look(TWICE, Zoom(**{**BACK.settings(), "share": 0.0}))
    assert not found.zoomed and "not small against the picture" in found.decision.reason
    assert len(found.looks) == 2 and found.text.startswith(TWICE)
    found = look(TWICE, Zoom(**{**BACK.settings(), "seek": "question"}))
    assert found.zoomed and found.looks[0].region.query == found.region.query
    assert "looked at closer before" in found.looks[1].decision.reason


def test_no_room_in_the_context_is_a_look_that_is_not_taken(monkeypatch):
    text = untrained()[0].config.get_text_config()
    found = look(ONE)
    monkeypatch.setattr(text, "max_position_embeddings", found.cost.prompt + 20)
    again = look(ONE)
    assert not again.zoomed and "no room" in again.decision.reason


def test_what_follows_other_things_than_back_is_refused():
    for config in (VRGAConfig(when="uncertain"), VRGAConfig.released()):
        with pytest.raises(ValueError, match="Zoom\\(when='back'\\) follows <back>"):
            look(ONE, config=config)
    with pytest.raises(ValueError, match="when='back' needs order='overview'"):
        Zoom(when="back", order="crops", reuse=False)
    with pytest.raises(ValueError, match="when='back' needs steer='place' or 'anew'"):
        Zoom(when="back", steer="off")
    for wrong in ({"looks": 2}, {"seek": "question"}):
        with pytest.raises(ValueError, match="read with when='back' alone"):
            Zoom(**wrong)
    assert not whole([]).zooms


def test_the_page_shows_every_look(tmp_path):
    found = look(TWICE, record=True)
    found.trace.save(tmp_path / "closer")
    page = render([vrga.Trace.load(tmp_path / "closer")])
    assert "look 1: 1 crop of" in page and found.trace.closer["looks"][0]["at"] == found.looks[0].at


def test_an_answer_that_a_prompt_ends_amid_is_told_from_turns_that_close_or_open():
    tokenizer = untrained()[1].tokenizer
    marks = TurnMarks("<|im_start|>user", "<|im_end|>\n<|im_start|>assistant")
    ends = {tokenizer.convert_tokens_to_ids("<|im_end|>")}

    def begun(text):
        ids = torch.tensor([tokenizer.encode(text)])
        seen = torch.ones_like(ids, dtype=torch.bool)
        prompt = Prompt(ids, seen, ~seen, [[]])
        return tokenizer.decode(begun_answers(prompt, ends, marks, tokenizer)[0])

    asked = "<|im_start|>user\nred <back>?<|im_end|>\n<|im_start|>assistant\n"
    assert begun(asked).strip() == ""
    assert begun(f"{asked}a <back> b").strip() == "a <back> b"
    assert begun(f"{asked}a <back> b<|im_end|>\n<|im_start|>user\nred <back>") == ""
    assert begun("red <back> green") == ""
