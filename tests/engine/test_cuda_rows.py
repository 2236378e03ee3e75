"""Steered rows as on a GPU, over pages, with a CPU in its place: they are those of the CPU path."""

from functools import partial

import pytest
import test_runner
import torch
from test_runner import (
    DYNAMIC,
    HEADS,
    LAYERS,
    PAGE,
    PROMPT,
    SCALE,
    STATIC,
    WHOLE,
    Halves,
    Model,
    record,
)

from vrga.config import VRGAConfig
from vrga.engine.cuda_rows import attend_paged
from vrga.engine.runner import Worker, attend
from vrga.engine.steered import Steered
from vrga.kernels import decode
from vrga.kernels.api import Kernels
from vrga.kernels.reference import decode_attention_reference

CONFIGS = [
    DYNAMIC,
    None,
    STATIC,
    VRGAConfig.published(region_min=3, gain=4),
    VRGAConfig.released_mask(),
    STATIC,
]
# Passes of some requests, by their numbers, and the rows of each.
PASSES = [
    ([0, 1, 2, 4], [(0, PROMPT), (0, 40), (0, PROMPT), (0, PROMPT)]),
    # The last two come in pieces, while others answer.
    ([0, 3, 2, 5], [(27, 28), (0, 10), (27, 28), (0, 25)]),
    ([5, 3, 0, 4], [(25, PROMPT), (10, PROMPT), (28, 29), (27, 28)]),
    ([3, 2, 1, 5, 0, 4], [(27, 28), (28, 29), (40, 41), (27, 28), (29, 30), (28, 29)]),
    # Two come again after a preemption: prompt and answer, and a last piece of the answer.
    ([0, 2, 3], [(0, 20), (0, 31), (28, 29)]),
    ([0, 3, 2], [(20, 33), (29, 30), (31, 34)]),
]


def plain(model, number, past, end):
    """Rows of a request without steering, [L, Q, H, d]."""
    flags = torch.zeros(1, 0, dtype=torch.int32)
    return torch.stack([
        decode_attention_reference(
            model.query[number, layer, None, past:end].transpose(1, 2),
            model.key[number, layer, None, :, :end], model.value[number, layer, None, :, :end],
            flags, torch.ones(1, dtype=torch.int32), scale=SCALE, opened=(1.0,), closed=(1.0,),
            focus=0.6, entropy=0.2,
        )[0]
        for layer in range(LAYERS)
    ])  # fmt: skip


def outputs(model, configs, passes):
    """Attention of all rows, and the reports, of each pass; what was left alone is not steered."""
    records = [record(number, config) for number, config in enumerate(configs)]
    found = []
    for order, spans in passes:
        output, reports = model(WHOLE, [records[number] for number in order], spans)
        own = [plain(model, number, *rows) for number, rows in zip(order, spans, strict=True)]
        found.append((torch.where(output == 0, torch.cat(own, 1), output), reports, output))
    return found


def check(found, wanted):
    """The same attention, regions and shares."""
    for (out, reports, _), (exact, told, _) in zip(found, wanted, strict=True):
        torch.testing.assert_close(out, exact, rtol=1e-5, atol=2e-6)
        assert reports.keys() == told.keys()
        for name, report in reports.items():
            other = dict(told[name])
            pairs, expected = (dict(one.pop("share", ())) for one in (report, other))
            assert report == other
            assert pairs.keys() == expected.keys()
            assert pairs == pytest.approx(expected, abs=1e-5)


@pytest.fixture
def paged(monkeypatch):
    """Lets layers attend as on a GPU, in a way that is given."""

    def put(impl):
        by = partial(attend_paged, kernels=Kernels(impl))
        monkeypatch.setattr(test_runner, "attend", partial(attend, by=by))

    return put


def test_requests_of_all_kinds_are_steered_as_on_a_cpu(paged):
    wanted = outputs(Model(6), CONFIGS, PASSES)
    assert all(any("region" in report for report in wanted[i][1].values()) for i in (0, 2))
    paged("torch")
    check(outputs(Model(6), CONFIGS, PASSES), wanted)


@pytest.mark.slow
def test_the_kernel_steers_them_the_same(paged):
    configs, passes = CONFIGS[:3], [(PASSES[0][0][:3], PASSES[0][1][:3])]
    passes += [([2, 1, 0], [(27, 28), (40, 41), (27, 28)]), ([0], [(25, 30)])]
    wanted = outputs(Model(3), configs, passes)
    paged("triton")
    check(outputs(Model(3), configs, passes), wanted)


def test_what_is_not_steered_keeps_the_engines_own_to_the_bit(paged):
    paged("torch")
    model, passes = Model(2), [([0, 1], [(0, PROMPT)] * 2), ([0, 1], [(PROMPT, PROMPT + 2)] * 2)]
    (_, _, prompt), (_, reports, answer) = outputs(model, [STATIC, DYNAMIC], passes)
    assert not prompt.any()
    visual = model.region(0, STATIC).visual
    assert 0 < visual.sum() < LAYERS * HEADS
    touched = answer.flatten(3).any(3)  # [L, T, H]
    assert torch.equal(touched[:, :2], visual[:, None].expand(-1, 2, -1))
    assert 0 < touched[:, 2:].sum() < touched[:, 2:].numel()  # the gate of each step
    assert all(len(report["share"]) == 2 for report in reports.values())


def test_rows_outside_of_spans_are_left_alone(paged, monkeypatch):
    """With `when="back"` each row of a piece is asked for."""
    monkeypatch.setattr(Steered, "follows", True)
    even = lambda self, ids, past: [(past + i) % 2 == 0 for i in range(len(ids))]  # noqa: E731
    monkeypatch.setattr(Steered, "follow", even)
    passes = [([0, 1], [(0, PROMPT)] * 2), ([0, 1], [(PROMPT, PROMPT + 1), (PROMPT, PROMPT + 4)])]
    wanted = outputs(Model(2), [DYNAMIC, DYNAMIC], passes)
    paged("torch")
    found = outputs(Model(2), [DYNAMIC, DYNAMIC], passes)
    check(found, wanted)
    touched = found[1][2].flatten(2).any(2).any(0)
    assert touched.tolist() == [False, False, True, False, True]  # at positions 27; 27 to 30


@pytest.mark.parametrize("config", [DYNAMIC, STATIC], ids=["dynamic", "static"])
def test_workers_that_share_the_heads_add_up(paged, config):
    paged("torch")
    model, rows = Model(1), []

    def kept(own):
        rows.append(own)
        return own

    def answer(heads, gather):
        worker = Worker(test_runner.CONFIG, LAYERS, heads, WHOLE.spans, gather=gather)
        of, one = Halves(model, heads), record(0, config)
        of(worker, [one], [(0, PROMPT)])
        output, reports = of(worker, [one], [(PROMPT, PROMPT + 1)])
        return output[:, :, heads], reports["r0"]["share"][0][1]

    whole, share = answer(slice(0, HEADS), kept)
    halves = [answer(slice(i, i + 4), lambda own: rows[0]) for i in (0, 4)]
    torch.testing.assert_close(torch.cat([out for out, _ in halves], 2), whole)
    assert sum(one for _, one in halves) == pytest.approx(share, abs=1e-5) and share > 0


def test_no_key_is_copied_out_of_the_pages(paged, monkeypatch):
    """Behind the row that is looked at, the kernel gets the engine's own pages and table."""
    seen = []

    def noted(q, k, v, table, lengths, *rest, **numbers):
        seen.append((k, v, table.tolist(), lengths.tolist()))
        return q.transpose(1, 2)

    monkeypatch.setattr(decode, "paged_decode_attention", noted)
    paged("triton")
    model, one = Model(1), record(0, DYNAMIC)
    model(WHOLE, [one], [(0, PROMPT)])
    monkeypatch.setattr("vrga.engine.passing.gathered", lambda *args: pytest.fail("copied"))
    model(WHOLE, [one], [(PROMPT + 9, PROMPT + 10)])
    assert len(seen) == LAYERS
    for layer, (k, v, table, lengths) in enumerate(seen):
        assert k.data_ptr() == model.pages[0][layer].data_ptr() and k.shape[2] == PAGE
        assert v.data_ptr() == model.pages[1][layer].data_ptr()
        assert table == model.table[:, :2].tolist() and lengths == [PROMPT + 10]
