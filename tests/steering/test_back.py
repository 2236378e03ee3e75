"""Steering by phase: inside <back> spans alone, and to what a <back> looks at."""

import pytest
import torch
from families import FAMILIES
from loops import COMPILED, passes
from replay import PhasedReplay, Relocated
from saying import BACK, CLOSE_LESS, INSIDE, LESS, MORE, OPENS, SAID, SHUTS, WORD, WORDS, Say, say
from tiny import CACHE, generate, tiny_model
from transformers import LogitsProcessor, StoppingCriteriaList

import vrga
from vrga import VRGAConfig
from vrga.method.back_spans import BackSpans
from vrga.method.tag_table import tag_table

QWEN = FAMILIES["qwen2_5_vl"]
CLOSE = dict(rtol=2e-3, atol=2e-3)


@pytest.fixture
def model():
    # Version 5.10 stumbles over a static cache that a refused call has left on the model.
    vars(QWEN.shared).pop("_cache", None)
    return QWEN.shared


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_only_steps_inside_spans_are_steered(model, impl):
    batch = QWEN.batch([1, 2])
    config = VRGAConfig.published(gain=3.0, when="back")
    with vrga.patch(model, config, impl=impl, tokenizer=WORDS):
        logits = say(model, batch, SAID)
    for row in range(2):
        alone = QWEN.alone(batch, row)
        replay = PhasedReplay(model, [3.0 if inside else 1.0 for inside in INSIDE])
        expected = replay.turn(alone.inputs, torch.tensor(SAID), alone.query[0], alone.grids[0])
        torch.testing.assert_close(logits[row], expected, **CLOSE)
    base = say(model, batch, SAID)
    assert torch.equal(logits[:, :4], base[:, :4])  # bit for bit before the first span
    assert not torch.equal(logits[:, 4], base[:, 4])


def test_spans_of_another_word_are_steered_and_no_others(model):
    batch = QWEN.batch([1, 2])
    said = [50 if token == BACK else token for token in SAID]  # <w50> ... </w50>
    other = VRGAConfig.published(gain=3.0, when="back", tag="w50")
    with vrga.patch(model, other, tokenizer=WORDS):
        logits = say(model, batch, said)
    replay = PhasedReplay(model, [3.0 if inside else 1.0 for inside in INSIDE])
    alone = QWEN.alone(batch, 0)
    expected = replay.turn(alone.inputs, torch.tensor(said), alone.query[0], alone.grids[0])
    torch.testing.assert_close(logits[0], expected, **CLOSE)
    base = say(model, batch, SAID)
    with vrga.patch(model, other, tokenizer=WORDS):
        assert torch.equal(say(model, batch, SAID), base)  # <back> is a word like any other


def test_rows_are_steered_each_in_its_own_spans(model):
    batch = QWEN.batch([1, 1, 0])
    said = [[WORD, *OPENS, 41, 42], [*OPENS, *SHUTS], [*OPENS, 41, 42, 43]]
    inside = [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1], [0] * 5]
    with vrga.patch(model, VRGAConfig.published(gain=3.0, when="back"), tokenizer=WORDS):
        logits = say(model, batch, said)
    base = say(model, batch, said)
    for row in range(3):
        alone = QWEN.alone(batch, row)
        replay = PhasedReplay(model, [3.0 if x else 1.0 for x in inside[row]])
        tokens = torch.tensor(said[row])
        expected = replay.turn(alone.inputs, tokens, alone.query[0], alone.grids[0])
        torch.testing.assert_close(logits[row], expected, **CLOSE)
    assert torch.equal(logits[0, :4], base[0, :4]) and torch.equal(logits[2], base[2])


@pytest.mark.parametrize("gate", ["dynamic", "static"])
def test_without_a_span_nothing_changes_bit_for_bit(model, gate):
    batch = QWEN.batch([1, 2, 0])
    base = generate(model, batch.inputs, 8)
    with vrga.patch(model, VRGAConfig.published(gain=3.0, when="back", gate=gate), tokenizer=WORDS):
        other = generate(model, batch.inputs, 8)
    assert torch.equal(base[0], other[0]) and torch.equal(base[1], other[1])


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_compiled_decoding_follows_the_spans(model, impl):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    batch = QWEN.batch([1, 2])
    static = dict(cache_implementation="static", compile_config=COMPILED)
    with vrga.patch(model, VRGAConfig.published(gain=3.0, when="back"), impl=impl, tokenizer=WORDS):
        logits = say(model, batch, SAID)
        compiled = say(model, batch, SAID, **static)
        again = say(model, batch, SAID[::-1], **static)
    torch.testing.assert_close(compiled, logits, **CLOSE)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(again, say(model, batch, SAID[::-1]), **CLOSE)  # no span in it


def test_a_callable_decides(model):
    batch, seen = QWEN.batch([1, 2]), []
    length = batch.inputs["input_ids"].shape[1]

    def when(tokens, position):
        seen.append((tokens.tolist(), position))
        return (tokens == 41).expand(tokens.shape)

    gains = [3.0 if token == 41 else 1.0 for token in SAID]
    with vrga.patch(model, VRGAConfig.published(gain=3.0, when=when)):
        logits = say(model, batch, SAID)
    alone = QWEN.alone(batch, 0)
    expected = PhasedReplay(model, gains).turn(
        alone.inputs, torch.tensor(SAID), alone.query[0], alone.grids[0]
    )
    torch.testing.assert_close(logits[0], expected, **CLOSE)
    assert seen[0] == ([[WORD]] * 2, length) and seen[-1] == ([[SAID[-2]]] * 2, length + 12)
    with vrga.patch(model, VRGAConfig.published(when=lambda tokens, position: True)):
        with pytest.raises(ValueError, match=r"when\(...\) gave True; wanted: bool \[2, 1\]"):
            generate(model, batch.inputs, 3)


@pytest.mark.parametrize("when", ["back", "always"])
@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_the_region_is_found_anew_at_each_back(model, impl, when):
    batch = QWEN.batch([2])
    length = batch.inputs["input_ids"].shape[1]
    config = VRGAConfig.published(gain=3.0, when=when, relocate="back")
    with vrga.patch(model, config, impl=impl, tokenizer=WORDS) as patch:
        logits = say(model, batch, SAID)
        episodes = patch.episodes
    opened = [i for i, token in enumerate(SAID) if i and token == MORE and SAID[i - 2] == LESS]
    assert [e.position for e in episodes] == [length + i for i in opened] and len(opened) == 2
    steered = [1] * len(SAID) if when == "always" else INSIDE
    gains = [3.0 if x and i not in opened else 1.0 for i, x in enumerate(steered)]
    replay = Relocated(model, gains, opened)
    expected = replay.turn(batch.inputs, torch.tensor(SAID), batch.query[0], batch.grids[0])
    torch.testing.assert_close(logits[0], expected, **CLOSE)
    for episode, place in zip(episodes, opened, strict=True):
        assert episode.region.mask.nonzero()[:, 0].tolist() == replay.found_at[place]["mask"]
        assert episode.region.query == episode.position
    assert patch.region[0] is episodes[-1].region


def test_relocation_is_a_rows_own_affair(model):
    batch = QWEN.batch([1, 1])
    said = [[WORD, 41, 42, 43, 44], [*OPENS, 41, 42]]
    with vrga.patch(model, VRGAConfig.published(gain=3.0), tokenizer=WORDS) as patch:
        generate(model, batch.inputs, 2)
        question = [region.map[0] for region in patch.region]
        always = say(model, batch, said)
        patch.config = VRGAConfig.published(gain=3.0, relocate="back")
        logits = say(model, batch, said)
        assert [e.row for e in patch.episodes] == [1]
        assert torch.equal(patch.region[0].map[0], question[0])
        assert not torch.equal(patch.region[1].map[0], question[1])
    torch.testing.assert_close(logits[0], always[0], **CLOSE)
    assert not torch.allclose(logits[1, 3], always[1, 3], **CLOSE)


def test_drafts_that_are_rejected_open_no_span(model):
    """The drafts say <back>, the model does not."""
    batch = QWEN.batch([1])
    config = VRGAConfig.published(gain=3.0, when="back", relocate="back")
    with vrga.patch(model, config, tokenizer=WORDS) as patch:
        plain = generate(model, batch.inputs, 6)
        with torch.no_grad():
            cache = model(**batch.inputs, use_cache=True)[CACHE]
            length = cache.get_seq_length()
            where = (length + model.model.rope_deltas).view(1, 1, 1)
            question = patch.region[0]
            drafts = torch.tensor([[WORD, *OPENS, 41]])
            places = where + torch.arange(5)
            mask = torch.ones(1, length + 5, dtype=torch.long)
            model(input_ids=drafts, **{CACHE: cache}, attention_mask=mask,
                  position_ids=places.expand(3, 1, 5))  # fmt: skip
            assert len(patch.episodes) == 1 and patch.region[0] is not question
            cache.crop(length - cache.get_seq_length() if five() else length)
            token, logits = plain[0][:, :1], []
            for i in range(5):
                out = model(input_ids=token, **{CACHE: cache},
                            position_ids=(where + i).expand(3, 1, 1))  # fmt: skip
                logits.append(out.logits[:, -1])
                token = out.logits[:, -1].argmax(-1, keepdim=True)
        assert not patch.episodes and patch.region[0] is question
    torch.testing.assert_close(torch.stack(logits, 1), plain[1][:, 1:], **CLOSE)


def five():
    import transformers

    return transformers.__version__ >= "5"


def test_an_assistant_changes_no_word_of_a_span(model):
    batch = QWEN.batch([1])
    assistant = tiny_model(layers=1, seed=3)
    config = VRGAConfig.published(gain=3.0, when=lambda tokens, position: tokens % 2 == 0)
    options = dict(max_new_tokens=12, do_sample=False)
    with vrga.patch(model, config):
        greedy = model.generate(**batch.inputs, **options)
        with passes(model) as seen:
            assisted = model.generate(**batch.inputs, **options, assistant_model=assistant)
    assert max(k["inputs_embeds"].shape[1] for k in seen[1:]) > 1
    assert torch.equal(greedy, assisted)


class Like(LogitsProcessor):
    """Makes the tags likely, so that beams differ in being inside a span."""

    def __call__(self, ids, scores):
        last, liked = ids[:, -1], torch.full_like(scores, -2.0)
        for before, after in ((LESS, BACK), (BACK, MORE), (CLOSE_LESS, BACK)):
            liked[last == before, after] = 4.0
        between = ~torch.isin(last, torch.tensor([LESS, BACK, CLOSE_LESS]))
        for start in (LESS, WORD, WORD + 1, WORD + 2):  # a tag may open at any place
            liked[between, start] = 2.0
        return scores / 8 + liked


@pytest.mark.slow
@pytest.mark.parametrize("relocate", ["question", "back"])
def test_beams_keep_their_spans_and_regions(model, relocate):
    """Along each beam's own text the logits are those of the method."""
    batch, kinds = QWEN.batch([3]), set()
    config = VRGAConfig.published(gain=5.0, when="back", relocate=relocate)
    for seed in range(4):
        torch.manual_seed(seed)
        with vrga.patch(model, config, tokenizer=WORDS):
            out = model.generate(
                **batch.inputs, max_new_tokens=14, min_new_tokens=14, num_beams=4, do_sample=True,
                num_return_sequences=4, length_penalty=0.0, output_scores=True, output_logits=True,
                return_dict_in_generate=True, logits_processor=[Like()],
            )  # fmt: skip
        said = out.sequences[:, batch.inputs["input_ids"].shape[1] :]
        for i in range(4):
            inside, gains, opened = False, [], []
            for t in range(14):
                three = said[i, max(t - 2, 0) : t + 1].tolist()
                if three == OPENS and not inside:
                    opened.append(t)
                inside = True if three == OPENS else False if three == SHUTS else inside
                gains.append(5.0 if inside else 1.0)
            kinds.add(tuple(gains))
            if relocate == "back":  # the row that opens a span is looked at, not steered
                gains = [1.0 if t in opened else gain for t, gain in enumerate(gains)]
                replay = Relocated(model, gains, opened)
            else:
                replay = PhasedReplay(model, gains)
            expected = replay.turn(batch.inputs, said[i], batch.query[0], batch.grids[0])
            for t in range(14):  # the row from which beam i's token t was chosen
                row = out.beam_indices[i, t]
                torch.testing.assert_close(out.logits[t][row], expected[t], **CLOSE)
    assert any(5.0 in gains for gains in kinds)


def test_what_cannot_work_is_refused(model):
    batch = QWEN.batch([1])
    with vrga.patch(model, VRGAConfig.published(when="back")):
        with pytest.raises(ValueError, match="<back> spans need a tokenizer.*tokenizer=processor"):
            generate(model, batch.inputs, 2)
    torch._dynamo.reset()
    static = dict(cache_implementation="static", compile_config=COMPILED)
    for config in (
        VRGAConfig.published(relocate="back"),
        VRGAConfig.published(when=lambda tokens, at: tokens > 0),
    ):
        with vrga.patch(model, config, tokenizer=WORDS):
            with pytest.raises(Exception, match="disable_compile=True"):
                generate(model, batch.inputs, 3, **static)
    for wrong in (dict(when="sometimes"), dict(relocate="never"), dict(when=3)):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            VRGAConfig.published(**wrong)
    with pytest.raises(ValueError, match="when='back' is not read by method='released'"):
        VRGAConfig.released(when="back")


def test_what_is_given_is_steered_to_until_a_back_finds_anew(model):
    batch = QWEN.batch([1])
    cell = torch.zeros(3, 4, dtype=torch.bool)
    cell[1, 2] = True
    with vrga.patch(model, VRGAConfig.published(relocate="back"), tokenizer=WORDS) as patch:
        say(model, batch, SAID)
        found = patch.episodes
        patch.given = [[cell]]
        say(model, batch, SAID)
        given = patch.episodes
    assert len(given) == len(found) > 0
    grid = given[0].before.grids[0]
    assert torch.equal(given[0].before.mask[grid.index].view(3, 4), cell)
    assert not torch.equal(given[0].region.mask, given[0].before.mask)


def test_an_answer_that_a_prompt_ends_amid_goes_on_in_its_span(model):
    """Each row as far as its own answer has come; a turn that is closed, or that opens, is none."""
    told = [[WORD, *OPENS, WORD], [WORD, *OPENS, WORD, *SHUTS]]
    spans = BackSpans(tag_table(WORDS, len(WORDS)), 2, torch.device("cpu"), 9, begun=told)
    assert (spans.state >= spans._first).tolist() == [True, False]
    spans.advance(torch.tensor([SHUTS, [WORD] * 3]), 9)
    assert spans.inside[:, -1].tolist() == [False, False]
    spans.advance(torch.tensor([[WORD], [WORD]]), 9)  # the drafts before were rejected
    assert spans.inside[:, -1].tolist() == [True, False]


def test_a_trace_shows_what_was_steered(model):
    batch = QWEN.batch([1])
    with vrga.patch(model, VRGAConfig.published(gain=3.0, when="back"), tokenizer=WORDS) as patch:
        with patch.record() as trace:
            say(model, batch, SAID)
    gate = trace.gate.flatten(1).sum(1) > 0
    assert gate.tolist() == [bool(x) for x in INSIDE[:-1]]


@pytest.mark.parametrize(
    "config", [VRGAConfig.published(gain=3.0), VRGAConfig.published(gain=1.0)], ids=["on", "off"]
)
def test_a_trace_shows_the_spans_also_where_they_decide_nothing(model, config):
    batch = QWEN.batch([1])
    plain = say(model, batch, SAID)
    with vrga.patch(model, config) as patch:
        steered = say(model, batch, SAID)
        with patch.record() as trace:
            say(model, batch, SAID)
        assert trace.inside is None  # who has no tokenizer knows no tags
    with vrga.patch(model, config, tokenizer=WORDS) as patch:
        with patch.record() as trace:
            followed = say(model, batch, SAID)
    assert trace.inside[:, 0].tolist() == [bool(x) for x in INSIDE[:-1]]
    assert torch.equal(steered, followed)
    assert torch.equal(plain, followed) == (config.gain == 1)


@pytest.mark.parametrize("relocate", ["question", "back"])
def test_the_host_knows_the_spans_before_the_step(model, monkeypatch, relocate):
    """What was looked ahead is what the step then finds, at every step but none of the prompt's."""
    batch, told = QWEN.batch([1, 1, 0]), []
    said = [[WORD, *OPENS, 41, 42, *SHUTS], [*OPENS, *SHUTS, 41, *OPENS[:2]], [*OPENS, *[43] * 6]]
    own = BackSpans.on_host

    def on_host(self, past):
        assert self._ahead == past  # nothing is asked of the device
        inside, opened = own(self, past)
        assert inside.data_ptr() != self.inside.data_ptr()
        assert torch.equal(inside, self.inside) and torch.equal(opened, self.opened)
        told.append((inside.flatten().tolist(), opened.flatten().tolist()))
        return inside, opened

    monkeypatch.setattr(BackSpans, "on_host", on_host)
    config = VRGAConfig.published(gain=3.0, when="back", relocate=relocate)
    said = [row[:9] + [43] * (9 - len(row)) for row in said]
    with vrga.patch(model, config, tokenizer=WORDS):
        say(model, batch, said)
    assert len({tuple(inside) for inside, _ in told}) > 3
    assert any(any(opened) for _, opened in told)


def test_own_stopping_criteria_still_stop(model):
    batch = QWEN.batch([1])
    stop = StoppingCriteriaList([lambda ids, scores, **kw: ids[:, -1] == 41])
    with vrga.patch(model, VRGAConfig.published(when="back"), tokenizer=WORDS):
        out = model.generate(**batch.inputs, max_new_tokens=14, do_sample=False,
                             logits_processor=[Say(SAID)], stopping_criteria=stop)  # fmt: skip
    assert out[0, -1] == 41 and len(stop) == 1
    assert out.shape[1] == batch.inputs["input_ids"].shape[1] + SAID.index(41) + 1
