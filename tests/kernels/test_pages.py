"""The decode kernel over pages against the same kernel over one piece, bit for bit."""

import pytest
import torch
from cases import BOOST, DEVICE, MASK, decode_case, statistics

from benchmarks.gpu.exactness import in_pages
from vrga.kernels.api import Kernels
from vrga.kernels.decode import MAX_ROWS, decode_attention, paged_decode_attention
from vrga.kernels.launch import Workspace
from vrga.kernels.pages import gathered, paged_decode_attention_reference

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.slow]
LENGTHS = (55, 32)  # on pages that are full, and on such as are partly filled


def paged_case(page=16, lengths=LENGTHS, **case):
    """(tensors in one piece, their arguments), (the same in pages, their arguments)."""
    case = dict(heads=2, kv_heads=1, batch=len(lengths), keys=max(lengths)) | case
    (q, k, v, flags, images), arguments = decode_case(**case)
    ends = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    pages = in_pages(k, v, page, ends)
    whole = pages[2].shape[1] * page
    pad = (0, 0, 0, whole - k.shape[2])
    k, v = (torch.nn.functional.pad(x, pad) for x in (k, v))
    extent = torch.stack([torch.zeros_like(ends), ends, ends], 1)
    plain = {name: x for name, x in arguments.items() if name != "extent"}
    return (
        ((q, k, v, flags, images), plain | {"extent": extent}),
        ((q, *pages, ends, flags, images), plain),
    )


def check(splits, **case):
    """The kernel over pages, and over one piece: output and statistics."""
    (whole, arguments), (paged, plain) = paged_case(**case)
    wanted_stats, stats = (statistics(whole, arguments) for _ in range(2))
    wanted = decode_attention(*whole, **arguments, stats=wanted_stats, splits=splits)
    out = paged_decode_attention(*paged, **plain, stats=stats, splits=splits)
    assert not wanted.isnan().any() and torch.equal(out, wanted)
    assert torch.equal(stats, wanted_stats)
    return out


CASES = {  # splits of the keys, and what else there is
    "dynamic gate": (1, dict(images=0.4)),
    "static gate": (1, dict(gate=True)),
    "dynamic gate, three splits": (3, dict(images=0.4)),
    "static gate, two splits": (2, dict(gate=True, heads=4, kv_heads=2, lengths=(70,))),
    "pages of 32": (1, dict(page=32, images=0.4)),
    "pages of 48": (1, dict(page=48)),
    "bfloat16": (1, dict(dtype=torch.bfloat16)),
    "seven heads share, bfloat16": (2, dict(heads=7, size=32, dtype=torch.bfloat16)),
    "two heads share, of two": (1, dict(heads=4, kv_heads=2, gate=True)),
    "sixteen share": (1, dict(heads=16, lengths=(40,))),
    "hard mask": (1, dict(opened=MASK[0], closed=MASK[1])),
    "a region in one piece": (1, dict(region="contiguous", gate=True)),
    "no region": (1, dict(region="empty")),
    "flags of the prompt alone": (1, dict(flag_keys=15)),
    "three query rows": (2, dict(rows=3)),
    "shorter than a page": (1, dict(lengths=(1, 16, 15))),
    "tiles of 16 keys": (1, dict(size=256, lengths=(40, 17))),
}


@pytest.mark.parametrize("named", list(CASES))
def test_pages_compute_what_one_piece_does(named):
    splits, case = CASES[named]
    check(splits, **case)


def test_more_rows_than_one_launch_takes():
    check(None, rows=MAX_ROWS + 3, lengths=(40,))


def test_splits_are_chosen_by_the_width_of_the_table():
    check(None, lengths=(300, 20), heads=1)


@pytest.mark.parametrize("named", ["dynamic gate", "hard mask", "three query rows"])
def test_the_reference_says_the_same(named):
    (whole, arguments), (paged, plain) = paged_case(**CASES[named][1])
    stats, wanted = (statistics(whole, arguments) for _ in range(2))
    out = paged_decode_attention_reference(*paged, **plain, stats=stats)
    exact = decode_attention(*whole, **arguments, stats=wanted, splits=1)
    torch.testing.assert_close(out, exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stats, wanted, rtol=1e-4, atol=1e-5)


def test_pages_may_lie_in_memory_in_any_order_of_dimensions():
    _, ((q, k, v, *rest), plain) = paged_case()
    wanted = paged_decode_attention(q, k, v, *rest, **plain)
    k = k.contiguous()  # head by head, keys apart from values; values stay token by token
    assert k.stride() != v.stride()
    assert torch.equal(paged_decode_attention(q, k, v, *rest, **plain), wanted)


def test_two_requests_may_share_pages():
    """As those do that begin with the same prompt."""
    _, ((q, k, v, table, lengths, flags, images), plain) = paged_case(lengths=(50, 50))
    table[1, :2] = table[0, :2]
    kept = [gathered(x, table.long()) for x in (k, v)]
    extent = torch.tensor([[0, 50, 50]] * 2, dtype=torch.int32, device=DEVICE)
    out = paged_decode_attention(q, k, v, table, lengths, flags, images, **plain, splits=1)
    wanted = decode_attention(q, *kept, flags, images, **plain, extent=extent, splits=1)
    assert torch.equal(out, wanted)


def test_a_kept_launch_follows_the_contents_of_table_and_lengths():
    workspace, numbers = Workspace(), dict(splits=2)
    for lengths in (LENGTHS, (3, 55)):
        _, (paged, plain) = paged_case(lengths=lengths)
        out = paged_decode_attention(*paged, **plain, **numbers, workspace=workspace)
        assert torch.equal(out, paged_decode_attention(*paged, **plain, **numbers))
    assert len(workspace.plans) == 1


@pytest.mark.parametrize("impl", ["torch", "triton", "auto"])
def test_the_way_is_chosen_where_the_others_are(impl):
    _, (paged, plain) = paged_case(gate=True, opened=BOOST[0])
    out = Kernels(impl).paged_decode_attention(*paged, **plain)
    wanted = paged_decode_attention_reference(*paged, **plain)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-6)
    exact = paged_decode_attention(*paged, **plain)
    assert torch.equal(out, exact if impl == "triton" or DEVICE != "cpu" else wanted)


BAD = {
    "k.shape": dict(k=lambda k: k[:, :, :12], v=lambda v: v[:, :, :12]),
    "v.shape": dict(v=lambda v: v[1:]),
    "table.shape": dict(table=lambda x: x[:1]),
    "pages for 1 keys": dict(table=lambda x: x[:, :0]),
    "table.dtype": dict(table=lambda x: x.long()),
    "table.stride(1)": dict(table=lambda x: x.t().contiguous().t()),
    "lengths.shape": dict(lengths=lambda x: x[:, None]),
    "lengths.dtype": dict(lengths=lambda x: x.long()),
    "lengths.device": dict(lengths=lambda x: x.to("meta")),
    "table.device": dict(table=lambda x: x.to("meta")),
    "flags.shape[1]": dict(flags=lambda x: x.repeat(1, 2)),
    "k.stride(3)": dict(k=lambda k: k.transpose(2, 3).contiguous().transpose(2, 3)),
    "a divisor": dict(k=lambda k: k.repeat(1, 3, 1, 1), v=lambda v: v.repeat(1, 3, 1, 1)),
    "query rows": dict(q=lambda q: q[:, :, :0]),
}


@pytest.mark.parametrize("named", list(BAD))
def test_bad_arguments_are_named(named):
    _, (paged, plain) = paged_case()
    names = ("q", "k", "v", "table", "lengths", "flags", "images")
    given = dict(zip(names, paged, strict=True))
    for name, change in BAD[named].items():
        given[name] = change(given[name])
    with pytest.raises(ValueError, match="paged_decode_attention: ") as error:
        paged_decode_attention(**given, **plain)
    assert named in str(error.value)
