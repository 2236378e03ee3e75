"""Steered requests in the scheduler: the prefix cache, reports, and requests that must end."""

from __future__ import annotations

import functools
from typing import Any

from vrga.config import VRGAConfig
from vrga.engine.plan import Plan
from vrga.engine.summary import Summary

FIELD = "vrga"  # of the answer's transfer parameters, which vLLM hands through to the client
_UNREAD: Any = object()
_PLAN, _SUMMARY = "vrga_plan", "vrga_summary"  # attributes of the scheduler's requests


@functools.lru_cache(maxsize=256)
def _name(config: VRGAConfig) -> str:
    return config.name


def plan_of(request: Any) -> Plan | None:
    """The plan of a request in the scheduler, read once."""
    if not hasattr(request, _PLAN):
        params = request.sampling_params
        setattr(request, _PLAN, None if params is None else Plan.within(params.extra_args))
    return getattr(request, _PLAN)


class UpToQuestion:
    """A request as the prefix cache may look it up: up to the row whose attention is looked at.

    Args:
        request: the scheduler's; end: its length, as far as the look-up goes.
    """

    def __init__(self, request: Any, end: int):
        self._request, self.num_tokens = request, end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


def looked_up(request: Any) -> Any:
    """What the prefix cache is asked for, in the place of a request.

    The cache leaves the last token out, for it needs its logits; here the last one is the probed.
    """
    plan = plan_of(request)
    return request if plan is None else UpToQuestion(request, plan.probed + 1)


def cacheable(request: Any, tokens: int) -> int:
    """How many of a request's tokens others may reuse: of a steered one, the prompt's alone.

    Keys of a steered answer are other than those of the same words unsteered.
    """
    plan = plan_of(request)
    return tokens if plan is None else min(tokens, plan.prompt)


def take_reports(scheduler: Any, names: Any, reports: dict[str, dict]) -> list[str]:
    """Take the workers' reports of a pass.

    Args:
        names: of the requests in it.

    Returns:
        The requests that cannot go on.
    """
    ends = []
    for name in names:
        request = scheduler.requests.get(name)
        summary = None if request is None else summary_of(request)
        if summary is not None:
            summary.take(reports.get(name))
            if summary.fault is not None:
                ends.append(name)
    return ends


def add_summary(output: Any, summary: Summary) -> None:
    """Put a request's summary into its last output."""
    output.kv_transfer_params = {**(output.kv_transfer_params or {}), FIELD: summary.to_dict()}


def summary_of(request: Any) -> Summary | None:
    """What is known of a steered request; None of one that is not steered."""
    found = getattr(request, _SUMMARY, _UNREAD)
    if found is _UNREAD:
        plan = plan_of(request)
        found = None if plan is None else Summary(_name(plan.config))
        setattr(request, _SUMMARY, found)
    return found
