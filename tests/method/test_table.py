"""A method of one's own is one set of rules, and is steered by like the paper's."""

import runpy
from pathlib import Path

import pytest
import replay
import torch
from families import FAMILIES
from replay import Replay
from tiny import generate

import vrga
from vrga import VRGAConfig
from vrga.config import READ_BY
from vrga.method.region import PAPER
from vrga.method.table import METHODS, add_method

QWEN = FAMILIES["qwen2_5_vl"]
EXAMPLE = Path(__file__).parents[2] / "examples" / "own_method.py"


@pytest.fixture
def added(monkeypatch):
    """Adds methods, until the test ends."""
    monkeypatch.setattr("vrga.method.table.METHODS", methods := dict(METHODS))
    own = dict(READ_BY)
    yield add_method
    assert METHODS.keys() < methods.keys()
    READ_BY.clear()
    READ_BY.update(own)


def test_the_examples_heads_see_more_of_the_whole_image(added, monkeypatch):
    added("middle", runpy.run_path(str(EXAMPLE))["MIDDLE"])
    config, model, batch = VRGAConfig(method="middle", gain=3), QWEN.shared, QWEN.batch([1])
    with vrga.patch(model, config) as patch:
        tokens, logits = generate(model, batch.inputs, 5)
        region, steps = patch.region[0], patch.steps[0]
        assert "middle, gain 3" in config.name and "gain 3" in repr(patch)
    layers = len(region.visual)
    image = region.image.nonzero()[:, 0].tolist()
    assert torch.equal(region.mask, region.image) and steps.steered == 4
    assert region.visual.all(1).tolist() == [layers // 3 <= i < -(-2 * layers // 3)
                                             for i in range(layers)]  # fmt: skip
    assert 0 < region.visual.sum() < region.visual.numel()

    visual = region.visual.nonzero().numpy()
    monkeypatch.setattr(replay, "region", lambda *a, **b: (image, image, visual, None))
    found = Replay(model, 3.0, "static")
    wanted = found.turn(batch.inputs, tokens[0], batch.query[0], batch.grids[0])
    assert torch.allclose(logits[0], wanted, rtol=2e-3, atol=2e-3)
    with vrga.patch(model, VRGAConfig(gain=3)):
        assert not torch.allclose(generate(model, batch.inputs, 5)[1][0], wanted, rtol=2e-3)


def test_a_field_that_the_method_does_not_read_is_refused(added):
    added("mine", PAPER, reads=["dilation", "gate", "gate_focus"])
    assert VRGAConfig(method="mine", gate="dynamic", gate_focus=1.0, dilation=2).boosts
    with pytest.raises(ValueError, match="region_std=9.0 is not read by method='mine'"):
        VRGAConfig(method="mine", region_std=9.0)


@pytest.mark.parametrize("name, reads, told", [
    ("vrga", [], "method 'vrga' is there already"),
    ("", [], "method '' is there already or no name"),
    ("other", ["gian"], r"reads \['gian'\], which are no fields"),
], ids=["taken", "no name", "no field"])  # fmt: skip
def test_what_cannot_be_added_is_refused(name, reads, told):
    before = dict(READ_BY)
    with pytest.raises(ValueError, match=told):
        add_method(name, PAPER, reads)
    assert before == READ_BY


def test_a_method_that_nobody_added_is_unknown():
    with pytest.raises(ValueError, match="method='middle' is not one of 'vrga', 'released'"):
        VRGAConfig(method="middle")
