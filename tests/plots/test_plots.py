"""Pictures show what they say: brightness, outlines, lines, marks, shading."""

import json
import re
from dataclasses import replace
from functools import partial
from importlib.resources import files

import numpy as np
import pytest
import torch
from families import FAMILIES
from matplotlib.figure import Figure
from PIL import Image
from tiny import VIDEO, VISION_END, VISION_START, tiny_model, token_types
from traces import filled_trace

import vrga
from vrga import Trace, VRGAConfig
from vrga.heat import COLD, HEAT, STRENGTH, heat_colors
from vrga.intervals import pearson
from vrga.method.prompt import Grid
from vrga.method.timeline import Relocation
from vrga.plots import (
    atlas_figure,
    compare_figure,
    region_figure,
    save,
    scatter_figure,
    token_figure,
    trend_figure,
)
from vrga.plots.pictures import picture


@pytest.fixture(scope="module")
def trace():
    return filled_trace()


def panels(figure):
    """The axes that show something, colour bars left out."""
    return [a for a in figure.axes if a.axison and a.get_label() != "<colorbar>"]


def heat_of(axis):
    """The levels of the map over a picture, [h, w], as its opacity tells."""
    opacity = axis.get_images()[1].get_array()[..., 3]
    return (opacity / STRENGTH - COLD) / (1 - COLD)


def outline(axis):
    """The segments drawn over a picture."""
    return {tuple(map(tuple, line.get_xydata().tolist())) for line in axis.lines}


def ones(rows):
    """Watched cells: all of each image."""
    return [[torch.ones(grid.h, grid.w, dtype=torch.bool) for grid in grids] for grids in rows]


def drawn(figure, path):
    """The figure's file has the size and colours of a picture."""
    with Image.open(save(figure, path)) as image:
        assert min(image.size) > 200
        assert len(image.convert("RGB").getcolors(10**7)) > 20


def test_the_map_of_a_region_is_bright_where_it_is_high(trace, tmp_path):
    scattered = torch.rand(len(trace.regions[1].mask), generator=torch.Generator().manual_seed(0))
    strong, weak = trace.regions[1].map[0], trace.regions[1].map[1] / 40
    region = replace(trace.regions[1], mask=scattered < 0.5, map=[strong, weak])
    figure = region_figure(trace.images[1], region, title="costs $5 or $6?", answers={"a": "b"})
    marked = panels(figure)[1::2]
    assert len(marked) == 2
    top = float(strong.max())
    assert weak.max() < top / 10
    for axis, heat, grid in zip(marked, region.map, region.grids, strict=True):
        heat = heat.numpy()
        np.testing.assert_allclose(heat_of(axis), heat / top, atol=1e-6)
        mask = region.mask[grid.index].view(grid.h, grid.w)
        # An edge is drawn where one of the two cells that it parts is in T.
        for r in range(1, grid.h):
            for c in range(grid.w):
                edge = ((c, r), (c + 1, r))
                assert (edge in outline(axis)) == bool(mask[r, c] != mask[r - 1, c])
        for r in range(grid.h):
            for c in range(1, grid.w):
                edge = ((c, r), (c, r + 1))
                assert (edge in outline(axis)) == bool(mask[r, c] != mask[r, c - 1])
    drawn(figure, tmp_path / "region.png")


def test_frames_of_a_video_are_drawn_one_for_each_grid(tmp_path):
    model = tiny_model()
    ids = [5, VISION_START, *[VIDEO] * 24, VISION_END, 7, 8, 9, 1, 3]
    inputs = dict(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        pixel_values_videos=torch.randn(96, 1176),
        video_grid_thw=torch.tensor([[2, 6, 8]]),
        **token_types(torch.tensor([ids]), VIDEO),
    )
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] *= 2
    with vrga.patch(model) as patch, patch.record(maps="visual") as trace:
        model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    frames = [Image.new("RGB", (112, 84), (60 * i, 0, 0)) for i in range(4)]  # merged in pairs
    figure = region_figure(frames, patch.region[0])
    plain = [int(axis.get_images()[0].get_array()[0, 0, 0]) for axis in panels(figure)[::2]]
    assert plain == [0, 120]
    trace.attach(images=[frames])
    assert len(panels(token_figure(trace, [0, 1]))) == 4
    drawn(figure, tmp_path / "video.png")


def test_each_token_has_its_own_map(trace, tmp_path):
    figure = token_figure(trace, [3, 1], row=0)
    shown = panels(figure)
    assert [a.get_title() for a in shown] == [f"{i + 1}: {trace.texts[0][i]}" for i in (3, 1)]
    for axis, step in zip(shown, (3, 1), strict=True):
        heat = trace.map_of(0)[step].view(trace.regions[0].map[0].shape).numpy()
        np.testing.assert_allclose(heat_of(axis), heat / heat.max(), atol=1e-6)
    drawn(figure, tmp_path / "tokens.png")


def test_all_tokens_of_all_images_are_shown(trace):
    assert len(panels(token_figure(trace, row=1, columns=3))) == 4 * 2
    one = torch.zeros_like(trace.regions[1].visual)
    one[tuple(trace.heads[0].tolist())] = True
    (axis, *_) = panels(token_figure(trace, [0], row=1, heads=one))
    heat = trace.maps[0, 0, 1].float().numpy()
    n = trace.regions[1].map[0].numel()
    assert np.allclose(heat_of(axis).flatten(), heat[:n] / heat.max(), atol=1e-6)


def test_what_was_not_recorded_is_not_drawn(trace):
    with pytest.raises(ValueError, match=r"tokens \[9\] were not recorded; there are 0 to 3"):
        token_figure(trace, [0, 9])
    with pytest.raises(ValueError, match="maps='visual'"):
        token_figure(trace, heads=torch.ones_like(trace.regions[0].visual))
    with pytest.raises(ValueError, match="maps='visual'"):
        token_figure(filled_trace(maps=None))
    with pytest.raises(ValueError, match="token 9 was not recorded in the base run"):
        compare_figure(trace, trace, 9)


def test_what_follows_the_end_of_a_row_is_not_drawn():
    trace = filled_trace()
    trace.ends = torch.tensor([2, 4])
    first, second = (trend_figure(trace, row).axes[0].lines[0].get_xdata() for row in (0, 1))
    assert first.tolist() == [1, 2] and second.tolist() == [1, 2, 3, 4]
    line = trend_figure(trace).axes[0].lines[0].get_ydata()
    assert np.allclose(line, trace.image[:2, :, 0].mean((1, 2)).numpy(), atol=1e-6)
    assert len(panels(token_figure(trace))) == 2
    with pytest.raises(ValueError, match=r"tokens \[2\] were not recorded; there are 0 to 1"):
        token_figure(trace, [2])
    figure = compare_figure(trace, filled_trace())
    for axis, steps in zip(figure.axes[:2], (2, 4), strict=True):
        heat = filled_trace().map_of(0)[:steps].mean(0).numpy()
        shown = heat_of(axis).flatten()
        assert np.allclose(shown, heat[: len(shown)] / heat.max(), atol=1e-6)
    trace.inside = torch.tensor([[0, 1], [1, 1], [1, 1], [1, 0]]).bool()
    assert trace.spans(0) == [(1, 2)] and trace.spans(1) == [(0, 3)]


def test_a_region_found_anew_is_outlined_from_its_step_on(trace):
    region = trace.regions[0]
    other = replace(region, mask=region.image)
    found = replace(trace, relocated=[Relocation(0, 2, other), Relocation(1, 0, other)])
    h, w = region.grids[0].h, region.grids[0].w
    whole = {((c, r), (c + 1, r)) for c in range(w) for r in (0, h)}
    whole |= {((c, r), (c, r + 1)) for r in range(h) for c in (0, w)}
    before, after = panels(token_figure(found, [1, 2]))
    assert outline(after) == whole != outline(before)
    shown = [compare_figure(trace, found, token).axes[1] for token in (1, 2)]
    assert [outline(axis) == whole for axis in shown] == [False, True]


@pytest.mark.parametrize("row", [2, 9, -1])
def test_a_row_that_the_trace_does_not_have_is_named(trace, row):
    for figure in (trend_figure, token_figure, partial(compare_figure, trace)):
        with pytest.raises(ValueError, match=f"row={row}: the trace has rows 0 to 1"):
            figure(trace, row=row)


@pytest.mark.parametrize(
    ("config", "watch", "why"),
    [
        (VRGAConfig.released_mask(), None, "method='released_mask' does not measure them apart"),
        (VRGAConfig.ablation("visual", 1, 0), None, "method='ablation' does not measure them"),
        (VRGAConfig.published(), ones, "record it with patch.record.., without watch"),
    ],
    ids=["mask", "ablation", "watched"],
)
def test_a_trend_that_was_not_measured_says_why(config, watch, why):
    trace = filled_trace(config=config, counts=(1, 1), watch=watch, maps="all")
    with pytest.raises(ValueError, match=why):
        trend_figure(trace)
    heads = torch.ones_like(trace.regions[0].visual)
    figure = compare_figure(trace, trace, heads=heads)  # region and image are always known
    line = figure.axes[-2].lines[1].get_ydata()
    assert np.allclose(line, trace.region[:, :, 0].mean((1, 2)).numpy(), atol=1e-6)


def test_an_empty_trace_has_no_trend():
    with pytest.raises(ValueError, match="the trace is empty"):
        trend_figure(Trace())


def test_the_trend_of_some_layers_and_steps(trace):
    part = filled_trace(maps=None, layers=[0, 2], steps=range(1, 9, 2))
    heads = torch.zeros_like(trace.regions[0].visual)
    heads[0, 1] = heads[2, 0] = heads[1, 3] = True  # layer 1 was not measured
    (axis,) = trend_figure(part, 1, heads=heads).axes
    x, y = axis.lines[0].get_data()
    assert x.tolist() == [2, 4]
    wanted = (trace.image[[1, 3], 0, 1, 1] + trace.image[[1, 3], 2, 1, 0]) / 2
    assert np.allclose(y, wanted.numpy(), atol=1e-6)


def test_the_lines_of_a_trend_differ_in_grey(trace):
    lines = trend_figure(trace).axes[0].lines
    assert len({line.get_linestyle() for line in lines}) == len(lines) == 4


def test_two_runs_lie_on_one_axis(trace, tmp_path):
    base = filled_trace(1.0)
    figure = compare_figure(base, trace, 2, row=1)
    for axis, measure in zip(figure.axes[-2:], ("region", "image"), strict=True):
        assert axis.get_title() == f"on the {measure}"
        for run, line, name in zip((base, trace), axis.lines, ("base", "steered"), strict=False):
            wanted = getattr(run, measure)[:, :, 1][:, run.regions[1].visual].mean(1)
            assert np.allclose(line.get_ydata(), wanted.numpy(), atol=1e-6)
            assert line.get_label() == name and line.get_xdata().tolist() == [1, 2, 3, 4]
        assert axis.lines[0].get_linestyle() != axis.lines[1].get_linestyle()
        assert axis.lines[2].get_xdata()[0] == 3  # the token that is looked from
    for run, column in ((base, 0), (trace, 1)):
        heat = run.map_of(1)[2].numpy()
        shown = heat_of(figure.axes[column]).flatten()
        assert np.allclose(shown, heat[: len(shown)] / heat.max(), atol=1e-6)
    mean = compare_figure(base, trace, row=1)
    heat = trace.map_of(1).mean(0).numpy()
    shown = heat_of(mean.axes[1]).flatten()
    assert np.allclose(shown, heat[: len(shown)] / heat.max(), atol=1e-6)
    drawn(figure, tmp_path / "compare.png")


@pytest.mark.parametrize("figure", [trend_figure, lambda one: compare_figure(one, one)],
                         ids=["trend", "compare"])  # fmt: skip
def test_an_answer_of_one_step_has_a_mark_and_one_number_on_its_axis(figure):
    made = figure(filled_trace(tokens=2))
    axis = made.axes[-1]
    made.draw_without_rendering()
    low, high = axis.get_xlim()
    assert (low, high) == (0.5, 1.5)
    assert [place for place in axis.get_xticks() if low <= place <= high] == [1]
    highest = max(line.get_ydata().max() for line in axis.lines)
    assert highest < axis.get_ylim()[1] <= 1.02  # the mark is whole
    assert all(line.get_marker() == "o" for line in axis.lines)
    assert all(label.get_text().endswith("%") for label in axis.get_yticklabels())


def test_the_heat_of_figures_is_that_of_the_pages():
    script = files("vrga.report").joinpath("drawing.js").read_text("utf-8")
    ramp = re.search(r"HEAT = (\[\[.*?\]\])", script)[1]
    assert tuple(map(tuple, json.loads(ramp))) == HEAT
    assert f"({COLD} + {1 - COLD} * t)" in script
    colors = heat_colors(np.array([[0.0, 0.125, 0.25, 1.0, 2.0]]))
    assert colors.shape == (1, 5, 4)
    between = (np.array(HEAT[0]) + HEAT[1]) / 2  # half-way to the second colour
    wanted = np.stack([HEAT[0], between, HEAT[1], HEAT[-1], HEAT[-1]]) / 255
    assert np.allclose(colors[0, :, :3], wanted, atol=1e-6)
    assert np.all(np.diff(colors[0, :4, 3]) > 0) and colors[0, -1, 3] == STRENGTH


def test_the_map_shows_on_a_dark_picture():
    axis = Figure().subplots()
    picture(axis, Image.new("RGB", (20, 10)), Grid(torch.arange(2), 1, 2), np.array([[0.0, 1.0]]))
    cold, hot = axis.get_images()[1].get_array()[0]
    assert (hot[:3] * hot[3]).max() > 0.5 > 10 * (cold[:3] * cold[3]).max()


def test_the_atlas_marks_the_chosen_heads(trace, tmp_path):
    region = trace.regions[0]
    figure = atlas_figure(region, title="a question")
    shown = panels(figure)
    for axis, name in zip(shown, ("focus", "entropy", "efr"), strict=True):
        values = getattr(region.heads, name)
        assert np.allclose(axis.get_images()[0].get_array(), values)
        marked = {(round(p.get_y() + 0.5), round(p.get_x() + 0.5)) for p in axis.patches}
        assert marked == set(map(tuple, region.visual.nonzero().tolist()))
    drawn(figure, tmp_path / "atlas.png")


def test_the_scatter_tells_pearsons_r(trace, tmp_path):
    region = trace.regions[0]
    figure = scatter_figure(region, title="$")
    (axis,) = figure.axes
    r, low, high = pearson(region.heads.focus.flatten(), region.heads.entropy.flatten())
    assert f"Pearson r = {r:.2f} (95 %: {low:.2f} to {high:.2f}), 24 heads" in axis.get_title()
    others, visual = axis.lines
    assert np.allclose(visual.get_xdata(), region.heads.focus[region.visual])
    assert np.allclose(others.get_ydata(), region.heads.entropy[~region.visual])
    drawn(figure, tmp_path / "scatter.png")


@pytest.mark.parametrize("figure", [atlas_figure, scatter_figure])
def test_a_row_without_an_image_has_no_heads_to_show(figure):
    model = FAMILIES["qwen2_5_vl"].shared
    with vrga.patch(model) as patch:
        model.generate(**FAMILIES["qwen2_5_vl"].batch([0, 1]).inputs, max_new_tokens=2)
    with pytest.raises(ValueError, match="without an image"):
        figure(patch.region[0])
    with pytest.raises(ValueError, match="without an image"):
        region_figure([], patch.region[0])
