"""Random inputs for the decode kernels, and what is compared."""

import os

import torch

DEVICE = os.environ.get("VRGA_TEST_DEVICE", "cpu")
BOOST = ((1.0, 1.5), (1.0, 1.0))
MASK = ((1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
ABLATE = ((1.0, 0.0), (1.0, 1.0))


def decode_case(
    *, batch=2, heads=8, kv_heads=2, rows=1, keys=70, size=16, dtype=torch.float32,
    opened=BOOST[0], closed=BOOST[1], region="scattered", images=0.5, pads=0, amplitude=1.0,
    gate=False, flag_keys=None, strided=False, seed=0,
):  # fmt: skip
    """(tensors, keyword arguments) of one call of decode_attention.

    Args:
        region: "empty", "full", "scattered" or "contiguous": which image keys are in group 1.
        images: share of the keys that are image keys; 0 for none.
        pads: hidden keys on the left of row 0.
        amplitude: factor on the queries, hence on the scores.
        flag_keys: length of the flags; later keys have none. None: all keys.
        strided: take k and v as views of a longer cache with another layout.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    q = (normal(batch, heads, rows, size) * amplitude).to(dtype)
    if strided:  # [B, S, H_kv, d] in memory, inside a longer buffer
        store = normal(2, batch, keys + 9, kv_heads, size).to(dtype)
        k, v = store[:, :, 3 : keys + 3].transpose(2, 3)
    else:
        k, v = normal(2, batch, kv_heads, keys, size).to(dtype)
    flag_keys = keys if flag_keys is None else min(flag_keys, keys)
    image = torch.rand(batch, flag_keys, generator=g) < images
    group = torch.randint(0, len(opened), (batch, flag_keys), generator=g)
    if region == "empty":
        group = group.clamp_min(2).where(group > 1, torch.tensor(0))
    elif region == "full":
        group[:], image[:] = 1, images > 0
    elif region == "contiguous":
        place = torch.arange(flag_keys)
        group = ((place >= flag_keys // 4) & (place < flag_keys // 2)).long().expand_as(group)
    if region != "full":
        group = group * image  # only image keys are in a steered group
    flags = ((group << 1) | image).to(torch.int32)
    extent = None
    if pads:
        extent = torch.tensor([[0, keys, keys]] * batch, dtype=torch.int32)
        pads = min(pads, keys - rows)
        extent[0, 0], extent[0, 2] = pads, keys - pads
        flags[0, :pads] = -1
    count = ((flags >= 0) & (flags & 1 > 0)).sum(1).to(torch.int32)
    given = torch.rand(batch, heads, generator=g) < 0.5 if gate else None
    arguments = dict(
        scale=size**-0.5, opened=opened, closed=closed, focus=0.6, entropy=0.2, gate=given,
        extent=extent,
    )  # fmt: skip
    tensors = (q, k, v, flags, count)
    if DEVICE != "cpu":
        tensors = tuple(x.to(DEVICE) for x in tensors)
        arguments |= {
            name: x.to(DEVICE) for name, x in arguments.items() if isinstance(x, torch.Tensor)
        }
    return tensors, arguments


def double(tensors):
    """The same inputs in float64."""
    return tuple(x.double() if x.is_floating_point() else x for x in tensors)


def statistics(tensors, arguments):
    """A NaN-filled statistics tensor for a call."""
    batch, heads, rows, _ = tensors[0].shape
    shape = (batch, heads, rows, 3 + len(arguments["opened"]))
    return torch.full(shape, float("nan"), device=tensors[0].device)


def near_gate(stats, tensors, arguments, margin=1e-3):
    """Rows whose gate lies within `margin` of a threshold, bool [B, H, Q]; float64 stats."""
    keys, rows = tensors[1].shape[2], tensors[0].shape[2]
    back = torch.arange(rows - 1, -1, -1, device=stats.device)
    extent = arguments["extent"]
    visible = keys - back if extent is None else extent[:, 2, None, None] - back
    ratio = stats[..., 0] * visible / tensors[4][:, None, None]
    limit = arguments["entropy"] * stats[..., 1]
    return ((ratio - arguments["focus"]).abs() < margin) | ((ratio - limit).abs() < margin)
