"""Groups of keys: what is read from their sums is what they were told apart for."""

from dataclasses import replace

import pytest
import torch

from vrga import VRGAConfig
from vrga.kernels.columns import ENTROPY, GATE, GROUP, MASS
from vrga.method.key_groups import KeyGroups
from vrga.method.region import empty_region

KEYS, PROMPT = 40, 32  # 8 were generated

CONFIGS = {
    "boost": VRGAConfig.published(gain=3.0),
    "gain below 1": VRGAConfig.published(gain=0.2),
    "gain 0": VRGAConfig.published(gain=0.0),
    "released": VRGAConfig.released(gain=2.0),
    "hard mask": VRGAConfig.released_mask(),
    "ablation": VRGAConfig.ablation("visual"),
}
CASES = [(name, extra) for name in CONFIGS for extra in ("", "watch", "question")]
CASES = [(n, e) for n, e in CASES if not (e and n in ("hard mask", "ablation"))]


@pytest.mark.parametrize(("name", "extra"), CASES)
def test_shares_are_those_of_the_keys(name, extra):
    g = torch.Generator().manual_seed(1)
    image, region, watched, question = torch.rand(4, 2, PROMPT, generator=g) < 0.5
    region, watched, question = region & image, watched & image, question & ~image
    regions = [
        replace(empty_region(5, PROMPT, (1, 3)), image=image[row], mask=region[row])
        for row in range(2)
    ]
    config = CONFIGS[name]
    groups = KeyGroups.of(config, watch=watched if extra == "watch" else None,
                          question=question if extra == "question" else None)  # fmt: skip
    flags = groups.flags(regions, KEYS)
    attention = torch.rand(2, 3, KEYS, generator=g, dtype=torch.float64)
    attention /= attention.sum(-1, keepdim=True)
    gate = torch.tensor([[0, 1, 1], [1, 0, 1]])

    stats = torch.zeros(2, 3, GROUP + groups.count, dtype=torch.float64)
    stats[..., MASS] = (attention * (flags & 1)[:, None]).sum(-1)
    stats[..., GATE], stats[..., ENTROPY] = gate, torch.nan  # no share is made of it
    for group in range(groups.count):
        stats[..., GROUP + group] = (attention * (flags >> 1 == group)[:, None]).sum(-1)
    found = groups.shares(stats)

    image, region, watched, question = (
        torch.nn.functional.pad(x, (0, KEYS - PROMPT)) for x in (image, region, watched, question)
    )
    prompt = torch.arange(KEYS) < PROMPT
    opened, closed = torch.ones(2, 2, KEYS, dtype=torch.float64)
    if config.method == "ablation":
        opened[image] = 0
    elif config.method == "released_mask":
        opened[image & ~region] = closed[image] = 0
    else:
        opened[region] = config.gain
    after = attention * torch.where(gate[..., None] > 0, opened[:, None], closed[:, None])
    after /= after.sum(-1, keepdim=True)
    sets = {"image": image, "region": image if config.method == "ablation" else region}
    if extra == "watch":
        sets["watched"] = watched
    if extra == "question":
        sets |= {"question": question, "prompt": prompt & ~image & ~question,
                 "generated": ~prompt.expand(2, -1)}  # fmt: skip
    assert found.keys() == sets.keys()
    for part, keys in sets.items():
        torch.testing.assert_close(found[part], (after * keys[:, None]).sum(-1), msg=part)
    unsteered = groups.unweighted().shares(stats)
    torch.testing.assert_close(unsteered["image"], stats[..., MASS])


def test_log_weights_are_those_of_the_groups():
    groups = KeyGroups.of(VRGAConfig.ablation("given"))
    opened, closed = groups.log_weights(torch.tensor([[0, 3, 0]]), torch.float64)
    assert opened.tolist() == [[0, torch.finfo(torch.float64).min, 0]]
    assert closed.tolist() == [[0, 0, 0]]
