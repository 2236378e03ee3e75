"""doctor: examine this installation."""

from __future__ import annotations

import platform
import time

import torch

import vrga
from vrga.checkup import kernels
from vrga.checkup.checks import STATIC, Examination
from vrga.checkup.models import TINY, checkpoint, tiny
from vrga.checkup.result import Checkup
from vrga.checkup.trial import Trial, run
from vrga.recording.package_versions import versions as installed

FAMILY = "qwen2_5_vl"
SECOND = "llava"  # of which the two first things are checked as well


def doctor(
    model: str | None = None, *, family: str | None = None, device: str | None = None
) -> Checkup:
    """Check that vrga does on this installation what it says; some 10 seconds on a CPU.

    A tiny random model is patched, and what it does is compared with the method in plain loops in
    float64, which share no code with the patch: the region, the logits of every steered step, in
    batches with left padding, with a static cache, compiled, with every attention backend that is
    installed. Where nothing is to be steered, and after unpatching, logits must be equal bit for
    bit. On CUDA, the Triton kernels are compared with their reference.

    Args:
        model: a checkpoint to examine instead, as in `vrga.load`, on a drawn image. Models of up
            to 100 million parameters are compared with a copy in float64; larger ones with
            themselves, unpatched, with the attention in float64.
        family: of the tiny model, "qwen2_5_vl" if absent.
        device: "cpu", "cuda", "cuda:1", ...; a GPU, if there is one.

    Returns:
        What holds and what does not; nothing is printed.

    Raises:
        ValueError: a device that is not there, or a family of which no tiny model can be made; a
            model and a family; and as of `vrga.load`.
    """
    start = time.perf_counter()
    if model is not None and family is not None:
        raise ValueError(
            f"model={str(model)!r} is of a family of its own: leave out family={family!r}"
        )
    if family is not None and family not in TINY:
        raise ValueError(f"family={family!r}: tiny models can be made of {', '.join(TINY)}")
    where = usable_device(device)
    threads = torch.get_num_threads()
    if model is None:
        torch.set_num_threads(1)  # tiny matrices gain nothing from threads that wait for others
    try:
        subject = tiny(family or FAMILY, where) if model is None else checkpoint(model, where)
        told = f"{subject.name} in {subject.dtype}, against {subject.loops.precision}"
        trials = Examination(subject).trials()
        if model is None and family is None:
            trials.append(Trial(
                f"{SECOND}: region and steps",
                lambda: (Examination(tiny(SECOND, where)).follows(STATIC), "region and steps"),
                "Do not use models of that family here",
            ))  # fmt: skip
        checks = run([*trials, *kernels.trials(where)])
    finally:
        torch.set_num_threads(threads)
    seconds = time.perf_counter() - start
    return Checkup(tuple(checks), versions(where), told, seconds)


def usable_device(name: str | None) -> torch.device:
    """The device of this name; the best one there is for None.

    Raises:
        ValueError: no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    refused = (
        f"device={name!r} is not there: torch {torch.__version__} sees {', '.join(there)}; give "
        "one of these, or leave it out"
    )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(refused) from error
    if str(device) not in (*there, "cuda" if len(there) > 1 else "cpu"):
        raise ValueError(refused)
    return device


def versions(device: torch.device) -> dict[str, str]:
    """Of what vrga runs on, by name."""
    cuda = device.type == "cuda"
    return installed("triton") | {
        "vrga": vrga.__version__,
        "torch": torch.__version__,
        "on": platform.platform(terse=True),
        "device": torch.cuda.get_device_name(device) if cuda else str(device),
    }
