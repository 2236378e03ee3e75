"""VRGAConfig refuses what it cannot mean."""

import dataclasses

import pytest

from vrga import VRGAConfig
from vrga.cli import Preset
from vrga.config import PRESETS


def test_the_published_numbers():
    config = VRGAConfig.published()
    assert (config.gain, config.gate_focus, config.gate_entropy) == (1.5, 0.6, 0.2)
    assert (config.efr_percentile, config.focus_percentile) == (5, 95)
    assert (config.sink_fraction, config.region_std, config.region_min) == (0.2, 0.6, 10)
    assert (config.background_layers, config.background_focus) == (0.1, 0.01)
    assert (config.gate, config.dilation, config.background_weight) == ("dynamic", 1, 1)
    assert config.sink_border == "always"
    paper = VRGAConfig.paper()
    assert paper.gate == "static" and dataclasses.replace(paper, gate="dynamic") == config


def test_presets_are_not_moved_by_the_defaults():
    """Each states its numbers; a default that changes changes `VRGAConfig()` alone."""
    ours = dataclasses.asdict(VRGAConfig())
    wanted = dict(gain=3.0, gate="static", efr_percentile=15.0, focus_percentile=70.0,
                  sink_border="background", region_std=2.0, region_min=1, dilation=0)  # fmt: skip
    assert {name: ours[name] for name in wanted} == wanted
    for preset, dilation in (("published", 1), ("paper", 1), ("released", 2), ("released_mask", 3)):
        config = VRGAConfig.named(preset)
        assert (config.gain, config.region_min, config.region_std) == (1.5, 10, 0.6)
        assert (config.efr_percentile, config.focus_percentile) == (5, 95)
        assert (config.dilation, config.sink_border) == (dilation, "always")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("gain", -0.1, "[0.0, inf]"),
        ("gain", float("nan"), "[0.0, inf]"),
        ("gain", float("inf"), "finite"),
        ("gain", "1.5", "a number"),
        ("gate", "sometimes", "'dynamic', 'static'"),
        ("method", "magic", "'vrga', 'released'"),
        ("efr_percentile", 100.5, "[0.0, 100.0]"),
        ("sink_fraction", 1.5, "[0.0, 1.0]"),
        ("region_min", 0, "[1, inf]"),
        ("region_min", 2.5, "an integer"),
        ("dilation", True, "an integer"),
        ("background_layers", -1, "[0.0, 1.0]"),
    ],
)
def test_a_bad_value_is_named_with_its_range(field, value, told):
    with pytest.raises(ValueError) as error:
        VRGAConfig(**{field: value})
    assert field in str(error.value) and repr(value) in str(error.value)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [
        (VRGAConfig.released, "gate", "static"),
        (VRGAConfig.released, "background_layers", 0.5),
        (VRGAConfig.released_mask, "gain", 2.0),
        (VRGAConfig.released_mask, "region_min", 3),
        (VRGAConfig, "heads", 4),
        (VRGAConfig.paper, "gate_focus", 5.0),
        (VRGAConfig, "ablate", "visual"),
    ],
)
def test_an_option_its_method_does_not_read_is_refused(make, field, value):
    with pytest.raises(ValueError, match=f"{field}=.*is not read by method"):
        make(**{field: value})


def test_ablation_needs_a_known_kind_of_head():
    with pytest.raises(ValueError, match="ablate='all'"):
        VRGAConfig.ablation("all")
    assert VRGAConfig.ablation("random", heads=3, first_layer=0, seed=7).seed == 7
    with pytest.raises(ValueError, match="heads=3 is not read"):
        VRGAConfig.ablation("given", heads=3)


def test_presets_differ_where_they_say():
    assert VRGAConfig.paper() == VRGAConfig.published(gate="static")
    assert VRGAConfig.paper(gain=2.0).gain == 2.0
    assert VRGAConfig.released().dilation == 2
    assert VRGAConfig.released_mask().dilation == 3


def test_the_commands_know_every_preset():
    assert tuple(preset.value for preset in Preset) == PRESETS


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        VRGAConfig().gain = 2.0
