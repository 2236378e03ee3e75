"""The golden cases: what the released implementation computed, reproduced."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import token_types
from transformers import Qwen2_5_VLForConditionalGeneration

from vrga import VRGAConfig, patch

KEPT = Path(__file__).parents[1] / "golden"
FULL = Path(__file__).parents[3] / "shared" / "oracle"
CASES = {path.name: path for root in (KEPT, FULL) if root.is_dir() for path in root.iterdir()}
IMAGE = 390


def preset(name):
    kind, detail = name.split("-")[:2]
    if kind == "ablate":
        return VRGAConfig.ablation(detail)
    return {"boost": VRGAConfig.released, "mask": VRGAConfig.released_mask}[kind]()


def run(model, golden):
    ids = golden["input_ids"]
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **token_types(ids, IMAGE),
        pixel_values=golden["pixel_values"],
        image_grid_thw=golden["image_grid_thw"],
        max_new_tokens=len(golden["vrga_logits"]),
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.sequences, torch.cat(out.logits)


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_golden_case(name, impl):
    golden = load_file(CASES[name] / "golden.safetensors")
    tolerance = 2e-3 if "background" in name else 1e-4
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(CASES[name], dtype=torch.float32)
    model.eval()
    sequences, base_logits = run(model, golden)
    assert torch.equal(sequences, golden["base_sequences"])
    torch.testing.assert_close(base_logits, golden["base_logits"], rtol=0, atol=tolerance)

    query = golden["spans"][2:3]
    with patch(model, preset(name), query=query, impl=impl) as steered:
        sequences, logits = run(model, golden)
        region = steered.region[0]
    assert torch.equal(sequences, golden["vrga_sequences"])
    torch.testing.assert_close(logits, golden["vrga_logits"], rtol=0, atol=tolerance)
    assert (golden["vrga_logits"] - golden["base_logits"]).abs().max() > 100 * tolerance
    if "focus" in golden:
        assert torch.equal(region.focus, golden["focus"])
    unsteered = run(model, golden)[1]
    assert torch.equal(unsteered, base_logits)


@pytest.mark.parametrize("name", [n for n in sorted(CASES) if n.startswith("boost")])
def test_golden_head_thresholds(name):
    golden = load_file(CASES[name] / "golden.safetensors")
    from vrga.method.heads import head_statistics, percentiles

    start, end, _, _ = golden["spans"].tolist()
    rows = golden["prefill_rows"]
    stats = head_statistics(rows, torch.arange(start, end), rows.shape[-1])
    found = torch.stack(percentiles(stats, VRGAConfig.released()))
    torch.testing.assert_close(found, golden["t"], rtol=1e-4, atol=1e-9)


def test_at_most_8_mb_of_golden_data_is_kept():
    assert sum(f.stat().st_size for f in KEPT.rglob("*") if f.is_file()) <= 8e6
