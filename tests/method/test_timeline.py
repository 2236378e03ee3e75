"""Which region a row is steered to, and what rejected drafts take with them."""

from vrga.method.timeline import Relocation, Timeline

START = 100  # position of the answer's first token


def regions_at(timeline, row, positions):
    return [timeline.at(row, position) for position in positions]


def test_a_row_turns_at_the_first_position_that_is_steered_to_its_new_region():
    """The tokens of a block of drafts behind a <back> were steered to the region before."""
    timeline = Timeline(["a", "b"], START)
    timeline.turn(1, "c", opened=START + 3, position=START + 6)
    assert regions_at(timeline, 1, range(START, START + 8)) == ["b"] * 6 + ["c"] * 2
    assert regions_at(timeline, 0, range(START, START + 8)) == ["a"] * 8
    assert timeline.now == ["a", "c"] and timeline.first == ["a", "b"]
    (episode,) = timeline.episodes
    assert (episode.row, episode.position, episode.region, episode.before) == (
        1, START + 3, "c", "b",
    )  # fmt: skip


def test_what_a_rejected_draft_opened_goes_with_it():
    timeline = Timeline(["a"], START)
    timeline.turn(0, "b", opened=START + 1, position=START + 4)
    timeline.turn(0, "c", opened=START + 5, position=START + 8)
    assert not timeline.forget_from(START + 8)  # all accepted
    assert not timeline.forget_from(START + 6)  # behind the token that opened it
    assert timeline.at(0, START + 5) == "b" and timeline.at(0, START + 6) == "c"
    assert timeline.forget_from(START + 5)  # that token itself
    assert timeline.now == ["b"] and [e.region for e in timeline.episodes] == ["b"]
    assert not timeline.forget_from(START + 2)  # what comes again is steered to what is known
    assert timeline.at(0, START + 1) == "a" and timeline.at(0, START + 2) == "b"
    assert timeline.forget_from(START) and timeline.now == ["a"] and not timeline.episodes


def test_beams_move_between_rows_and_are_no_episodes():
    timeline = Timeline(["a", "a"], START)
    assert not timeline.reorder([1, 0], START + 1)  # both look at one region still
    timeline.turn(0, "b", opened=START + 2, position=START + 3)
    assert timeline.reorder([1, 0], START + 3) and timeline.now == ["a", "b"]
    assert timeline.reorder([1, 1], START + 4) and timeline.now == ["b", "b"]
    assert regions_at(timeline, 0, range(START + 2, START + 5)) == ["a", "a", "b"]
    (episode,) = timeline.episodes
    assert (episode.row, episode.region, episode.before) == (0, "b", "a")
    assert not timeline.forget_from(START + 4)  # the next step of the search
    assert timeline.now == ["b", "b"]


def test_a_recorded_one_goes_on_from_its_relocations():
    later = [Relocation(0, 2, "b"), Relocation(1, 0, "c"), Relocation(0, 4, "d")]
    timeline = Timeline(["a", "a"], relocated=later)
    assert regions_at(timeline, 0, range(6)) == ["a", "a", "b", "b", "d", "d"]
    assert regions_at(timeline, 1, range(2)) == ["c", "c"] and timeline.episodes == []
