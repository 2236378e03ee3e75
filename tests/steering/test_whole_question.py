"""The map from all words of a question, and rows without a clear one."""

import numpy as np
import pytest
import torch
from naive import whole_question
from tiny import CACHE, EOS, batch, generate, shared_model, single, tiny_model
from windowed import windowed

import vrga
from vrga import VRGAConfig
from vrga.demo.data import CAPTION, make_samples, prepare
from vrga.hf.host import Host
from vrga.kernels.probe import probe_scores
from vrga.kernels.reference import probe_scores_reference
from vrga.method.region import find_regions
from vrga.steering import asked_prompt
from vrga.steering.probe_scores import LateScores
from vrga.steering.probed_rows import ProbedRows
from vrga.steering.query_rows import QueryRows

IMAGES = [[(4, 5)], [], [(3, 3), (4, 4)], [(6, 4)]]
WHOLE = VRGAConfig.published(gain=3.0, question="whole")


class Words:
    """A tokenizer for the tiny model: every id from 2 to 89 is a word, the others are special."""

    chat_template = None

    def __len__(self):
        return 100

    def decode(self, ids, skip_special_tokens=False):
        return "".join(
            f" w{i}" if 2 <= i < 90 else "" if skip_special_tokens else f"<{i}>" for i in ids
        )


def regions(model, inputs, config=WHOLE, **more):
    with vrga.patch(model, config, tokenizer=Words()) as patch:
        generate(model, inputs, 3, **more)
    return patch.region


def words_of(inputs, row):
    """Positions of the words between the last image (or the row's start) and the turn's end."""
    ids = inputs["input_ids"][row].tolist()
    end = len(ids) - 1 - ids[::-1].index(EOS)
    return [at for at in range(end) if 2 <= ids[at] < 90 and not {90, 93} & set(ids[at:end])]


def check_close(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.visual, other.visual) and torch.equal(one.mask, other.mask)
        for mine, theirs in zip(one.map, other.map, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_each_head_is_taken_at_the_word_of_its_highest_focus():
    """In a left-padded batch of questions of 4 to 7 words, one of them without an image."""
    model, inputs = tiny_model(attention="eager"), batch(IMAGES)
    found = regions(model, inputs)
    with torch.no_grad():
        rows = model(**inputs, output_attentions=True).attentions
    for row, region in enumerate(found):
        if not region.grids:
            assert not IMAGES[row] and not region.mask.any()
            continue
        words = words_of(inputs, row)
        assert len(words) == 4 + row and region.query == words[-1]
        attention = torch.stack([layer[row] for layer in rows]).double().numpy()
        grids = [(grid.index.tolist(), grid.h, grid.w) for grid in region.grids]
        visible = inputs["attention_mask"][row].numpy() > 0
        focus, mask, visual, relevance = whole_question(attention, grids, words, visible)
        assert region.focus.tolist() == focus
        assert region.mask.nonzero()[:, 0].tolist() == mask
        assert [tuple(x) for x in region.visual.nonzero().tolist()] == visual
        np.testing.assert_allclose(
            torch.cat([m.flatten() for m in region.map]), relevance, rtol=1e-3, atol=1e-6
        )
    last = regions(model, inputs, VRGAConfig.published(gain=3.0))
    assert not all(torch.equal(found[row].map[0], last[row].map[0]) for row in (0, 2, 3))


def test_rows_of_a_batch_are_what_they_are_alone():
    model, inputs = shared_model(), batch(IMAGES)
    found = regions(model, inputs)
    for row in (0, 2, 3):
        (alone,) = regions(model, single(inputs, row, IMAGES))
        for mine, theirs in zip(found[row].map, alone.map, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kept", [False, True], ids=["queries wait", "scores are kept"])
@pytest.mark.parametrize("window", [None, 9], ids=["full", "window"])
def test_a_question_in_several_pieces_is_one_question(window, kept, monkeypatch):
    model = shared_model() if window is None else windowed(window)
    if kept:
        monkeypatch.setattr(Host, "holds", lambda self, inputs: lambda layer, key: False)
    masses = {}  # of every word, by the row's images: the highest R may be that of a late word

    def spied(rows, samples, config, rules):
        images = [torch.cat([grid.index for grid in sample.grids]) for sample in samples]
        for sample, sums in zip(samples, rows.sums(images), strict=True):
            shapes = tuple((grid.h, grid.w) for grid in sample.grids)
            masses.setdefault(shapes, []).append(sums.mass)
        return find_regions(rows, samples, config, rules)

    monkeypatch.setattr(asked_prompt, "find_regions", spied)
    inputs = batch(IMAGES[:1] + IMAGES[2:], question=9)
    whole = regions(model, inputs)
    length = inputs["input_ids"].shape[1]
    for piece in (length - 8, 2):
        check_close(regions(model, inputs, prefill_chunk_size=piece), whole)
    for first, *others in masses.values():
        assert len(others) == 2
        for other in others:
            torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-6)


def test_other_caches_find_the_same():
    model, inputs = shared_model(), batch(IMAGES[:1])
    wanted = regions(model, inputs)
    fixed = {"cache_implementation": "static", "disable_compile": True}
    for more in (fixed, {"num_beams": 2}):
        found = regions(model, inputs, **more)
        check_close(found, wanted * len(found))


def test_words_that_were_cached_before_are_refused():
    model, inputs = shared_model(), batch(IMAGES[:1])
    length = inputs["input_ids"].shape[1]
    cut = {k: v[:, : length - 5] for k, v in inputs.items() if v.shape[-1] == length} | {
        k: v for k, v in inputs.items() if v.shape[-1] != length
    }
    with torch.no_grad():
        cache = getattr(model(**cut, use_cache=True), CACHE)
    with vrga.patch(model, WHOLE, tokenizer=Words()):
        with pytest.raises(ValueError, match="question='whole' needs every word"):
            generate(model, inputs, 3, **{CACHE: cache})


def test_without_a_tokenizer_words_cannot_be_told():
    model = shared_model()
    with (
        vrga.patch(model, WHOLE),
        pytest.raises(ValueError, match="needs input_ids, and a tokenizer"),
    ):
        generate(model, batch(IMAGES[:1]), 3)


@pytest.mark.parametrize("score", [probe_scores_reference, probe_scores], ids=["torch", "triton"])
def test_rows_are_scored_together(score, poisoned):
    """More of them than are scored at once; each sees what stands before it."""
    g = torch.Generator().manual_seed(0)
    words = [[20, 21, 23, 30, 31, 32, 33, 34, 35, 36, 37, 39], [28, 29]]
    visible = torch.ones(2, 40) > 0
    visible[0, :4] = False
    places = QueryRows([39, 29], visible, words)
    query, key = (torch.randn(2, h, 40, 16, generator=g) for h in (6, 2))
    last, at = places.within(0, 40)
    hidden, unseen = places.hidden(None)
    rows = query[torch.arange(2)[:, None], :, at].transpose(1, 2)
    late = LateScores(rows, key, last, hidden, unseen, 0, 40, 0.5, score)
    images = [torch.arange(5, 14), torch.arange(2, 18)]
    sums = ProbedRows({0: late}, [0, 1], places).sums(images)
    exact = torch.einsum("bhqd,bhnd->bhqn", query, key.repeat_interleave(3, 1)).double() * 0.5
    causal = torch.ones(40, 40).tril() > 0
    exact = exact.masked_fill(~(causal & visible[:, None, None]), -torch.inf).softmax(-1)
    for row, (image, found) in enumerate(zip(images, sums, strict=True)):
        wanted = exact[row][:, words[row]][..., image].sum(-1)  # [H, its Q]
        torch.testing.assert_close(found.mass[0].double(), wanted, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def embedded():
    return vrga.load(dtype=torch.float32)


def test_content_is_the_users_words_behind_the_last_image(embedded):
    """Neither the template's, nor special tokens, nor those of the turn before."""
    model, processor = embedded
    tokens = processor.tokenizer
    (sample,) = make_samples(1, seed=5)
    image = {"type": "image", "image": sample.image}
    turns = [
        {"role": "user", "content": [image, {"type": "text", "text": sample.question}]},
        {"role": "assistant", "content": [{"type": "text", "text": "answer K red."}]},
        {"role": "user", "content": [{"type": "text", "text": CAPTION}]},
    ]
    before = {"type": "text", "text": "think step by step"}
    amid = [{"role": "user", "content": [before, image, *turns[0]["content"]]}]
    for chat, wanted in ((turns[:1], sample.question), (turns, CAPTION), (amid, sample.question)):
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with vrga.patch(model, WHOLE, tokenizer=processor) as patch, torch.no_grad():
            model(**inputs, use_cache=True)
            words = patch._hooks.located.asked.words[0]
        assert tokens.decode(inputs["input_ids"][0, words]).strip() == wanted


def test_an_instruction_behind_the_question_hides_it_from_its_last_token_alone(embedded):
    model, processor = embedded
    samples = make_samples(12, seed=900, noise=140.0)
    inputs, hits = prepare(processor, samples, "cot"), {}
    for question in ("last", "whole"):
        config = VRGAConfig.sparing(question=question)
        with vrga.patch(model, config, tokenizer=processor) as patch, torch.no_grad():
            model(**inputs, use_cache=True)
        hits[question] = sum(
            int(region.map[0].argmax()) == 6 * sample.cell[0] + sample.cell[1]
            for region, sample in zip(patch.region, samples, strict=True)
        )
    assert hits["last"] <= 3 and hits["whole"] >= 10


def test_rows_without_a_clear_region_are_the_models_own():
    """Bit for bit, and counted, beside a row that is steered."""
    model, inputs = shared_model(), batch(IMAGES[2:])
    plain, logits = generate(model, inputs, 4)
    clear = [region.certainty for region in regions(model, inputs, WHOLE)]
    assert clear[0] != clear[1]
    sure, unsure = (0, 1) if clear[0] > clear[1] else (1, 0)
    config = VRGAConfig.published(gain=9.0, question="whole", abstain=sum(clear) / 2)
    with vrga.patch(model, config, tokenizer=Words()) as patch:
        tokens, steered = generate(model, inputs, 4)
    assert torch.equal(tokens[unsure], plain[unsure])
    assert torch.equal(steered[unsure], logits[unsure])
    assert not torch.equal(steered[sure], logits[sure])
    assert patch.steps[unsure].left_alone == {"no clear region": 3}
    assert patch.steps[sure].steered == 3
    assert patch.region[unsure].focus.numel() and not patch.region[unsure].mask.any()


def test_abstaining_is_refused_where_it_could_not_be_counted():
    with pytest.raises(ValueError, match="abstain=0.5 with relocate='back'"):
        VRGAConfig(abstain=0.5, relocate="back", when="back")
    with pytest.raises(ValueError, match="abstain=1.5 must be"):
        VRGAConfig(abstain=1.5)
    with pytest.raises(ValueError, match="question='all' is not one of"):
        VRGAConfig(question="all")
    with pytest.raises(ValueError, match="question='whole' is not read"):
        VRGAConfig.released(question="whole")
