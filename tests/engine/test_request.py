"""What a request may ask, in all its forms, and what is refused of it."""

import json

import pytest

from vrga.config import PRESETS, VRGAConfig
from vrga.engine.plan import PLAN, Plan
from vrga.engine.request import DEFAULT, METHODS, WHEN, read_request
from vrga.ranges import CHOICES


def test_nothing_is_steered_unless_a_request_asks(monkeypatch):
    monkeypatch.delenv(DEFAULT, raising=False)
    for extra in (None, {}, {"other": 1}, {"vrga": False}, {"vrga": None}, {"vrga": "false"},
                  {"vrga": "null"}):  # fmt: skip
        assert read_request(extra) is None


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_may_be_named_as_text_object_or_json(preset):
    wanted = VRGAConfig.named(preset)
    for given in (preset, {"preset": preset}, json.dumps({"preset": preset})):
        assert read_request({"vrga": given}).config == wanted
    assert wanted.method in METHODS


def test_fields_stand_over_the_presets_own():
    asked = read_request({"vrga": '{"preset": "paper", "gain": 2.5, "when": "back"}'})
    assert asked.config == VRGAConfig.paper(gain=2.5, when="back")
    assert read_request({"vrga": True}).config == VRGAConfig()
    assert read_request({"vrga": {"gate": "dynamic"}}).config == VRGAConfig(gate="dynamic")


def test_a_checkpoint_brings_its_own_configuration(tmp_path):
    VRGAConfig.sparing(gain=4).save_pretrained(tmp_path)
    assert read_request({"vrga": True}, tmp_path).config == VRGAConfig.sparing(gain=4)
    assert read_request({"vrga": {"gain": 2}}, tmp_path).config == VRGAConfig.sparing(gain=2)
    assert read_request({"vrga": "paper"}, tmp_path).config == VRGAConfig.paper()


def test_the_environment_says_what_a_silent_request_asks(monkeypatch):
    monkeypatch.setenv(DEFAULT, '{"preset": "published", "gain": 2}')
    assert read_request(None).config == VRGAConfig.published(gain=2)
    assert read_request({"vrga": "false"}) is None
    assert read_request({"vrga": "paper"}).config == VRGAConfig.paper()
    monkeypatch.setenv(DEFAULT, "publishd")
    with pytest.raises(ValueError, match=f"{DEFAULT}='publishd' is neither JSON"):
        read_request(None)


def test_boxes_are_shares_of_an_images_sides():
    asked = read_request({"vrga": {"given": [[[0, 0.25, 1, 0.5]], []]}})
    assert asked.given == (((0.0, 0.25, 1.0, 0.5),), ())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (3, "give false, true"),
        ([], "give false, true"),
        ("{", "neither JSON"),
        ('{"gain": 1, "gain": 2}', "stands in it twice"),
        ("[" * 100_000, "nested too deep"),
        ("3", "give false, true"),
        ({"preset": "papers"}, "preset 'papers'"),
        ({"preset": 3}, "preset=3"),
        ({"gian": 1.5}, "did you mean gain"),
        ({"gain": "1.5"}, "gain='1.5' is not a number"),
        ({"gain": float("nan")}, "must be finite"),
        ('{"gain": NaN}', "must be finite"),
        ({"gain": -1}, "must be ≥ 0"),
        ({"gate_focus": 1}, "not read by"),
        ({"when": "never"}, "is not one of"),
        ({"relocate": "back"}, "does not run in vLLM"),
        ({"when": "uncertain"}, "does not run in vLLM"),
        ({"method": "ablation", "ablate": "visual", "gate": "dynamic"}, "does not run in vLLM"),
        ({"query": ""}, "give the question's text"),
        ({"query": 7}, "give the question's text"),
        ({"given": []}, "no box at all"),
        ({"given": [[]]}, "no box at all"),
        ({"given": [[0, 0, 1, 1]]}, "given has the box 0"),
        ({"given": [[[0, 0, 1]]]}, "given has the box"),
        ({"given": [[[0, 0, 1, 28]]]}, "given has the box"),
        ({"given": [[[0.5, 0, 0.5, 1]]]}, "given has the box"),
        ({"given": [[[0, 0, True, 1]]]}, "given has the box"),
        ({"given": [[[0, 0, float("nan"), 1]]]}, "given has the box"),
        ({"given": "all"}, "wanted: for each image"),
        ({"given": {"0": []}}, "wanted: for each image"),
    ],
    ids=lambda one: str(one)[:30],
)  # fmt: skip
def test_what_is_none_is_refused_with_what_is_accepted(given, told):
    with pytest.raises(ValueError, match="^vrga") as raised:
        read_request({"vrga": given})
    assert told in str(raised.value)


def test_what_a_configuration_may_choose_is_run_or_refused():
    """What comes to the configuration later is refused until the engine does it."""
    for name, runs in (("when", WHEN), ("relocate", ("question",)), ("method", METHODS)):
        for choice in CHOICES[name]:
            fields = {name: choice, "ablate": "visual", "gate": "dynamic"} if choice == "ablation" \
                else {"preset": choice} if name == "method" and choice in PRESETS \
                else {name: choice}  # fmt: skip
            if choice in runs:
                assert getattr(read_request({"vrga": fields}).config, name) == choice
            else:
                with pytest.raises(ValueError, match=f"{name}={choice!r} does not run in vLLM"):
                    read_request({"vrga": fields})


def test_a_plan_travels_as_json():
    boxes = (((0.0, 0.25, 1.0, 0.5),), ())
    for config in (VRGAConfig.sparing(), VRGAConfig.released(), VRGAConfig.released_mask()):
        plan = Plan(config, 57, 51, ((4, 36), (43, 9)), boxes)
        assert Plan.within({PLAN: json.loads(json.dumps(plan.to_dict()))}) == plan
    assert Plan.within({"vrga": "paper"}) is None and Plan.within(None) is None


def test_the_released_code_looks_one_token_before_the_questions_end():
    assert Plan(VRGAConfig(), 57, 51, ((4, 36),)).probed == 51
    assert Plan(VRGAConfig.released(), 57, 51, ((4, 36),)).probed == 50
