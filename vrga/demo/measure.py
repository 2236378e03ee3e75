"""What steering does on the embedded model: accuracy, RRAR, and where the region falls."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vrga.config import VRGAConfig
from vrga.demo.data import Sample, parse_answer
from vrga.demo.evaluate import prepare
from vrga.patching import Patch, patch
from vrga.trace import Trace


@dataclass(frozen=True)
class Arm:
    """Results of one prompt with one configuration, one entry per question.

    Args:
        texts: the generated answers.
        right: the colour is right, bool [N].
        rrar: attention on the true cell / on the image, mean over the visual heads and the
            answer's tokens, float [N]; NaN where the answer has a single token.
        hit: the true cell is in T, bool [N].
        peak: the relevance map is highest on the true cell, bool [N].
        coverage: share of the image's tokens that are in T, float [N].
    """

    texts: list[str]
    right: np.ndarray
    rrar: np.ndarray
    hit: np.ndarray
    peak: np.ndarray
    coverage: np.ndarray


@torch.inference_mode()
def run_arm(
    model: nn.Module,
    processor,
    samples: list[Sample],
    prompt: str,
    config: VRGAConfig,
    *,
    batch: int = 100,
    max_new_tokens: int = 96,
) -> Arm:
    """Answer every question with the model patched; `VRGAConfig(gain=1)` is the unsteered arm."""
    parts = []
    with patch(model, config, tokenizer=processor.tokenizer) as steered:
        for start in range(0, len(samples), batch):
            chunk = samples[start : start + batch]
            inputs = prepare(processor, chunk, prompt).to(model.device)
            # The question's end, not that of the instruction after it.
            steered.query = [s.question for s in chunk]
            watch = [[torch.from_numpy(s.region)] for s in chunk]
            with steered.record(watch=watch) as trace:
                output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
            answer = output[:, inputs["input_ids"].shape[1] :]
            texts = processor.batch_decode(answer, skip_special_tokens=True)
            parts.append((texts, *_measure(model, chunk, answer, steered, trace)))
    columns = list(zip(*parts, strict=True))
    texts = sum(columns[0], [])
    right = [parse_answer(t) == s.color for t, s in zip(texts, samples, strict=True)]
    return Arm(texts, np.array(right), *(np.concatenate(column) for column in columns[1:]))


def _measure(
    model: nn.Module, samples: list[Sample], answer: Tensor, steered: Patch, trace: Trace
) -> tuple[np.ndarray, ...]:
    """RRAR, hit, peak and coverage of a batch, [B] each."""
    ends = model.generation_config.eos_token_id
    ended = torch.isin(answer, torch.tensor(ends if isinstance(ends, list) else [ends]))
    spoken = (ended.cumsum(1) == 0).cpu()  # [B, T], the answer's tokens before its end
    rrar, hit, peak, coverage = [], [], [], []
    for row, sample in enumerate(samples):
        region = steered.region[row]
        truth = torch.from_numpy(sample.region)
        mask = region.mask[region.grids[0].index].view(truth.shape)
        hit.append(bool(mask[sample.cell]))
        peak.append(bool(truth.flatten()[region.map[0].argmax()]))
        coverage.append(float(mask.float().mean()))
        # Step t of the trace has the answer's token t as its query.
        steps = spoken[row, : len(trace.image)].nonzero().flatten()
        share = trace.watched[steps, :, row] / trace.image[steps, :, row].clamp_min(1e-12)
        rrar.append(float(share[:, region.visual].mean()) if len(steps) else math.nan)
    return np.array(rrar), np.array(hit), np.array(peak), np.array(coverage)
