"""Filling a trace with what a recorder took."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch

from vrga.annotations import Model, Tokenizer
from vrga.config import VRGAConfig
from vrga.kernels.columns import ENTROPY, GATE, MASS
from vrga.recording.package_versions import versions
from vrga.recording.recorder import Recorder
from vrga.recording.trace import Trace


def fill(
    trace: Trace, recorder: Recorder, config: VRGAConfig, model: Model, tokenizer: Tokenizer | None
) -> None:
    """Read what a recorder took, and note what was asked, answered and set; of the model and the
    recorder nothing is kept."""
    trace.regions, trace.relocated = list(recorder.regions), recorder.relocated
    trace.missing = recorder.missing
    if recorder.steps:
        _measures(trace, recorder)
    trace.config = asdict(config)
    if callable(trace.config["when"]):
        trace.config["when"] = getattr(config.when, "__name__", "callable")
    name = str(getattr(model, "name_or_path", "")) or type(model).__name__
    trace.versions = {"model": name} | versions()
    heard = recorder.heard
    if heard is not None and (trace.image is None or len(heard.said) == trace.image.shape[2]):
        trace.ids = heard.said
        trace.transcript = replace(heard, tokenizer=tokenizer)
        trace.ends = torch.tensor([len(answer) - 1 for answer in trace.transcript.answers])


def _measures(trace: Trace, recorder: Recorder) -> None:
    """Every part of the trace that comes from a step."""
    stats = recorder.stacked()
    trace.steps, trace.layers = torch.tensor(recorder.steps), torch.tensor(recorder.layers)
    trace.maps, trace.layer_maps = recorder.stacked_maps()
    if trace.maps is not None:
        trace.heads = recorder.mapped.nonzero()
    trace.entropy, trace.gate = stats[..., ENTROPY], stats[..., GATE]
    # a = mass * share, so H_mass = mass (H_img - log mass).
    mass = stats[..., MASS]
    seen = mass > torch.finfo(mass.dtype).tiny
    trace.spread = torch.where(seen, trace.entropy / mass + mass.log(), torch.nan)
    trace.inside = recorder.stacked_notes(recorder.inside)
    trace.uncertainty = recorder.stacked_notes(recorder.uncertainty)
    for name, share in recorder.groups.shares(stats).items():
        setattr(trace, name, share)
