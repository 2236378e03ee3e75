"""Phase 1: from attention rows to heads, map and region."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import region as naive_region

from vrga import VRGAConfig
from vrga.method.heads import HeadStatistics, background_heads, head_statistics, visual_heads
from vrga.method.prompt import Grid
from vrga.method.region import above_threshold, dilate, empty_region, find_region, sink_border
from vrga.method.released import RELEASED


def attention_rows(layers, heads, length, seed, sharpness=2.0):
    """Random attention to `length` keys, float64 [L, H, S]."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(layers, heads, length, generator=g, dtype=torch.float64)
    return (scores * sharpness).softmax(-1)


def layout(shapes, start=3, gap=2):
    """Grids of the given (h, w) one after the other, and the row's length."""
    grids, place = [], start
    for h, w in shapes:
        grids.append(Grid(torch.arange(place, place + h * w), h, w))
        place += h * w + gap
    return grids, place + 6


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(2, 9), st.integers(1, 9)), min_size=1, max_size=3),
    layers=st.integers(1, 12),
    heads=st.sampled_from([1, 5, 8]),
    sharpness=st.sampled_from([0.5, 2.0, 6.0]),
    seed=st.integers(0, 1000),
)
def test_region_is_the_papers(shapes, layers, heads, sharpness, seed):
    grids, length = layout(shapes)
    rows = attention_rows(layers, heads, length, seed, sharpness)
    # Some heads of the first layer look past the image.
    rows[0, ::2, 3 : length - 6] *= 1e-3
    rows = rows / rows.sum(-1, keepdim=True)
    found = find_region(
        rows,
        grids,
        length - 1,
        torch.ones(len(rows), length, dtype=torch.bool),
        VRGAConfig.published(),
    )
    focus, mask, visual, relevance = naive_region(
        rows.numpy(), [(g.index.tolist(), g.h, g.w) for g in grids], length
    )
    # Where the background leaves fewer tokens than region_min, which zeros fill T is free.
    order = torch.cat([g.index for g in grids]).tolist()
    if all(relevance[order.index(place)] > 0 for place in focus):
        assert found.focus.tolist() == focus
        assert found.mask.nonzero()[:, 0].tolist() == mask
    assert [tuple(x) for x in found.visual.nonzero().tolist()] == visual
    np.testing.assert_allclose(
        torch.cat([m.flatten() for m in found.map]), relevance, rtol=1e-4, atol=1e-7
    )
    assert [m.shape for m in found.map] == [torch.Size(s) for s in shapes]
    assert sum(m.sum() for m in found.map) == pytest.approx(float(relevance.sum() > 0))


def test_statistics_of_a_uniform_row():
    rows = torch.full((1, 1, 20), 1 / 20)
    stats = head_statistics(rows, torch.arange(5, 13), 20)
    assert stats.focus.item() == pytest.approx(1)
    assert stats.entropy.item() == pytest.approx(np.log(8))
    assert stats.efr.item() == pytest.approx(np.log(8))


def test_visual_heads_fall_back_to_focus_alone():
    # The head with the lowest EFR looks at one token, but past the image otherwise.
    focus = torch.linspace(0.1, 2.0, 40).view(4, 10)
    entropy = torch.full((4, 10), 3.0)
    entropy[0, 0] = 1e-3
    stats = HeadStatistics(focus, entropy, entropy / focus)
    assert visual_heads(stats, VRGAConfig.published(efr_percentile=0.0)).nonzero().tolist() == [
        [3, 8],
        [3, 9],
    ]
    entropy[3, 9] = 1e-6
    stats = HeadStatistics(focus, entropy, entropy / focus)
    assert visual_heads(stats, VRGAConfig.published(efr_percentile=0.0)).nonzero().tolist() == [
        [3, 9]
    ]


def test_background_heads_stand_in_the_lowest_layers_alone():
    rows = attention_rows(20, 4, 30, 0)
    rows[:, 1, 4:20] = 1e-9
    stats = head_statistics(rows / rows.sum(-1, keepdim=True), torch.arange(4, 20), 30)
    chosen = background_heads(stats, VRGAConfig.published())
    assert chosen.nonzero().tolist() == [[0, 1], [1, 1]]
    assert not background_heads(stats, VRGAConfig.published(background_layers=0.0)).any()


@pytest.mark.parametrize(
    ("h", "w", "fraction", "cells"),
    [
        (5, 5, 0.2, [0, 1, 2, 5, 6]),
        (5, 5, 1.0, [0, 1, 2, 3, 4, 5, 6, 10, 15, 20]),
        (1, 10, 0.2, [0, 1]),
        (10, 1, 0.3, [0, 1, 2]),
        (1, 1, 0.2, []),
        (4, 4, 0.0, []),
    ],
)
def test_sink_border(h, w, fraction, cells):
    assert sink_border(h, w, fraction).nonzero()[:, 0].tolist() == cells


def test_dilation_grows_in_two_dimensions():
    cells = torch.zeros(5, 6, dtype=torch.bool)
    cells[2, 3] = True
    grown = dilate(cells, 1)
    assert grown.sum() == 9 and grown[1:4, 2:5].all()
    assert torch.equal(dilate(cells, 0), cells)


def test_a_row_without_an_image_has_an_empty_region():
    region = empty_region(4, 9, (3, 2))
    assert region.map == [] and not region.mask.any() and len(region.focus) == 0
    assert region.heads.efr.shape == (3, 2) and region.heads.efr.isnan().all()


@pytest.mark.parametrize("preset", [VRGAConfig.released, VRGAConfig.released_mask])
def test_released_knows_one_image(preset):
    grids, length = layout([(4, 4), (3, 3)])
    rows = attention_rows(2, 8, length, 0)
    seen = torch.ones(len(rows), length, dtype=torch.bool)
    with pytest.raises(ValueError, match="one image per row"):
        find_region(rows, grids, length - 1, seen, preset(), RELEASED)
    found = find_region(rows, grids[:1], length - 1, seen, preset(), RELEASED)
    assert found.image.sum() == 17


def test_region_min_keeps_the_highest():
    grids, length = layout([(6, 6)])
    rows = attention_rows(3, 8, length, 1)
    config = VRGAConfig.published(region_std=50.0, region_min=4)
    found = find_region(
        rows, grids, length - 1, torch.ones(len(rows), length, dtype=torch.bool), config
    )
    kept = torch.where(sink_border(6, 6, 0.2), -1.0, found.map[0].flatten())
    assert set(found.focus.tolist()) == set((kept.topk(4).indices + 3).tolist())


@pytest.mark.parametrize("sinks", [False, True], ids=["no sinks", "sinks"])
def test_the_border_is_left_out_where_background_heads_show_sinks(sinks):
    grids, length = layout([(6, 6)])
    rows = torch.full((3, 4, length), 1.0 / length, dtype=torch.float64)
    rows[2, 0] = torch.nn.functional.one_hot(grids[0].index[4], length)  # in the first row
    if sinks:
        rows[0, 1] = torch.nn.functional.one_hot(torch.tensor(0), length)  # not at the image
    seen = torch.ones(3, length, dtype=torch.bool)
    config = VRGAConfig.sparing(efr_percentile=100.0)
    found = find_region(rows, grids, length - 1, seen, config)
    assert bool(found.background.any()) == sinks
    assert bool(found.mask[grids[0].index[4]]) == (not sinks)
    always = VRGAConfig.sparing(efr_percentile=100.0, sink_border="always")
    found = find_region(rows, grids, length - 1, seen, always)
    assert not found.mask[grids[0].index[4]]


def test_the_deviation_of_the_threshold_is_the_unbiased_one():
    """Of ratios 0, 0, 2, 2 it is 1.15, and the biased one 1: a threshold between tells them."""
    relevance, kept = torch.tensor([0.0, 0.0, 4.0, 4.0]), torch.ones(4, dtype=torch.bool)
    found = [
        above_threshold(relevance, kept, VRGAConfig(region_std=std, region_min=1)).tolist()
        for std in (0.8, 0.95)  # thresholds of 1.92 and, biased, 1.95; of 2.10
    ]
    assert found == [[False, False, True, True], [False, False, True, False]]
