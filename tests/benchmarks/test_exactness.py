"""The kernels' exactness on a GPU is told by a check that can fail."""

import pytest
import torch

from benchmarks.gpu import exactness
from benchmarks.gpu.exactness import Mismatch
from vrga.kernels import decode, probe
from vrga.kernels.columns import GATE
from vrga.kernels.pages import paged_decode_attention_reference
from vrga.kernels.reference import decode_attention_reference, probe_scores_reference

SHAPE = dict(heads=4, kv_heads=2, size=32, batch=2)


@pytest.fixture(autouse=True)
def torch_as_it_was():
    """The check makes torch fill new memory with NaN; the tests behind it need not."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def kernel(monkeypatch):
    """Let a function be the kernel: it gets the output and the options of plain torch's."""

    def put(change=lambda out, stats: out, **wrong):
        def called(q, k, v, flags, images, *, workspace, splits, **options):
            out = decode_attention_reference(q, k, v, flags, images, **options | wrong)
            return change(out, options["stats"])

        monkeypatch.setattr(decode, "decode_attention", called)

    return put


@pytest.mark.parametrize("keys", [7, 63, 1037, 4099])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_a_small_mistake_is_found_at_any_length(kernel, keys, dtype):
    case = SHAPE | dict(keys=keys, dtype=dtype)
    kernel()
    found = exactness.decode(**case)
    assert found["error"] == found["torch"] <= found["allowed"] and found["compared"] > 0
    kernel(opened=(1.0, 1.0))  # no gain
    with pytest.raises(Mismatch, match="off by"):
        exactness.decode(**case | dict(gate=True))
    kernel(lambda out, stats: out.masked_fill(torch.arange(32) == 31, float("nan")))
    with pytest.raises(Mismatch, match="off by nan"):
        exactness.decode(**case)


def test_statistics_and_gates_are_compared(kernel):
    case = SHAPE | dict(keys=200, dtype="fp32", stats=True, groups=3)
    kernel()
    exactness.decode(**case)

    def off(column, by):
        def change(out, stats):
            stats[..., column] += by
            return out

        return change

    kernel(off(1, 2e-3))
    with pytest.raises(Mismatch, match="statistics are off by"):
        exactness.decode(**case)
    kernel(off(GATE, 1))
    with pytest.raises(Mismatch, match="falls the other way"):
        exactness.decode(**case)


def test_pages_are_compared(monkeypatch):
    """Samples of different lengths, and NaN where no key of theirs is."""
    lengths = []

    def put(wrong=0, **other):
        def called(q, k, v, table, ends, *rest, workspace, splits, **options):
            lengths.append(ends.tolist())
            out = paged_decode_attention_reference(
                q, k, v, table, ends - wrong, *rest, **options | other
            )
            assert v[:, :, :1].isnan().any() and v.shape[2] == 16
            return out

        monkeypatch.setattr(decode, "paged_decode_attention", called)

    case = SHAPE | dict(keys=200, dtype="fp32", stats=True, page=16, gate=True)
    put()
    found = exactness.decode(**case)
    assert found["error"] <= found["allowed"] and lengths[0] == [200, 181]
    for wrong in (dict(wrong=1), dict(opened=(1.0, 1.0))):
        put(**wrong)
        with pytest.raises(Mismatch, match="off by"):
            exactness.decode(**case)


def test_the_probe_is_compared(monkeypatch):
    def wrong(by, key):
        def called(q, k, last, hidden, out, **options):
            probe_scores_reference(q, k, last, hidden, out, **options)
            out[0, 0, key] += by

        monkeypatch.setattr(probe, "probe_scores", called)

    case = SHAPE | dict(keys=63, dtype="fp32", offset=40)
    wrong(0, 20)
    assert exactness.probe(**case)["compared"] > 0
    wrong(1e-3, 20)
    with pytest.raises(Mismatch, match="off by 1.0"):
        exactness.probe(**case)
    wrong(-torch.inf, 20)
    with pytest.raises(Mismatch, match="other keys"):
        exactness.probe(**case)
