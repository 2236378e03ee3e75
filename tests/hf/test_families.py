"""Every model family: patched generation is the method, row by row, in plain loops."""

import pytest
import torch
from families import FAMILIES
from replay import Replay
from tiny import generate

import vrga
from vrga import VRGAConfig
from vrga.hf.families import FAMILIES as SUPPORTED


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return FAMILIES[request.param]


def text_model(model):
    return model.model.text_model if hasattr(model.model, "text_model") else None


def test_every_supported_family_is_tested():
    assert set(FAMILIES) == set(SUPPORTED)


@pytest.mark.parametrize("gate", ["dynamic", "static"])
@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_generation_is_the_method_in_loops(family, impl, gate):
    model, counts = family.shared, [1, 2]
    batch = family.batch(counts)
    with vrga.patch(model, VRGAConfig.published(gain=3.0, gate=gate), impl=impl) as patch:
        tokens, logits = generate(model, batch.inputs, 5)
        regions = patch.region
    for row, region in enumerate(regions):
        grids = [(grid.index.tolist(), grid.h, grid.w) for grid in region.grids]
        assert grids == batch.grids[row] and region.query == batch.query[row]
        alone = family.alone(batch, row)
        replay = Replay(model, 3.0, gate, text_model(model))
        expected = replay.turn(alone.inputs, tokens[row], alone.query[0], alone.grids[0])
        torch.testing.assert_close(logits[row], expected, rtol=2e-3, atol=2e-3)
        pads = batch.inputs["input_ids"].shape[1] - alone.inputs["input_ids"].shape[1]
        assert [p - pads for p in region.focus.tolist()] == replay.found["focus"]
        assert [p - pads for p in region.mask.nonzero()[:, 0].tolist()] == replay.found["mask"]
    assert replay.opened


VIDEOS = [name for name, family in FAMILIES.items() if hasattr(family, "video")]


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_of_a_video_are_grids_of_their_own(name):
    """A row with a video, a row with an image and a video."""
    family = FAMILIES[name]
    g = torch.Generator().manual_seed(2)
    family._several = [False]
    words = [11, 12, 13, 1, 20, 21]
    batch = family.assemble([
        [[5, 6], family.video(g, 0), words],
        [[5, 6, 7], family.image(g, 0), [8], family.video(g, 1), words],
    ])  # fmt: skip
    model = family.shared
    with vrga.patch(model, VRGAConfig.published(gain=3.0)) as patch:
        tokens, logits = generate(model, batch.inputs, 5)
        regions = patch.region
        whole = {k: v for k, v in batch.inputs.items()}
        with torch.no_grad():
            model(**whole)  # the grids are also found by hand
        by_hand = patch.region
    for row, region in enumerate(regions):
        grids = [(grid.index.tolist(), grid.h, grid.w) for grid in region.grids]
        assert grids == batch.grids[row] and len(region.map) == len(grids)
        assert [m.shape for m in region.map] == [(h, w) for _, h, w in grids]
        assert torch.equal(by_hand[row].mask, region.mask)
        alone = family.alone(batch, row)
        replay = Replay(model, 3.0)
        expected = replay.turn(alone.inputs, tokens[row], alone.query[0], alone.grids[0])
        torch.testing.assert_close(logits[row], expected, rtol=2e-3, atol=2e-3)


def test_gain_1_and_unpatching_leave_the_model_as_it_is(family):
    model, batch = family.shared, family.batch([1, 2])
    base = generate(model, batch.inputs, 4)[1]
    with vrga.patch(model, VRGAConfig.published(gain=1.0)) as patch:
        assert torch.equal(generate(model, batch.inputs, 4)[1], base)
        patch.config = VRGAConfig.published(gain=3.0)
        assert not torch.equal(generate(model, batch.inputs, 4)[1], base)
    assert torch.equal(generate(model, batch.inputs, 4)[1], base)


def test_text_alone_is_bit_identical(family):
    model, batch = family.shared, family.batch([0, 0])
    base = generate(model, batch.inputs, 4)[1]
    with vrga.patch(model):
        assert torch.equal(generate(model, batch.inputs, 4)[1], base)


def test_images_that_do_not_fit_are_an_error(family):
    model, batch = family.shared, family.batch([1])
    ids = batch.inputs["input_ids"]
    with vrga.patch(model) as patch, pytest.raises(ValueError, match="image tokens|grids"):
        # One image token turned into text, or into another one where sizes are fixed.
        broken = ids.clone()
        broken[0, batch.grids[0][0][0][-1]] = 5
        patch.announce(dict(batch.inputs, input_ids=broken))
        model.model(**dict(batch.inputs, input_ids=broken))
