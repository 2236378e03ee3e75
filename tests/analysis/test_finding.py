"""vrga analyze finding: what it says of each way is what the library finds."""

import json
import math

import numpy as np
import pytest
import torch
from command import run, worked

import vrga
from vrga import VRGAConfig
from vrga.analysis import finding, study
from vrga.analysis.asked_rows import asked_rows
from vrga.analysis.ways import BORDER, COMPETE, LAST, LAYERS, MEAN, NAMED, OPEN, WHOLE, ways
from vrga.demo.data import SPLITS, TEST_SEEDS, make_samples, prepare
from vrga.hf.backends import backend_of

SPARING = VRGAConfig.sparing()
SAMPLES = make_samples(5, seed=TEST_SEEDS.start + 40, **SPLITS["noise"])


@pytest.fixture(scope="module")
def embedded():
    return vrga.load(dtype=torch.float32)


@pytest.fixture(scope="module")
def asked(embedded):
    return list(asked_rows(embedded, SAMPLES, "cot", 3))


def found_by(embedded, config, query):
    model, processor = embedded
    with vrga.patch(model, config, tokenizer=processor) as patch, torch.no_grad():
        patch.query = query
        model(**prepare(processor, SAMPLES, "cot"), use_cache=True)
    return patch.region


def test_ways_of_the_library_find_what_the_library_finds(embedded, asked):
    named = [sample.question for sample in SAMPLES]
    wanted = {
        LAST: found_by(embedded, SPARING, "user_end"),
        NAMED: found_by(embedded, SPARING, named),
        WHOLE: found_by(embedded, VRGAConfig.sparing(question="whole"), "user_end"),
        BORDER: found_by(embedded, VRGAConfig.sparing(sink_border="always"), named),
        OPEN: found_by(embedded, VRGAConfig.sparing(sink_fraction=0.0), named),
    }
    for row, one in enumerate(asked):
        own = ways(one, SPARING)
        assert one.truth.nonzero().tolist() == [[SAMPLES[row].cell[0] * 6 + SAMPLES[row].cell[1]]]
        for name, regions in wanted.items():
            region = regions[row]
            torch.testing.assert_close(own[name].map, region.map[0].flatten(), rtol=1e-3, atol=1e-5)
            assert torch.equal(own[name].chosen, region.mask[region.grids[0].index])


def test_the_model_attends_as_before(embedded):
    before = backend_of(embedded[0])
    rows = asked_rows(embedded, SAMPLES[:1], "cot", 1)
    assert next(rows).rows.shape[2] > 7
    rows.close()
    assert backend_of(embedded[0]) == before != "eager"


def test_made_maps_are_what_they_are_called(asked):
    """By hand, of one question: each word's own map, each layer's, all heads together."""
    (one, config) = asked[0], SPARING
    own = ways(one, config)
    image = one.grids[0].index
    count = one.seen[0].sum(1)
    on = one.rows[..., image]  # [L, H, Q, n]
    focus = on.mean(-1) * count
    share = on / on.sum(-1, keepdim=True)
    efr = -torch.xlogy(share, share).sum(-1) / focus

    def chosen(efr, focus):
        low, high = np.percentile(efr, 15), np.percentile(focus, 70)
        return torch.from_numpy((efr.numpy() <= low) & (focus.numpy() >= high))

    maps = []
    for q in range(on.shape[2]):
        mean = on[:, :, q][chosen(efr[..., q], focus[..., q])].mean(0)
        maps.append(mean / mean.sum())
    torch.testing.assert_close(own[MEAN].map, torch.stack(maps).mean(0), rtol=1e-3, atol=1e-5)
    every = on[chosen(efr, focus)].mean(0)
    torch.testing.assert_close(own[COMPETE].map, every / every.sum(), rtol=1e-3, atol=1e-5)
    heads, product = chosen(efr[..., one.named], focus[..., one.named]), 1.0
    layers = [i for i in range(len(on)) if heads[i].any()]
    for i in layers:
        mean = on[i, heads[i], one.named].mean(0)
        product = product * (mean / mean.sum()).clamp_min(1e-6) ** (1 / len(layers))
    torch.testing.assert_close(own[LAYERS].map, product / product.sum(), rtol=1e-3, atol=1e-5)


def test_calibration_is_that_of_pairs_and_of_the_surest():
    scores, hits = np.array([0.9, 0.8, 0.7, 0.7, 0.1]), np.array([1.0, 0, 1, 0, 1])
    pairs = [(a > b) + 0.5 * (a == b) for a in (0.9, 0.7, 0.1) for b in (0.8, 0.7)]
    assert finding.auroc(scores, hits) == pytest.approx(sum(pairs) / 6)
    assert finding.auroc(scores, np.ones(5)) is None
    assert finding.surest(np.arange(10.0), np.arange(10) >= 4) == pytest.approx([1, 6 / 8, 6 / 9])


def test_who_abstains_keeps_the_answer_without_steering():
    told = [{"ways": {NAMED: (True, True, 0.1, sure)}} for sure in (0.1, 0.45, 0.9, 0.95)]
    off, steered = np.array([1.0, 1, 0, 0]), np.array([0.0, 1, 1, 0])
    found = finding.abstaining(told, off, steered)["thresholds"]
    changes = {name: one["change"][0] for name, one in found.items()}
    assert changes["0"] == pytest.approx(0) and changes["0.2"] == pytest.approx(0.25)
    assert found["0.5"]["steered"][0] == pytest.approx(0.5)


def test_the_command_writes_a_table_and_refuses_what_it_does_not_answer(
    tmp_path, embedded, monkeypatch
):
    monkeypatch.setattr(study, "load", lambda *args, **kwargs: embedded)
    options = ["analyze", "finding", "--split", "crowded", "--limit", "3", "--answers"]
    worked(*options, "--output", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["questions"] == 3 and results["settings"]["validation"] is False
    assert results["abstain"]["thresholds"]["0"]["steered"][0] == 1
    assert not math.isnan(results["ways"][WHOLE]["peak"][0])
    assert WHOLE in (tmp_path / "out" / "table.md").read_text()
    refused = run("analyze", "finding", "--split", "fine-hard", "--answers")
    assert refused.exit_code and "closer" in str(refused.exception or refused.output)
