"""One query row with a gate that the step decides: that of the reference, for fewer passes."""

import pytest
import torch
from cases import BOOST, decode_case, double, near_gate, statistics

from vrga.kernels.columns import GATE
from vrga.kernels.gated import GatedKeys, gated_attention, table
from vrga.kernels.reference import attention_statistics, decode_attention_reference, key_sets

FOUR = ((1.0, 2.5, 1.0, 2.5), (1.0, 0.5, 1.0, 0.5))
CASES = {
    "one key": dict(heads=7, kv_heads=1, keys=1),
    "7:1, later keys": dict(heads=7, kv_heads=1, keys=63, flag_keys=50),
    "8:1, padded, strided": dict(heads=16, kv_heads=2, keys=129, pads=70, strided=True),
    "1:1": dict(heads=4, kv_heads=4, keys=65, size=80, pads=3),
    "no image": dict(keys=40, images=0.0),
    "sharp": dict(keys=500, amplitude=8.0),
    "an empty region": dict(keys=300, region="empty"),
}


def keys_of(tensors, arguments, dtype):
    """What a call's flags, weights and extent say of its keys."""
    flags, images, keys = tensors[3], tensors[4], tensors[1].shape[2]
    flags = torch.nn.functional.pad(flags, (0, keys - flags.shape[1]))
    rows, extent = table(flags, arguments["opened"], arguments["closed"], dtype), None
    visible = torch.full_like(images, keys)
    if arguments["extent"] is not None:
        visible = arguments["extent"][:, 2]
        extent = (torch.arange(keys) < arguments["extent"][:, :1])[:, None]
    return GatedKeys.of(rows, (visible / images)[:, None, None], extent)


def call(tensors, arguments, dtype, stats=None):
    numbers = {name: arguments[name] for name in ("scale", "focus", "entropy")}
    keys = keys_of(tensors, arguments, dtype)
    return gated_attention(*tensors[:3], keys, **numbers, stats=stats)


@pytest.mark.parametrize("weights", [BOOST, FOUR], ids=["boost", "watched cells"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_the_reference(case, weights):
    tensors, arguments = decode_case(**case, opened=weights[0], closed=weights[1])
    wide = double(tensors)
    exact, wanted = (statistics(tensors, arguments).to(kind) for kind in (torch.float64,) * 2)
    out = decode_attention_reference(*wide, **arguments, stats=exact)
    found = call(wide, arguments, torch.float64, wanted)
    torch.testing.assert_close(found, out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(wanted, exact, rtol=1e-10, atol=1e-12)
    stats = statistics(tensors, arguments)
    narrow = call(tensors, arguments, torch.float32, stats)
    sure = ~near_gate(exact, tensors, arguments)
    assert sure.any() and torch.equal(stats[..., GATE][sure], exact[..., GATE][sure].float())
    same = sure.transpose(1, 2)[..., None].expand_as(out)
    torch.testing.assert_close(narrow.double()[same], out[same], rtol=1e-5, atol=1e-5)


def test_statistics_change_no_bit():
    tensors, arguments = decode_case(keys=333, pads=5)
    plain = call(tensors, arguments, torch.float32)
    stats = statistics(tensors, arguments)
    assert torch.equal(call(tensors, arguments, torch.float32, stats), plain)
    assert stats.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_as_the_reference(dtype):
    tensors, arguments = decode_case(keys=400, dtype=dtype, opened=(1.0, 8.1))
    exact = decode_attention_reference(*double(tensors), **arguments)
    reference = decode_attention_reference(*tensors, **arguments).double()
    found = call(tensors, arguments, torch.float32)
    assert found.dtype == dtype
    assert (found - exact).abs().max() <= 2 * (reference - exact).abs().max()


@pytest.mark.parametrize("amplitude", [1.0, 30.0])
def test_statistics_without_an_output_are_those_with_one(amplitude):
    """Also where one key has all the mass, so that masses and logarithms are 0."""
    tensors, arguments = decode_case(rows=5, keys=150, pads=9, amplitude=amplitude)
    q, k, _, flags, images = double(tensors)
    wanted, found = (statistics(tensors, arguments).double() for _ in range(2))
    decode_attention_reference(*double(tensors), **arguments, stats=wanted)
    weights = arguments["opened"], arguments["closed"]
    sets = key_sets(flags, arguments["extent"], 150, 5, *weights, torch.float64)
    numbers = {name: arguments[name] for name in ("scale", "focus", "entropy")}
    attention_statistics(q, k, images, sets, found, **numbers)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
