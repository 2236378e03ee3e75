"""The probe kernel and its torch reference against float64."""

import pytest
import torch
from cases import DEVICE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vrga.kernels.arguments import HEAD_SIZES
from vrga.kernels.launch import Workspace
from vrga.kernels.probe import probe_scores
from vrga.kernels.reference import probe_scores_reference

pytestmark = pytest.mark.usefixtures("poisoned")
SHARED = Workspace()


def probe_case(
    *, batch=2, heads=8, kv_heads=2, rows=9, keys=9, offset=0, size=16, length=None,
    dtype=torch.float32, pads=0, strided=False, seed=0,
):  # fmt: skip
    """(q, k, last, hidden, out) and keyword arguments; the cache holds `keys`, S is `length`."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, rows, heads, size, generator=g).to(dtype).transpose(1, 2)
    k = torch.randn(batch, kv_heads, keys + 5, size, generator=g).to(dtype)[:, :, :keys]
    if strided:
        k = k.transpose(1, 2).contiguous().transpose(1, 2)
    length = min(keys, offset + rows) if length is None else length
    hidden = torch.zeros(batch, length, dtype=torch.bool)
    hidden[0, : min(pads, offset)] = True
    last = torch.randint(offset, offset + rows, (batch,), generator=g).to(torch.int32)
    out = torch.full((batch, heads, length), float("nan"))
    tensors = tuple(x.to(DEVICE) for x in (q, k, last, hidden, out))
    return tensors, dict(offset=offset, scale=size**-0.5)


def expected(q, k, last, hidden, out, *, offset, scale):
    """The formula, sample by sample, in float64; NaN where nothing is written."""
    found = torch.full_like(out, float("nan"), dtype=torch.float64)
    for b, place in enumerate(last.tolist()):
        if not offset <= place < offset + q.shape[2]:
            continue
        found[b] = -torch.inf
        for h in range(q.shape[1]):
            keys = k[b, h // (q.shape[1] // k.shape[1])].double()
            scores = keys[: place + 1] @ q[b, h, place - offset].double() * scale
            found[b, h, : place + 1] = scores.masked_fill(hidden[b, : place + 1], -torch.inf)
    return found


@pytest.mark.parametrize("impl", [probe_scores, probe_scores_reference])
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    size=st.sampled_from(HEAD_SIZES),
    per_kv=st.sampled_from([1, 2, 7, 8, 12, 16]),
    kv_heads=st.integers(1, 3),
    batch=st.integers(1, 3),
    rows=st.integers(1, 140),
    offset=st.sampled_from([0, 0, 1, 63, 64]),
    spare=st.sampled_from([0, 30]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    pads=st.sampled_from([0, 3, 70]),
    strided=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_any_shape(impl, per_kv, kv_heads, rows, offset, spare, **rest):
    tensors, numbers = probe_case(
        heads=per_kv * kv_heads, kv_heads=kv_heads, rows=rows, offset=offset,
        keys=offset + rows + spare, length=offset + rows, **rest,
    )  # fmt: skip
    exact = expected(*tensors, **numbers)
    more = {"workspace": SHARED} if impl is probe_scores else {}
    impl(*tensors, **numbers, **more)
    # float32 sums of exact products: their rounding alone.
    torch.testing.assert_close(tensors[-1].double(), exact, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("impl", [probe_scores, probe_scores_reference])
def test_a_pass_writes_the_samples_whose_query_it_holds(impl):
    """A prompt of 12 in passes of 5, 5, 2; one sample's query in the second, one's in the last."""
    (q, k, _, hidden, out), numbers = probe_case(rows=12, keys=12, batch=3)
    last = torch.tensor([7, 11, -1], dtype=torch.int32, device=DEVICE)  # the third has no query
    whole, parts = out.clone(), out.clone()
    impl(q, k, last, hidden, whole, **numbers)
    for first, end in ((0, 5), (5, 10), (10, 12)):
        impl(q[:, :, first:end], k[:, :, :end], last, hidden, parts, **numbers | {"offset": first})
    torch.testing.assert_close(parts, whole, equal_nan=True)
    assert whole[2].isnan().all() and not whole[:2].isnan().any()


BAD = {
    "head size": lambda q, k, *rest: (q[..., :12], k[..., :12], *rest),
    "q.dtype": lambda q, k, *rest: (q.double(), k.double(), *rest),
    "k is": lambda q, k, *rest: (q, k[:1], *rest),
    "a divisor": lambda q, k, *rest: (q[:, :7], k, *rest),
    "last is": lambda q, k, last, *rest: (q, k, last.long(), *rest),
    "hidden is": lambda q, k, last, hidden, out: (q, k, last, hidden[:1], out),
    "out is": lambda q, k, last, hidden, out: (q, k, last, hidden, out[:, :3]),
    "stride": lambda q, k, *rest: (q, k.transpose(2, 3).contiguous().transpose(2, 3), *rest),
    "last.device": lambda q, k, last, *rest: (q, k, last.to("meta"), *rest),
}


@pytest.mark.parametrize("named", list(BAD))
def test_bad_arguments_are_named(named):
    tensors, numbers = probe_case()
    with pytest.raises(ValueError) as error:
        probe_scores(*BAD[named](*tensors), **numbers)
    assert named in str(error.value)
