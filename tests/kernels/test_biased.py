"""Attention with a bias on the keys: that of the reference with the same gate, without its sums."""

import math

import pytest
import torch
from cases import ABLATE, BOOST, decode_case, double

from vrga.kernels.biased import biased_attention
from vrga.kernels.reference import decode_attention_reference


def bias_of(tensors, arguments, dtype=torch.float32):
    """What the gate, flags and weights of a call add to its scores, key by key."""
    flags, keys = tensors[3], tensors[1].shape[2]
    batch, heads = arguments["gate"].shape
    bias, least = torch.zeros(batch, heads, keys, dtype=dtype), torch.finfo(dtype).min
    for row in range(batch):
        for head in range(heads):
            weights = arguments["opened" if arguments["gate"][row, head] else "closed"]
            for key in range(flags.shape[1]):
                flag = int(flags[row, key])
                weight = 0 if flag < 0 else weights[flag >> 1]
                bias[row, head, key] = math.log(weight) if weight else least
    return bias


@pytest.mark.parametrize(
    "case",
    [
        dict(heads=7, kv_heads=1, keys=1),
        dict(heads=7, kv_heads=1, keys=63, flag_keys=50),
        dict(heads=16, kv_heads=2, keys=129, pads=70, strided=True),
        dict(heads=4, kv_heads=4, keys=65, size=80, pads=3),
        dict(heads=8, kv_heads=2, keys=600, pads=560),  # blocks of hidden keys alone
    ],
    ids=["one key", "7:1", "8:1, padded, strided", "1:1", "hidden blocks"],
)
@pytest.mark.parametrize(
    "weights", [BOOST, ((1.0, 0.25), (1.0, 1.0)), ABLATE], ids=["boost", "gain below 1", "weight 0"]
)
def test_a_bias_is_the_reference_with_that_gate(case, weights):
    tensors, arguments = decode_case(**case, opened=weights[0], closed=weights[1], gate=True,
                                     amplitude=3.0)  # fmt: skip
    tensors[3][:, -1] = 0  # a step's own key is no image
    exact = decode_attention_reference(*double(tensors), **arguments)
    q, k, v, *_ = tensors
    out = biased_attention(q, k, v, bias_of(tensors, arguments), scale=arguments["scale"])
    assert out.dtype == q.dtype and out.shape == exact.shape
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    wide = bias_of(tensors, arguments, torch.float64)
    out = biased_attention(*double((q, k, v)), wide, scale=arguments["scale"])
    torch.testing.assert_close(out, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gain_is_not_rounded_to_the_models_precision(dtype):
    """Were the bias in half precision, a gain of 8 would be off by up to 0.4 %."""
    tensors, arguments = decode_case(heads=8, kv_heads=2, keys=200, gate=True, dtype=dtype,
                                     opened=(1.0, 8.1))  # fmt: skip
    arguments["gate"][:] = True
    q, k, _, flags, _ = tensors
    inside = (flags >> 1 == 1)[:, None, :, None].to(dtype).expand(-1, 2, -1, 16)
    found = biased_attention(q, k, inside.contiguous(), bias_of(tensors, arguments),
                             scale=arguments["scale"]).double()[..., 0]  # fmt: skip
    exact = decode_attention_reference(*double((q, k, inside)), *tensors[3:], **arguments)[..., 0]
    assert (found - exact).abs().max() < 1.1 * torch.finfo(dtype).eps * exact.max()
