"""Where the images and the question are."""

from types import SimpleNamespace

import pytest
import torch

from vrga.hf.grids import read_prompt
from vrga.hf.layouts import by_patches
from vrga.hf.question_ends import question_end, user_end
from vrga.method.prompt import Prompt, check_query

IMAGE, VIDEO = 90, 91
CONFIG = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2))


def read(rows, image=None, video=None, mask=None, positions=None, **kwargs):
    ids = torch.tensor(rows)
    given = {
        name: None if grids is None else torch.tensor(grids)
        for name, grids in (("image_grid_thw", image), ("video_grid_thw", video))
    }
    return read_prompt(
        ids,
        mask,
        None,
        cells=by_patches(CONFIG, given),
        positions=positions,
        image_token=IMAGE,
        video_token=VIDEO,
        named=tuple(given),
        shape=tuple(ids.shape),
        **kwargs,
    )


def shapes(prompt):
    return [[(g.h, g.w, g.index.tolist()) for g in row] for row in prompt.grids]


def test_images_take_the_grids_in_row_order():
    rows = [[5] + [IMAGE] * 6 + [5] + [IMAGE] * 2, [0] * 4 + [IMAGE] * 4 + [5, 5]]
    mask = torch.ones(2, 10)
    mask[1, :4] = 0
    prompt = read(rows, image=[[1, 4, 6], [1, 2, 4], [1, 4, 4]], mask=mask)
    assert shapes(prompt) == [[(2, 3, [1, 2, 3, 4, 5, 6]), (1, 2, [8, 9])], [(2, 2, [4, 5, 6, 7])]]
    assert prompt.image.sum(1).tolist() == [8, 4]


def test_every_frame_of_a_video_is_a_grid():
    prompt = read([[5] + [VIDEO] * 8 + [IMAGE] * 1], image=[[1, 2, 2]], video=[[2, 4, 4]])
    assert shapes(prompt) == [[(2, 2, [1, 2, 3, 4]), (2, 2, [5, 6, 7, 8]), (1, 1, [9])]]


def test_grids_are_read_from_rotary_positions():
    row = [5, 5] + [IMAGE] * 6 + [5] + [IMAGE] * 4
    positions = torch.zeros(3, 1, 13, dtype=torch.int64)
    positions[:, 0] = torch.arange(13)
    positions[1, 0, 2:8] = torch.tensor([2, 2, 2, 3, 3, 3])
    positions[2, 0, 2:8] = torch.tensor([2, 3, 4, 2, 3, 4])
    positions[1, 0, 9:] = torch.tensor([6, 6, 6, 6])
    positions[2, 0, 9:] = torch.tensor([6, 7, 8, 9])
    prompt = read([row], positions=positions)
    assert shapes(prompt) == [[(2, 3, list(range(2, 8))), (1, 4, [9, 10, 11, 12])]]


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        (dict(image=[[1, 4, 4]]), "does not account for"),
        (dict(image=[[1, 4, 4], [1, 8, 8]]), "only 2 image tokens are left"),
        (dict(image=[[1, 4, 4], [1, 2, 4], [1, 2, 2]]), "1 grids more"),
        (dict(), "pass image_grid_thw"),
        (dict(positions=torch.arange(8).expand(3, 1, 8)), "mm_token_type_ids"),
    ],
)
def test_grids_that_do_not_fit_are_an_error(kwargs, told):
    with pytest.raises(ValueError, match=told):
        read([[5] + [IMAGE] * 6 + [5]], **kwargs)


def test_default_query_is_the_last_text_before_the_end_of_the_turn():
    rows = [
        [92] + [IMAGE] * 4 + [93, 10, 11, 1, 20, 21],  # question after the image
        [10, 11, 92] + [IMAGE] * 4 + [93, 1, 20, 21],  # before it, where it cannot see it
        [0, 0, 0, 10, 1, 12, 13, 14, 1, 20, 21],  # two turns; padded with the end token below
        [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20],  # no end of turn
    ]
    mask = torch.ones(4, 11)
    mask[2, :3] = 0
    prompt = read(rows, image=[[1, 4, 4], [1, 4, 4]], mask=mask)
    found = user_end(prompt, {1}, {IMAGE, VIDEO, 92, 93})
    assert found.tolist() == [7, 7, 7, 10]


def test_an_image_without_text_is_an_error():
    with pytest.raises(ValueError, match="row 0 has an image but no text token"):
        user_end(read([[92] + [IMAGE] * 4 + [93, 1]], image=[[1, 4, 4]]), {1}, {92, 93})


def decode(ids):
    return "".join(chr(i) for i in ids)


def test_a_question_is_found_by_its_last_occurrence():
    text = "who? I ask: who? now answer"
    ids = torch.tensor([[0, 0, *map(ord, text)]])
    visible = torch.ones_like(ids, dtype=torch.bool)
    visible[0, :2] = False
    prompt = Prompt(ids, visible, torch.zeros_like(visible), [[]])
    assert question_end(prompt, ["who?"], decode).tolist() == [2 + text.rindex("?")]
    with pytest.raises(ValueError, match="'when'.*does not occur in the prompt of row 0"):
        question_end(prompt, ["when"], decode)
    with pytest.raises(ValueError, match="does not occur"):
        question_end(prompt, [""], decode)


def test_a_question_may_end_inside_a_token():
    words = ["who", " is", " it?\n\n", "think"]
    ids = torch.tensor([[0, 1, 2, 3]])
    visible = torch.ones_like(ids, dtype=torch.bool)
    prompt = Prompt(ids, visible, ~visible, [[]])
    found = question_end(prompt, ["who is it?"], lambda ids: "".join(words[i] for i in ids))
    assert found.tolist() == [2]


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ([11], "out of the row: positions are 0 to 10"),
        ([-1], "out of the row"),
        ([0], "on padding"),
        ([3], "on an image token"),
        ([2], "cannot see them"),
        ([5, 5], "1 integer positions"),
        ([5.0], "1 integer positions"),
    ],
)
def test_bad_query_positions_are_named(query, told):
    mask = torch.ones(1, 11)
    mask[0, :2] = 0
    prompt = read([[0, 0, 7] + [IMAGE] * 4 + [5] * 4], image=[[1, 4, 4]], mask=mask)
    with pytest.raises(ValueError, match=told):
        check_query(torch.tensor(query), prompt)
    assert check_query(torch.tensor([7]), prompt).tolist() == [7]


def test_a_later_turn_follows_the_tokens_generated_in_between():
    first = read([[5] + [IMAGE] * 4], image=[[1, 4, 4]])
    both = first.extend(read([[5, 5, IMAGE, 5]], image=[[1, 2, 2]]), past=8)
    assert shapes(both) == [[(2, 2, [1, 2, 3, 4]), (1, 1, [10])]]
    assert both.image[0].nonzero()[:, 0].tolist() == [1, 2, 3, 4, 10]
    assert both.visible.shape == (1, 12) and both.visible.all()
    assert both.ids[0].tolist() == [5] + [IMAGE] * 4 + [-1] * 3 + [5, 5, IMAGE, 5]


def test_a_cut_cache_cuts_the_prompt():
    first = read([[5] + [IMAGE] * 4 + [5, IMAGE]], image=[[1, 4, 4], [1, 2, 2]])
    cut = first.extend(read([[7, 7]]), past=6)
    assert shapes(cut) == [[(2, 2, [1, 2, 3, 4])]]
    assert cut.ids[0].tolist() == [5] + [IMAGE] * 4 + [5, 7, 7]
