"""When a closer look is taken, and at which crops."""

import math

import numpy as np
import pytest
import torch

from vrga.closer.crops import Spot, crop_boxes, crops_around, decide, find_spots
from vrga.closer.zoom import Zoom, zoom_with
from vrga.method.heads import HeadStatistics
from vrga.method.prompt import Grid
from vrga.method.region import Region


def region_of(maps, masks=None):
    """A region with these maps, one a picture; T is all of them unless masks are given."""
    grids, start = [], 1
    for part in maps:
        h, w = part.shape
        grids.append(Grid(torch.arange(start, start + h * w), h, w))
        start += h * w
    image = torch.zeros(start + 2, dtype=torch.bool)
    mask = image.clone()
    masks = [torch.ones_like(part, dtype=torch.bool) for part in maps] if masks is None else masks
    for grid, cells in zip(grids, masks, strict=True):
        image[grid.index] = True
        mask[grid.index] = cells.flatten()
    none = torch.zeros(1, 1, dtype=torch.bool)
    heads = HeadStatistics(*torch.zeros(3, 1, 1))
    focus = mask.nonzero().flatten()
    return Region(start + 1, focus, mask, image, list(maps), grids, none, none, heads)


def heat(h, w, **cells):
    """A map of zeros but for cells "r2c3=0.5"."""
    found = torch.zeros(h, w)
    for name, value in cells.items():
        row, column = name[1:].split("c")
        found[int(row), int(column)] = value
    return found


def cells(h, w, *places):
    mask = torch.zeros(h, w, dtype=torch.bool)
    for row, column in places:
        mask[row, column] = True
    return mask


@pytest.mark.parametrize(
    "field, value",
    [
        ("crops", 0), ("crops", 1.5), ("crops", True), ("threshold", 1.1), ("threshold", -0.1),
        ("threshold", math.nan), ("margin", -1), ("margin", math.inf), ("least", 0),
        ("aspect", 0.5), ("pixels", 0), ("pixels", "many"), ("enlarge", 0.9), ("share", 2),
        ("gain", 0.5), ("overview_pixels", 0), ("overview_pixels", 2.5), ("within", "T"),
        ("steer", None), ("order", "question"), ("reuse", 1), ("crops", None),
    ],
)  # fmt: skip
def test_a_field_out_of_range_is_named_with_its_value(field, value):
    with pytest.raises(ValueError, match=f"{field}={value!r}"):
        Zoom(**{field: value})


def test_reuse_needs_the_pictures_first():
    with pytest.raises(ValueError, match="order='overview'"):
        Zoom(order="crops")
    assert Zoom(order="crops", reuse=False).order == "crops"


def test_fields_are_read_from_text():
    found = zoom_with(Zoom(), ["crops=3", "margin=0.5", "reuse=false", "within=map"])
    assert found == Zoom(crops=3, margin=0.5, reuse=False, within="map")
    assert zoom_with(Zoom(overview_pixels=5000), ["overview_pixels=none"]).overview_pixels is None


@pytest.mark.parametrize(
    "given, told",
    [
        (["crop=1"], "field=value"),
        (["crops"], "field=value"),
        (["crops=two"], "crops='two'"),
        (["crops=1", "crops=2"], "given twice"),
        (["reuse=maybe"], "reuse='maybe'"),
        (["margin=nan"], "margin=nan"),
    ],
)
def test_what_is_no_field_or_value_is_refused(given, told):
    with pytest.raises(ValueError, match=told):
        zoom_with(Zoom(), given)


def test_spots_are_the_connected_cells_near_the_highest():
    part = heat(6, 6, r1c1=0.3, r2c2=0.2, r4c5=0.4, r5c0=0.05)
    spots = find_spots(region_of([part]), Zoom(threshold=0.5))
    assert [spot.cells.nonzero().tolist() for spot in spots] == [[[1, 1], [2, 2]], [[4, 5]]]
    assert [spot.weight for spot in spots] == pytest.approx([0.5, 0.4])
    only = find_spots(region_of([part]), Zoom(threshold=0.6))
    assert [spot.weight for spot in only] == pytest.approx([0.4, 0.3])


def test_spots_lie_in_the_region_unless_the_whole_map_is_sought():
    part = heat(4, 4, r0c0=0.7, r2c2=0.3)
    region = region_of([part], [cells(4, 4, (2, 2), (2, 3))])
    inside = find_spots(region, Zoom())
    assert [spot.cells.nonzero().tolist() for spot in inside] == [[[2, 2]]]
    (whole,) = find_spots(region, Zoom(within="map", threshold=0.5))
    assert whole.cells.nonzero().tolist() == [[0, 0]]


@pytest.mark.parametrize(
    "region",
    [region_of([torch.zeros(4, 4)]), region_of([torch.rand(4, 4)], [cells(4, 4)]), region_of([])],
    ids=["flat map", "empty region", "no picture"],
)
def test_nothing_stands_out_of_nothing(region):
    assert find_spots(region, Zoom()) == []
    decision = decide((), [(672, 672)], Zoom())
    assert not decision.zooms and "nothing stands out" in decision.reason


def test_a_crop_covers_its_cells_with_their_margin():
    spot = Spot(0, cells(6, 6, (2, 3)), 1.0)
    for margin, box in ((0.0, (336, 224, 448, 336)), (0.25, (308, 196, 476, 364))):
        (crop,) = crops_around([spot], [(672, 672)], [(168, 168)], Zoom(margin=margin))
        assert crop.box == box and crop.size == (box[2] - box[0], box[3] - box[1])
        assert crop.magnification == pytest.approx(4)


def test_a_crop_at_the_edge_stays_in_the_picture():
    spot = Spot(0, cells(6, 6, (0, 5)), 1.0)
    (crop,) = crops_around([spot], [(672, 672)], [(168, 168)], Zoom(margin=0.25, least=200))
    assert crop.box == (472, 0, 672, 200)


def test_a_long_spot_is_widened_to_the_aspect_and_never_distorted():
    spot = Spot(0, cells(8, 8, *[(3, c) for c in range(8)]), 1.0)
    zoom = Zoom(margin=0.0, aspect=2.0, pixels=20 * 784)
    (crop,) = crops_around([spot], [(896, 896)], [(224, 224)], zoom)
    width, height = crop.box[2] - crop.box[0], crop.box[3] - crop.box[1]
    assert (width, height) == (896, 448)
    assert crop.size[0] * crop.size[1] <= zoom.pixels
    assert crop.size[0] / crop.size[1] == pytest.approx(2.0, rel=0.35)  # whole tokens of 28


def test_overlapping_crops_become_one_and_the_rest_stay_apart():
    spots = [Spot(0, cells(6, 6, place), 0.2) for place in ((5, 5), (0, 0), (0, 2))]
    zoom = Zoom(crops=3, margin=0.0)
    sizes, seen = [(672, 672)], [(168, 168)]
    assert len(crops_around(spots, sizes, seen, zoom)) == 3
    joined = crops_around(spots, sizes, seen, Zoom(crops=3, margin=0.6))
    assert len(joined) == 2
    assert joined[0].box[0] == 0 and joined[0].box[2] > 336
    assert joined[0].weight == pytest.approx(0.4)


def test_the_weightiest_spots_are_shown_in_reading_order():
    places = ((5, 5), (0, 0), (3, 3))
    spots = [Spot(0, cells(6, 6, p), w) for p, w in zip(places, (0.5, 0.3, 0.2), strict=True)]
    found = crops_around(spots, [(672, 672)], [(168, 168)], Zoom(crops=2, margin=0.0))
    assert [crop.box[:2] for crop in found] == [(0, 0), (560, 560)]


def test_crops_of_several_pictures_know_theirs():
    spots = [Spot(1, cells(4, 4, (1, 1)), 0.6), Spot(0, cells(6, 6, (1, 1)), 0.4)]
    sizes, seen = [(672, 672), (1120, 1120)], [(168, 168), (112, 112)]
    found = crops_around(spots, sizes, seen, Zoom(margin=0.0))
    assert [(crop.image, crop.box) for crop in found] == [
        (0, (112, 112, 224, 224)), (1, (280, 280, 560, 560)),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_crops_of_any_region_keep_their_promises(seed):
    rng = np.random.default_rng(seed)
    h, w = rng.integers(1, 24, size=2).tolist()
    size = tuple(rng.integers(1, 4000, size=2).tolist())
    zoom = Zoom(
        crops=int(rng.integers(1, 5)),
        threshold=float(rng.random()),
        margin=float(rng.random() * 2),
        least=int(rng.integers(1, 800)),
        aspect=float(1 + 4 * rng.random()),
        pixels=int(rng.integers(784, 784 * 500)),
        enlarge=float(1 + 2 * rng.random()),
    )
    part = torch.from_numpy(rng.random((h, w)).astype(np.float32)) ** 4
    spots = find_spots(region_of([part / part.sum()]), zoom)
    found = crops_around(spots, [size], [(w * 28, h * 28)], zoom)
    assert 1 <= len(found) <= zoom.crops
    shown = 0
    for number, crop in enumerate(found):
        left, top, right, bottom = crop.box
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
        assert crop.size[0] % 28 == crop.size[1] % 28 == 0 and min(crop.size) >= 28
        shown += crop.size[0] * crop.size[1]
        for other in found[:number]:
            apart = (
                right <= other.box[0] or other.box[2] <= left
                or bottom <= other.box[1] or other.box[3] <= top
            )  # fmt: skip
            assert apart
    assert shown <= max(zoom.pixels, 784 * len(found))
    top = spots[0].cells.nonzero()[0]
    x, y = (int(top[1]) + 0.5) * size[0] / w, (int(top[0]) + 0.5) * size[1] / h
    assert any(c.box[0] <= x <= c.box[2] and c.box[1] <= y <= c.box[3] for c in found)


def test_the_true_box_is_cropped_as_the_cells_it_touches():
    zoom = Zoom(margin=0.0)
    (crop,) = crop_boxes([(230, 120, 300, 200)], (672, 672), (168, 168), zoom)
    assert crop.box == (224, 112, 336, 224)


@pytest.mark.parametrize(
    "seen, zoom, zooms, told",
    [
        ((168, 168), Zoom(margin=0.0), True, "4.0 times larger"),
        ((168, 168), Zoom(margin=0.0, share=0.02), False, "not small against the picture"),
        ((168, 168), Zoom(margin=0.0, gain=4.5), False, "not enough more to see"),
        ((504, 504), Zoom(margin=0.0), False, "not enough more to see"),
    ],
)
def test_a_closer_look_is_taken_where_it_is_small_and_shows_more(seen, zoom, zooms, told):
    spot = Spot(0, cells(6, 6, (2, 3)), 1.0)
    crops = crops_around([spot], [(672, 672)], [seen], zoom)
    decision = decide(crops, [(672, 672)], zoom)
    assert decision.zooms is zooms and told in decision.reason
    assert decision.crops == crops and decision.share == pytest.approx(1 / 36, rel=0.01)
