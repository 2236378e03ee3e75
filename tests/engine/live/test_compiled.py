"""The compiled rows of a CPU: outputs, shares and regions are those of the rows in torch."""

from dataclasses import replace

import pytest
import test_runner
import torch
from test_runner import HEADS, KV, LAYERS, PROMPT, SCALE, WHOLE

from vrga.config import VRGAConfig
from vrga.engine.compiled_rows import Kept
from vrga.engine.runner import attend as attend_in_torch
from vrga.engine.runner import attend_compiled

OWN = {
    "dynamic": VRGAConfig.published(region_min=3),
    "static": VRGAConfig.paper(region_min=3, gain=4),
    "less": VRGAConfig.published(region_min=3, gain=0.6),
    "little": VRGAConfig.published(region_min=3, gain=0.1),
    "none": VRGAConfig.published(region_min=3, gain=0),
    "much": VRGAConfig.paper(region_min=3, gain=1e6),
    "released": VRGAConfig.released(region_min=3),
    "mask": VRGAConfig.released_mask(),
    "all open": VRGAConfig.published(region_min=3, gate_focus=0, gate_entropy=0),
}


def whole_pages(keys, values):
    """Pages as CPU_ATTN has them, a page's keys number by number and its values behind them."""
    return torch.cat([keys.transpose(2, 3).flatten(2), values.flatten(2)], 2).contiguous().numpy()


def attend(layer, query, output, keys, values, table, scale):
    attend_compiled(layer, query, output, whole_pages(keys, values), table, scale)


def engines_own(model, number, layer, past):
    """Attention of a row that is not steered, as an engine computes it, [H, d]."""
    query = model.query[number, layer, past]
    keys, values = (x[number, layer, :, : past + 1].repeat_interleave(HEADS // KV, 0)
                    for x in (model.key, model.value))  # fmt: skip
    share = (query[:, None] @ keys.transpose(1, 2) * SCALE).softmax(-1)
    return (share @ values)[:, 0]


def answers(own, monkeypatch, configs, spans):
    """Output and reports of a pass over the engine's own attention, which shut heads keep; and
    that attention."""
    model = test_runner.Model(len(configs))
    records = [test_runner.record(i, config) for i, config in enumerate(configs)]
    plain = torch.stack([
        torch.stack([engines_own(model, number, layer, past)
                     for number, (first, end) in enumerate(spans) for past in range(first, end)])
        for layer in range(LAYERS)
    ])  # fmt: skip

    def over(layer, query, output, *rest):
        if len(query) == plain.shape[1]:
            output[:] = plain[layer]
        own(layer, query, output, *rest)

    monkeypatch.setattr(test_runner, "attend", over)
    _, before = model(WHOLE, records, [(0, PROMPT)] * len(configs))
    output, reports = model(WHOLE, records, spans)
    return output, reports, before, plain


def same(configs, spans, monkeypatch):
    """Both ways, which must be one; how far each row is from the engine's own."""
    output, reports, before, plain = answers(attend, monkeypatch, configs, spans)
    wanted, wanted_reports, wanted_before, _ = answers(attend_in_torch, monkeypatch, configs, spans)
    torch.testing.assert_close(output, wanted, atol=2e-5, rtol=1e-4)
    assert before == wanted_before  # regions and heads
    for name, told in wanted_reports.items():
        steps, shares = zip(*told["share"], strict=True)
        own_steps, own_shares = zip(*reports[name]["share"], strict=True)
        assert steps == own_steps
        torch.testing.assert_close(own_shares, shares, atol=1e-5, rtol=0)
    return (output - plain).abs().amax((0, 2, 3))


@pytest.mark.parametrize("config", OWN.values(), ids=OWN)
def test_a_row_is_that_of_torch(config, monkeypatch):
    far = same([config], [(PROMPT + 9, PROMPT + 10)], monkeypatch)
    assert far.min() > 1e-3  # something is steered


def test_rows_of_many_requests_and_of_answers_that_come_again_are_those_of_torch(monkeypatch):
    configs = [OWN["dynamic"], None, *(OWN[name] for name in ("mask", "static", "none", "less"))]
    spans = [(PROMPT, PROMPT + 1), (30, 33), (PROMPT - 3, 60), (31, 32), (64, 65), (PROMPT, 34)]
    far = same(configs, spans, monkeypatch)
    assert not far[1:4].any() and not far[4:7].any()  # unsteered, and a prompt's
    assert (far[[0, *range(7, len(far))]] > 0).all()


def test_what_lies_behind_the_last_key_of_a_page_is_not_read(monkeypatch):
    """There may be anything: pages are not cleared."""
    found = []
    for rest in (0.0, float("nan")):
        model, one = test_runner.Model(1), test_runner.record(0, OWN["none"])
        for paged in model.pages:
            paged[:, model.table[0, 1].item(), :, PROMPT + 10 - 32 :] = rest
        monkeypatch.setattr(test_runner, "attend", attend)
        model(WHOLE, [one], [(0, PROMPT)])
        found.append(model(WHOLE, [one], [(PROMPT + 9, PROMPT + 10)])[0])
    assert found[0].isfinite().all() and torch.equal(*found)


def test_answers_that_go_on_are_those_of_torch_as_requests_come_end_and_come_again(monkeypatch):
    """Passes of the same answers are put together once: what differs must be seen."""
    configs = [OWN["dynamic"], None, OWN["static"], OWN["less"]]
    passes = [  # (request, past, end) in each
        [(0, 0, PROMPT), (1, 0, PROMPT), (2, 0, PROMPT)],
        *([(i, at, at + 1) for i in range(3)] for at in range(PROMPT, PROMPT + 6)),
        [(i, at, at + 1) for i, at in ((2, PROMPT + 6), (1, PROMPT + 6), (0, PROMPT + 6))],
        *([(2, at, at + 1), (0, at, at + 1)] for at in range(PROMPT + 7, PROMPT + 9)),
        [(2, 40, 41), (0, 20, 21)],  # a prompt's row, of a request that comes again
        [(2, 41, 42), (0, 21, PROMPT + 1), (3, 0, PROMPT)],
        *([(2, at, at + 1), (0, at, at + 1), (3, at, at + 1)] for at in range(42, 45)),
    ]
    found = {}
    for own in (attend, attend_in_torch):
        monkeypatch.setattr(test_runner, "attend", own)
        model = test_runner.Model(len(configs))
        records = [test_runner.record(i, config) for i, config in enumerate(configs)]
        worker = replace(WHOLE, kept=Kept())
        found[own] = []
        for one in passes:
            spans = [(past, end) for _, past, end in one]
            found[own].append(model(worker, [records[i] for i, _, _ in one], spans))
    steered = 0
    for (_, reports), (_, others) in zip(*found.values(), strict=True):
        assert reports.keys() == others.keys()
        for name, told in others.items():
            steps, shares = zip(*told.get("share", [(-1, 0.0)]), strict=True)
            own_steps, own_shares = zip(*reports[name].get("share", [(-1, 0.0)]), strict=True)
            assert steps == own_steps
            torch.testing.assert_close(own_shares, shares, atol=1e-5, rtol=0)
            steered += steps != (-1,)
    assert steered > 25
