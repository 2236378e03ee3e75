"""VRGAConfig refuses what it cannot mean."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from vrga import VRGAConfig
from vrga.cli.options import Preset
from vrga.config import INTEGERS, PRESETS, RANGES


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
    assert VRGAConfig() == VRGAConfig.paper() == VRGAConfig.named("default")
    ours = dataclasses.asdict(VRGAConfig.sparing())
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
        ("gain", -0.1, "must be ≥ 0"),
        ("gain", float("nan"), "must be finite"),
        ("gain", float("inf"), "must be finite"),
        ("gain", 1e39, "must be ≤ 1e+09"),
        ("gain", np.float32(-1), "must be ≥ 0"),
        ("gate_focus", 1e39, "must be ≤ 3.4028234e+38"),
        ("region_std", -1e300, "must be ≥ -1e+09"),
        ("gain", "1.5", "a number"),
        ("gate", "sometimes", "'dynamic', 'static'"),
        ("method", "magic", "'vrga', 'released'"),
        ("efr_percentile", 100.5, "must be ≤ 100"),
        ("sink_fraction", 1.5, "must be ≤ 1"),
        ("region_min", 0, "must be ≥ 1"),
        ("region_min", 2**31, "must be ≤ 2147483647"),
        ("dilation", 10**6, "must be ≤ 1000"),
        ("tag", "<back>", "without brackets"),
        ("tag", 3, "without brackets"),
        ("seed", 10**22, "must be ≤ 9223372036854775807"),
        ("seed", np.float64(3), "an integer"),
        ("gain", np.array(1.5), "a number"),
        ("gain", None, "a number"),
        ("gate", ["static"], "'dynamic', 'static'"),
        ("region_min", 2.5, "an integer"),
        ("dilation", True, "an integer"),
        ("background_layers", -1, "must be ≥ 0"),
    ],
)
def test_a_bad_value_is_named_with_its_range(field, value, told):
    with pytest.raises(ValueError) as error:
        VRGAConfig(**{field: value})
    assert field in str(error.value)
    assert repr(getattr(value, "item", lambda: value)()) in str(error.value) or told == "a number"
    assert told in str(error.value)


@pytest.mark.parametrize("field", ["gain", "seed", "region_min", "region_std"])
def test_a_number_too_long_to_be_written_is_refused_in_a_line(field):
    with pytest.raises(ValueError, match=rf"{field}=\(an integer of \d+ bits\) must be ≤"):
        dataclasses.replace(VRGAConfig(), **{field: 10**5000})


def test_the_largest_values_are_those_that_torch_takes():
    assert VRGAConfig.ablation("random", seed=2**63 - 1).seed == 2**63 - 1
    torch.Generator().manual_seed(RANGES["seed"][1])
    for field, (low, high) in RANGES.items():
        if field not in INTEGERS:
            assert torch.tensor([low, high], dtype=torch.float32).isfinite().all(), field


def test_scalars_of_numpy_become_numbers():
    config = VRGAConfig(gain=np.float32(2.5), region_min=np.int64(7), region_std=np.int32(1))
    assert config == VRGAConfig(gain=2.5, region_min=7, region_std=1)
    assert json.loads(json.dumps(dataclasses.asdict(config)))["region_min"] == 7
    assert type(config.gain) is float and type(config.region_std) is int


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
