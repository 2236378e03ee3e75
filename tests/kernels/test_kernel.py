"""The Triton decode kernel against the torch reference, and the reference against float64."""

import pytest
import torch
from cases import ABLATE, BOOST, DEVICE, MASK, decode_case, double, near_gate, statistics
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive import steered

from vrga.kernels.arguments import HEAD_SIZES
from vrga.kernels.columns import GATE
from vrga.kernels.decode import MAX_ROWS, decode_attention
from vrga.kernels.launch import MAX_PLANS, Workspace
from vrga.kernels.reference import decode_attention_reference

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.slow]
SHARED = Workspace()  # by all calls of `check`: plans of different calls must not be mixed up


def check(splits=None, **case):
    """Kernel and low-precision reference against float64, on the same inputs."""
    tensors, arguments = decode_case(**case)
    exact_stats = statistics(tensors, arguments).double()
    exact = decode_attention_reference(*double(tensors), **arguments, stats=exact_stats)
    stats = statistics(tensors, arguments)
    out = decode_attention(*tensors, **arguments, stats=stats, splits=splits, workspace=SHARED)
    low = decode_attention_reference(*tensors, **arguments)
    assert out.dtype == tensors[0].dtype and out.shape == exact.shape

    sure = torch.ones_like(stats[..., GATE], dtype=torch.bool)
    if arguments["gate"] is None:
        sure = ~near_gate(exact_stats, tensors, arguments)
    assert torch.equal(stats[..., GATE][sure], exact_stats[..., GATE][sure].float())
    columns = [c for c in range(stats.shape[-1]) if c != GATE]
    # Scores of size |s| carry a rounding of |s| * 2^-24 into every exponent.
    scores = (
        tensors[0].double().norm(dim=-1).max() * tensors[1].double().norm(dim=-1).max()
    ).item()
    roundoff = 4e-6 + 4 * scores * arguments["scale"] * 2**-24
    torch.testing.assert_close(
        stats[..., columns].double(), exact_stats[..., columns], rtol=1e-4, atol=8 * roundoff
    )
    same = sure.transpose(1, 2)[..., None].expand_as(out)
    error = (out.double() - exact)[same].abs().max().item()
    # The yardstick is the low-precision reference, where its own gate agrees as well. Over a few
    # keys that may be right by luck, so the roundings that both do are allowed in any case: half a
    # unit in the last place of the weights, and half a one of the output.
    allowed = (low.double() - exact)[same].abs().max().item()
    largest = tensors[2].double().abs().max().item()
    floor = (torch.finfo(tensors[0].dtype).eps + roundoff) * max(largest, 1.0)
    assert error <= max(2 * allowed, floor), (error, allowed, floor)


MODES = {"boost": BOOST, "mask": MASK, "ablate": ABLATE}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    size=st.sampled_from(HEAD_SIZES),
    per_kv=st.sampled_from([1, 2, 4, 7, 8, 12, 16]),
    kv_heads=st.integers(1, 3),
    batch=st.integers(1, 3),
    rows=st.sampled_from([1, 1, 1, 2, 5, 8]),
    keys=st.one_of(st.integers(1, 300), st.integers(300, 1500)),
    dtype=st.sampled_from(DTYPES),
    mode=st.sampled_from(list(MODES)),
    gain=st.sampled_from([0.0, 0.5, 1.0, 1.5, 10.0]),
    region=st.sampled_from(["empty", "full", "scattered", "contiguous"]),
    images=st.sampled_from([0.0, 0.1, 0.9]),
    pads=st.sampled_from([0, 0, 1, 40, 200]),
    gate=st.booleans(),
    strided=st.booleans(),
    splits=st.sampled_from([None, 1, 2, 5, 40]),
    seed=st.integers(0, 10**6),
)
def test_any_shape(size, per_kv, kv_heads, rows, keys, mode, gain, splits, **rest):
    opened, closed = MODES[mode]
    if mode == "boost":
        opened = (1.0, gain)
    if splits == 40:  # the interpreter runs a program for each, of every row and KV head
        kv_heads, rest["batch"] = 1, 1
    check(
        splits,
        size=size,
        heads=per_kv * kv_heads,
        kv_heads=kv_heads,
        rows=min(rows, keys),
        keys=keys,
        opened=opened,
        closed=closed,
        **rest,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("keys", [1, 63, 64, 4000])
def test_lengths(keys, splits, dtype):
    check(splits, keys=keys, heads=7, kv_heads=1, batch=1, size=64, dtype=dtype)


@pytest.mark.skipif(DEVICE == "cpu", reason="too many keys for the interpreter")
@pytest.mark.parametrize("keys", [32768, 131072])
def test_long_caches_on_a_gpu(keys):
    check(None, keys=keys, heads=28, kv_heads=4, size=128, batch=2, dtype=torch.bfloat16, pads=99)


@pytest.mark.parametrize("pads", [0, 30])
@pytest.mark.parametrize("rows", [MAX_ROWS + 1, 3 * MAX_ROWS])
def test_more_rows_than_one_launch_takes(rows, pads):
    check(None, rows=rows, keys=100, pads=pads)


@pytest.mark.parametrize("heads", [(28, 4), (16, 2), (40, 8), (64, 8)], ids=str)
def test_head_counts_of_the_model_family(heads):
    check(None, heads=heads[0], kv_heads=heads[1], size=128, keys=150, batch=1)


@pytest.mark.parametrize("amplitude", [100.0, 1e4])
@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("splits", [1, 4])
def test_huge_scores(mode, amplitude, splits):
    opened, closed = MODES[mode]
    check(splits, amplitude=amplitude, opened=opened, closed=closed, keys=200, pads=30)


@pytest.mark.parametrize("splits", [1, 2])
def test_hidden_tiles_and_keys_without_flags(splits):
    check(splits, keys=200, pads=150, flag_keys=170)


@pytest.mark.parametrize("impl", [decode_attention, decode_attention_reference])
def test_weights_that_leave_no_key_leave_the_row_as_it_is(impl):
    tensors, arguments = decode_case(region="full", gate=True, opened=(1.0, 0.0))
    out = impl(*tensors, **arguments)
    plain = impl(*tensors, **(arguments | dict(opened=(1.0, 1.0))))
    assert torch.equal(out, plain) and not out.isnan().any()


@pytest.mark.parametrize("impl", [decode_attention, decode_attention_reference])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("splits", [1, 3])
def test_a_broken_head_stays_alone(impl, poison, splits):
    tensors, arguments = decode_case(keys=100)
    more = {"splits": splits} if impl is decode_attention else {}
    stats, broken_stats = (statistics(tensors, arguments) for _ in range(2))
    sound = impl(*tensors, **arguments, stats=stats, **more)
    q = tensors[0].clone()
    q[1, 5] = poison
    broken = impl(q, *tensors[1:], **arguments, stats=broken_stats, **more)
    assert broken[1, 0, 5].isnan().all()
    broken[1, 0, 5], broken_stats[1, 5] = sound[1, 0, 5], stats[1, 5]
    assert torch.equal(broken, sound) and torch.equal(broken_stats, stats)


def test_the_reference_is_the_papers_formula():
    (q, k, v, flags, images), arguments = decode_case(keys=90, images=0.4, amplitude=4.0)
    out = decode_attention_reference(q, k, v, flags, images, **arguments)
    seen = set()
    for row in range(len(q)):
        image, region = (flags[row] & 1).nonzero()[:, 0], (flags[row] >> 1 == 1).nonzero()[:, 0]
        expected, opened = steered(
            q[row, :, 0], k[row], v[row], image, region, scale=arguments["scale"]
        )
        seen |= {len(opened)}
        torch.testing.assert_close(out[row, 0].double(), expected, rtol=1e-4, atol=1e-5)
    assert seen - {0, 8}  # the case has open and shut heads


@pytest.mark.parametrize("impl", [decode_attention, decode_attention_reference])
def test_query_rows_are_causal_and_gated_one_by_one(impl):
    rows = 5
    (q, k, v, flags, images), arguments = decode_case(rows=rows, keys=80, images=0.4)
    together = impl(q, k, v, flags, images, **arguments)
    for i in range(rows):
        end = 80 - rows + 1 + i
        # Flags of later keys must not count, so they are cut with the keys.
        alone = impl(q[:, :, i : i + 1], k[:, :, :end], v[:, :, :end], flags[:, :end], images,
                     **arguments)  # fmt: skip
        torch.testing.assert_close(together[:, i : i + 1], alone, rtol=1e-5, atol=1e-6)


def test_a_workspace_is_reused():
    workspace = Workspace()
    tensors, arguments = decode_case(keys=300)
    first = decode_attention(*tensors, **arguments, workspace=workspace, splits=4)
    buffer, plan = workspace.floats(1, tensors[0].device), *workspace.plans.values()
    second = decode_attention(*tensors, **arguments, workspace=workspace, splits=4)
    assert workspace.floats(1, tensors[0].device) is buffer and torch.equal(first, second)
    assert [*workspace.plans.values()] == [plan]


@pytest.mark.slow
def test_a_growing_cache_does_not_pile_up_plans():
    workspace = Workspace()
    for keys in range(1, 2 * MAX_PLANS):
        tensors, arguments = decode_case(keys=keys, batch=1, heads=1, kv_heads=1)
        decode_attention(*tensors, **arguments, workspace=workspace)
        assert len(workspace.plans) <= MAX_PLANS


@pytest.mark.parametrize(
    "change",
    [dict(opened=(1.0, 3.0)), dict(focus=2.0), dict(entropy=9.0), dict(scale=0.1)],
    ids=str,
)
def test_a_plan_is_for_one_set_of_numbers(change):
    workspace = Workspace()
    tensors, arguments = decode_case(keys=90, images=0.4)
    decode_attention(*tensors, **arguments, workspace=workspace)
    other = decode_attention(*tensors, **arguments | change, workspace=workspace)
    assert torch.equal(other, decode_attention(*tensors, **arguments | change))
    assert not torch.equal(other, decode_attention(*tensors, **arguments))


BAD = {
    "head size": lambda t, a: ((t[0][..., :12], t[1][..., :12], t[2][..., :12], *t[3:]), a),
    "query rows": lambda t, a: ((t[0][:, :, :0], *t[1:]), a),
    "q.dtype": lambda t, a: (double(t), a),
    "k.dtype": lambda t, a: ((t[0], t[1].half(), *t[2:]), a),
    "k.shape": lambda t, a: ((t[0], t[1][:1], *t[2:]), a),
    "v.shape": lambda t, a: ((*t[:2], t[2][:, :, 1:], *t[3:]), a),
    "a divisor": lambda t, a: ((t[0][:, :7], *t[1:]), a),
    "v.stride": lambda t, a: (
        (*t[:2], t[2].transpose(2, 3).contiguous().transpose(2, 3), *t[3:]),
        a,
    ),
    "flags.dtype": lambda t, a: ((*t[:3], t[3].long(), t[4]), a),
    "flags.shape": lambda t, a: ((*t[:3], t[3].repeat(1, 2), t[4]), a),
    "images.shape": lambda t, a: ((*t[:4], t[4][:1]), a),
    "opened, closed": lambda t, a: (t, a | dict(opened=(1.0, -1.0))),
    "gate.shape": lambda t, a: (
        t,
        a | dict(gate=torch.ones(2, 3, dtype=torch.bool, device=DEVICE)),
    ),
    "extent.dtype": lambda t, a: (t, a | dict(extent=torch.zeros(2, 3, device=DEVICE))),
    "stats.shape": lambda t, a: (t, a | dict(stats=torch.zeros(2, 8, 1, 4, device=DEVICE))),
    "splits": lambda t, a: (t, a | dict(splits=1000)),
    "q, k": lambda t, a: ((t[0][0], *t[1:]), a),
    "images.device": lambda t, a: ((*t[:4], t[4].to("meta")), a),
}


@pytest.mark.parametrize("named", list(BAD))
def test_bad_arguments_are_named(named):
    tensors, arguments = BAD[named](*decode_case())
    with pytest.raises(ValueError) as error:
        decode_attention(*tensors, **arguments)
    assert named in str(error.value)


def test_the_operator_is_kept_by_a_full_graph():
    from vrga.kernels.decode import decode_attention_op

    tensors, arguments = decode_case(pads=5)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(*tensors):
        return decode_attention_op(*tensors, **arguments) + 1

    torch.testing.assert_close(
        compiled(*tensors), decode_attention(*tensors, **arguments) + 1, rtol=0, atol=0
    )
