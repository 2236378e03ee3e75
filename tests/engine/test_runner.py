"""Book-keeping of steered requests in a worker, with a stand-in for vLLM's runner and its pages."""

from types import SimpleNamespace

import pytest
import torch

from vrga.config import VRGAConfig
from vrga.engine import runner
from vrga.engine.plan import PLAN, Plan
from vrga.engine.runner import Worker, attend, give_up, run
from vrga.engine.scheduler import Summary
from vrga.kernels.reference import decode_attention_reference
from vrga.method.key_groups import KeyGroups
from vrga.method.prompt import Grid
from vrga.method.region import find_region

LAYERS, HEADS, KV, SIZE, PAGE, SIDE = 3, 8, 2, 16, 32, 4
IMAGE, QUERY, PROMPT = 3, 24, 27  # position of the image; of the question's end; tokens
SCALE = SIZE**-0.5
CONFIG = SimpleNamespace(
    model_type="qwen2_5_vl", vision_config=SimpleNamespace(spatial_merge_size=2)
)
WHOLE = Worker(CONFIG, LAYERS, slice(0, HEADS), spans=lambda tag: pytest.fail("no spans asked"))


class Model:
    """Queries, keys and values of every position of some requests, and their pages.

    The attention of rows that no request steers is zero, so that steered ones stand out.
    """

    def __init__(self, requests, tokens=96, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.query = 3 * torch.randn(requests, LAYERS, tokens, HEADS, SIZE, generator=g)
        self.key = torch.randn(requests, LAYERS, KV, tokens, SIZE, generator=g)
        self.value = torch.randn(requests, LAYERS, KV, tokens, SIZE, generator=g)
        pages = tokens // PAGE
        order = torch.randperm(requests * pages, generator=g)
        self.table = order.view(requests, pages).int()
        self.pages = [
            torch.zeros(LAYERS, requests * pages, KV, PAGE, SIZE) for _ in (self.key, self.value)
        ]
        for paged, kept in zip(self.pages, (self.key, self.value), strict=True):
            for request, own in enumerate(self.table.long()):
                cut = kept[request].unflatten(2, (pages, PAGE))  # [L, KV, pages, PAGE, d]
                paged[:, own] = cut.transpose(1, 2)

    def __call__(self, worker, records, spans):
        """Rows `spans` (past, end) of some requests: their output [L, T, H, d], and reports."""
        query = torch.cat(
            [
                self.query[r.number, :, past:end]
                for r, (past, end) in zip(records, spans, strict=True)
            ],
            1,
        )
        output = torch.zeros_like(query)
        table = self.table[[record.number for record in records]]

        def forward():
            for layer in range(LAYERS):
                heads = worker.heads
                attend(layer, query[layer, :, heads], output[layer, :, heads],
                       self.pages[0][layer], self.pages[1][layer], table, SCALE)  # fmt: skip
            return "hidden"

        starts = [0, *torch.tensor([end - past for past, end in spans]).cumsum(0).tolist()]
        ids = torch.zeros(starts[-1], dtype=torch.int32)
        found, reports = run(worker, records, starts, [end for _, end in spans], ids, forward)
        assert found == "hidden"
        return output, reports

    def region(self, number, config):
        """What the method finds, by its own function on whole rows."""
        scores = torch.einsum(
            "lhd,lhsd->lhs", self.query[number, :, QUERY],
            self.key[number, :, :, : QUERY + 1].repeat_interleave(HEADS // KV, 1),
        )  # fmt: skip
        rows = torch.nn.functional.pad((scores * SCALE).softmax(-1), (0, PROMPT - QUERY - 1))
        grid = Grid(torch.arange(IMAGE, IMAGE + SIDE**2), SIDE, SIDE)
        seen = (torch.arange(PROMPT) <= QUERY).expand(LAYERS, -1)
        return find_region(rows, [grid], QUERY, seen, config)

    def steered(self, number, config, past, end):
        """Rows of an answer by the unpaged reference, [L, Q, H, d]."""
        region, groups = self.region(number, config), KeyGroups.of(config)
        gate = region.visual if config.gate == "static" else [None] * LAYERS
        return torch.stack([
            decode_attention_reference(
                self.query[number, layer, None, past:end].transpose(1, 2),
                self.key[number, layer, None, :, :end], self.value[number, layer, None, :, :end],
                groups.flags([region]), region.image.sum()[None], scale=SCALE,
                opened=groups.opened, closed=groups.closed, focus=config.gate_focus,
                entropy=config.gate_entropy,
                gate=None if gate[layer] is None else gate[layer][None],
            )[0]
            for layer in range(LAYERS)
        ])  # fmt: skip


def record(number, config=None, sizes=((1, 2 * SIDE, 2 * SIDE),), **plan):
    """A runner's record of a request."""
    extra = {}
    if config is not None:
        made = Plan(config, PROMPT, QUERY, ((IMAGE, SIDE**2),), **plan)
        extra = {"vrga": "asked", PLAN: made.to_dict()}
    features = [
        SimpleNamespace(
            data={"image_grid_thw": SimpleNamespace(data=torch.tensor(size))},
            mm_position=SimpleNamespace(offset=IMAGE),
        )
        for size in sizes
    ]
    return SimpleNamespace(
        req_id=f"r{number}", number=number, mm_features=features,
        sampling_params=SimpleNamespace(extra_args=extra),
    )  # fmt: skip


DYNAMIC = VRGAConfig.published(region_min=3)
STATIC = VRGAConfig.paper(region_min=3)


@pytest.mark.parametrize("config", [DYNAMIC, STATIC], ids=["dynamic", "static"])
def test_a_paged_answer_is_the_unpaged_references(config):
    model, one = Model(1), record(0, config)
    prefill, reports = model(WHOLE, [one], [(0, PROMPT)])
    assert not prefill.any()  # the prompt is the engine's own
    region = model.region(0, config)
    assert reports["r0"]["region"]["tokens"] == int(region.mask.sum())
    assert reports["r0"]["region"]["heads"] == region.visual.nonzero().tolist()
    for at in range(PROMPT, PROMPT + 12):  # over a page's end
        output, reports = model(WHOLE, [one], [(at, at + 1)])
        wanted = model.steered(0, config, at, at + 1)
        steers = region.visual if config is STATIC else torch.ones_like(region.visual)
        torch.testing.assert_close(output[:, 0][steers], wanted[:, 0][steers])
        assert not output[:, 0][~steers].any()  # heads that are shut keep the engine's own
        assert [step for step, _ in reports["r0"]["share"]] == [at - PROMPT]
        assert "region" not in reports["r0"]


def test_requests_of_all_kinds_share_a_pass_in_any_order():
    model = Model(5)
    configs = [DYNAMIC, None, STATIC, VRGAConfig.published(region_min=3, gain=4), DYNAMIC]
    records = [record(i, config) for i, config in enumerate(configs)]
    model(WHOLE, records[:3], [(0, PROMPT), (0, 40), (0, PROMPT)])
    ends = [PROMPT, 40, PROMPT]
    # The last two come while the others answer, in pieces.
    for piece in ((0, 10), (10, 25), (25, PROMPT)):
        spans = [*((end, end + 1) for end in ends), piece, piece]
        model(WHOLE, records, spans)
        ends = [end + 1 for end in ends]
    order = [3, 0, 4, 2, 1]
    spans = [(PROMPT, PROMPT + 1), (30, 31), (PROMPT, PROMPT + 1), (30, 31), (43, 44)]
    output, reports = model(WHOLE, [records[i] for i in order], spans)
    for row, (number, (past, end)) in enumerate(zip(order, spans, strict=True)):
        if configs[number] is None:
            assert not output[:, row].any() and f"r{number}" not in reports
            continue
        wanted = model.steered(number, configs[number], past, end)[:, 0]
        steers = torch.ones(LAYERS, HEADS, dtype=torch.bool)
        if configs[number] is STATIC:
            steers = model.region(number, STATIC).visual
        torch.testing.assert_close(output[:, row][steers], wanted[steers])
        assert not output[:, row][~steers].any()


@pytest.mark.parametrize("config", [DYNAMIC, STATIC], ids=["dynamic", "static"])
def test_an_answer_that_comes_again_after_a_preemption_is_steered(config, monkeypatch):
    model, one = Model(1), record(0, config)
    model(WHOLE, [one], [(0, PROMPT)])
    for at in range(PROMPT, 50):
        model(WHOLE, [one], [(at, at + 1)])
    monkeypatch.setattr("vrga.engine.answer_rows.AT_ONCE", 1500)  # a few rows at a time
    output, reports = model(WHOLE, [one], [(0, 20)])  # in two pieces
    assert not output.any()
    output, reports = model(WHOLE, [one], [(20, 51)])
    assert not output[:, : PROMPT - 20].any()
    wanted = model.steered(0, config, PROMPT, 51)
    own = output[:, PROMPT - 20 :].transpose(1, 2)  # [L, H, Q, d]
    steers = torch.ones(LAYERS, HEADS, dtype=torch.bool)
    if config is STATIC:
        steers = model.region(0, config).visual
    torch.testing.assert_close(own[steers], wanted.transpose(1, 2)[steers])
    assert not own[~steers].any()
    assert [step for step, _ in reports["r0"]["share"]] == list(range(51 - PROMPT))
    assert "region" not in reports["r0"]  # it was told before


def test_shares_are_the_same_of_one_row_and_of_several():
    model = Model(3)
    configs = [STATIC, VRGAConfig.paper(region_min=3, gain=6), STATIC]
    records = [record(i, config) for i, config in enumerate(configs)]
    model(WHOLE, records, [(0, PROMPT)] * 3)
    _, now = model(WHOLE, records, [(PROMPT, PROMPT + 1)] * 3)
    _, again = model(WHOLE, records[::-1], [(PROMPT, PROMPT + 2)] * 3)  # two rows at once
    for name in now:
        ((step, share),) = now[name]["share"]
        assert step == 0 and 0 < share < 1
        assert abs(share - again[name]["share"][0][1]) < 1e-5


def test_the_state_of_a_request_is_dropped_with_the_runners_record():
    model, one = Model(1), record(0, DYNAMIC)
    model(WHOLE, [one], [(0, PROMPT)])
    again = record(0, DYNAMIC)
    _, reports = model(WHOLE, [again], [(0, PROMPT)])
    assert "region" in reports["r0"]
    assert runner.passing() is None


@pytest.mark.parametrize("config", [DYNAMIC, STATIC], ids=["dynamic", "static"])
def test_workers_that_share_the_heads_find_one_region(config):
    """Percentiles are over all heads: each worker's attention is gathered first."""
    model, whole = Model(1), record(0, config)
    _, told = model(WHOLE, [whole], [(0, PROMPT)])
    parts = [slice(0, 4), slice(4, 8)]
    rows = []

    def kept(own):
        rows.append(own)
        raise InterruptedError  # this worker's turn ends: the others' rows are not there yet

    for heads in parts:
        half = Halves(model, heads)
        worker = Worker(CONFIG, LAYERS, heads, WHOLE.spans, gather=kept)
        half(worker, [record(0, config)], [(0, PROMPT)])
    together = torch.cat(rows, 1)
    for heads in parts:
        one = record(0, config)
        worker = Worker(CONFIG, LAYERS, heads, WHOLE.spans, gather=lambda own: together)
        half = Halves(model, heads)
        _, reports = half(worker, [one], [(0, PROMPT)])
        assert reports["r0"] == told["r0"]
        output, _ = half(worker, [one], [(PROMPT, PROMPT + 1)])
        wanted = model.steered(0, config, PROMPT, PROMPT + 1)[:, 0, heads]
        steers = torch.ones(LAYERS, 4, dtype=torch.bool)
        if config is STATIC:
            steers = model.region(0, config).visual[:, heads]
        torch.testing.assert_close(output[:, 0, heads][steers], wanted[steers])


class Halves(Model):
    """One worker's KV heads of a model."""

    def __init__(self, whole, heads):
        self.query, self.table = whole.query, whole.table
        group = HEADS // KV
        own = slice(heads.start // group, heads.stop // group)
        self.pages = [paged[:, :, own] for paged in whole.pages]


def fault(reports):
    """Why the request is not steered."""
    summary = Summary("paper")
    summary.take(reports["r0"])
    assert not summary.to_dict()["steered"]
    return summary.fault


def test_what_goes_wrong_is_a_fault_of_its_requests_and_no_exception(monkeypatch):
    model = Model(1)
    _, reports = model(WHOLE, [record(0, DYNAMIC, sizes=((1, 4, 4),))], [(0, PROMPT)])
    assert "takes 16 tokens, and its grid is 2 x 2" in fault(reports)

    _, reports = model(WHOLE, [record(0, DYNAMIC)], [(PROMPT, PROMPT + 1)])
    assert "the row of its question, at 24, was never seen" in fault(reports)

    deeper = Worker(CONFIG, LAYERS + 1, slice(0, HEADS), WHOLE.spans)
    _, reports = model(deeper, [record(0, DYNAMIC)], [(0, PROMPT)])
    assert "only 3 of 4 layers attended through vrga" in fault(reports)

    def broken(*args):
        raise ArithmeticError("broken")

    monkeypatch.setattr("vrga.engine.passing.row_attention", broken)
    _, reports = model(WHOLE, [record(0, DYNAMIC)], [(0, PROMPT)])
    assert fault(reports) == "ArithmeticError: broken"


def test_a_fault_stays_and_the_rest_of_the_answer_is_left_alone():
    model, one = Model(1), record(0, DYNAMIC)
    model(WHOLE, [one], [(0, PROMPT)])

    def forward():
        give_up("keys lie otherwise")

    _, reports = run(WHOLE, [one], [0, 1], [PROMPT + 1], torch.zeros(1), forward)
    assert "keys lie otherwise" in fault(reports)
    output, reports = model(WHOLE, [one], [(PROMPT + 1, PROMPT + 2)])
    assert not output.any() and "keys lie otherwise" in fault(reports)


def test_a_pass_without_steered_requests_is_run_and_no_more():
    plain = record(0)
    assert run(WHOLE, [plain], [0, 4], [4], torch.zeros(4), lambda: runner.passing()) == (None, {})
