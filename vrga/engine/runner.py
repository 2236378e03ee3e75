"""Between a worker's model runner and steering: what is in a pass, and what is reported of it.

Nothing here raises into the engine: a request that cannot be steered gets a fault, is left alone,
and ends with an error of its own (see vrga/engine/scheduler.py).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vrga.engine.answer_rows import Piece
from vrga.engine.compiled_rows import Kept
from vrga.engine.passing import Passing
from vrga.engine.plan import Plan
from vrga.engine.steady import Steady
from vrga.engine.steered import Steered
from vrga.engine.summary import told_region
from vrga.hf.families import FAMILIES
from vrga.hf.layouts import IMAGES, Cells
from vrga.method.tag_table import TagTable

logger = logging.getLogger(__name__)
# Attribute of the runner's own record of a request, which it drops when done.
_KEPT = "vrga_steered"
_UNSEEN = object()  # of a record that comes for the first time
_NOW: ContextVar[Passing | None] = ContextVar("vrga_passing", default=None)


@dataclass(frozen=True)
class Worker:
    """One worker's part of the model.

    Args:
        config: the model's, as transformers has it.
        layers: of the model; heads: of this worker, among all.
        spans: gives the table of <back> spans of the vocabulary, for the word in its tags.
        gather: attention of this worker's heads, [L, h, S] -> of all heads.
        total: a sum over the workers.
        kept: from pass to pass.
    """

    config: Any
    layers: int
    heads: slice
    spans: Callable[[str], TagTable]
    gather: Callable[[Tensor], Tensor] = lambda rows: rows
    total: Callable[[Tensor], Tensor] = lambda sums: sums
    kept: Kept = field(default_factory=Kept)


def passing() -> Passing | None:
    """The pass that attention layers are in; None where no steered request is in it."""
    return _NOW.get()


def run(
    worker: Worker,
    records: Sequence[Any],
    starts: list[int],
    lengths: list[int],
    ids: Tensor,
    forward: Callable[[], Any],
) -> tuple[Any, dict[str, dict]]:
    """Run a forward pass.

    Args:
        records: the runner's records of the requests in it, in their order.
        starts: the first row of each, and the end of the last; lengths: keys of each after it.
        ids: tokens of all rows, int [T].
        forward: the pass.

    Returns:
        What it returned, and a report of each steered request in it.
    """
    states = [getattr(record, _KEPT, _UNSEEN) for record in records]
    steady = worker.kept.steady
    again = None if steady is None else steady.goes_on(states, starts, lengths)
    if again is not None:
        now: Passing | None = Passing((), worker.heads, worker.kept, again)
    else:
        worker.kept.steady = None
        now = _begin(worker, records, starts, lengths, ids)
    if now is None:
        return forward(), {}
    before = _NOW.set(now)
    try:
        output = forward()
    finally:
        _NOW.reset(before)
    reports = _end(worker, now)
    faulty = any(state.fault is not None for _, state in now.members)
    if faulty:
        worker.kept.steady = None
    elif again is None and now.compiled is not None and not now.rows and Steady.may_be(now.pieces):
        known = [getattr(record, _KEPT) for record in records]
        worker.kept.steady = Steady(known, starts, now.pieces, now.compiled)
    return output, reports


def attend(*args: Any, by: Callable[..., None] = Passing.attend) -> None:
    """What a layer's attention does behind the engine's own.

    Args:
        args: of `Passing.attend`, or of what does it in its place, `by`.
    """
    now = _NOW.get()
    if now is not None:
        try:
            by(now, *args)
        except Exception as error:
            _give_up(now, error)


# As `attend`, with the arguments of `Passing.attend_compiled`.
attend_compiled = functools.partial(attend, by=Passing.attend_compiled)


def give_up(reason: str) -> None:
    """Steering cannot go on in this pass."""
    now = _NOW.get()
    if now is not None:
        _give_up(now, RuntimeError(reason))


def _give_up(now: Passing, error: Exception) -> None:
    for name, state in now.members:
        if state.fault is None:
            state.fault = f"{type(error).__name__}: {error}"
            logger.error("request %s cannot be steered", name, exc_info=error)


def _begin(
    worker: Worker,
    records: Sequence[Any],
    starts: Sequence[int],
    lengths: Sequence[int],
    ids: Tensor,
) -> Passing | None:
    pieces = []
    for place, record in enumerate(records):
        state = _state(worker, record)
        if state is None:
            continue
        first, rows = starts[place], starts[place + 1] - starts[place]
        past = lengths[place] - rows
        own = ids[first : first + rows].tolist() if state.follows else ()
        piece = Piece(record.req_id, state, first, rows, past, place, own)
        if piece.answer < rows and state.region is None and state.fault is None:
            state.fault = (
                f"its answer comes, and the row of its question, at {state.plan.probed}, was never "
                "seen: a cached beginning of the prompt was taken that holds it"
            )
        pieces.append(piece)
    return Passing(pieces, worker.heads, worker.kept) if pieces else None


def _state(worker: Worker, record: Any) -> Steered | None:
    """What is known of a request; made when its first pass comes."""
    if hasattr(record, _KEPT):
        return getattr(record, _KEPT)
    params, state = record.sampling_params, None
    plan = None if params is None else Plan.within(params.extra_args)
    if plan is not None:
        spans = worker.spans(plan.config.tag) if plan.config.when == "back" else None
        try:
            state = Steered(plan, grids_of(worker.config, record.mm_features), spans)
        except Exception as error:
            logger.error("request %s cannot be steered", record.req_id, exc_info=error)
            whole = [Cells(1, count) for _, count in plan.images]
            state = Steered(plan, whole, spans)
            state.fault = f"{type(error).__name__}: {error}"
    setattr(record, _KEPT, state)
    return state


def grids_of(config: Any, features: Sequence[Any]) -> list[Cells]:
    """The token grids of a request's images, in the order of their places.

    Raises:
        ValueError: sizes that are not there.
    """
    family, found = FAMILIES[config.model_type], list[Cells]()
    for feature in sorted(features, key=lambda one: one.mm_position.offset):
        if feature.data is None:
            raise ValueError("the sizes of the images are not in what the worker was given")
        sizes = {name: feature.data[name].data for name in family.inputs if name in feature.data}
        sizes = {name: torch.atleast_2d(size) for name, size in sizes.items()}
        cells = family.layout(config, sizes)
        if cells is None:
            raise ValueError(f"the image has none of {', '.join(family.inputs)}")
        found += list(cells[IMAGES])
    return found


def _end(worker: Worker, now: Passing) -> dict[str, dict]:
    """Find regions, and say what became of each request."""
    if len(now.done) != worker.layers:
        _give_up(
            now,
            RuntimeError(
                f"only {len(now.done)} of {worker.layers} layers attended through vrga: another "
                "attention backend was chosen, or the model's layers run past it"
            ),
        )
    else:
        try:
            now.close(worker.gather, worker.total)
        except Exception as error:
            _give_up(now, error)
    reports = {}
    for name, state in now.members:
        report = dict[str, Any]()
        if state.fault is not None:
            report["fault"] = state.fault
        elif state.region is not None and not state.told:
            report["region"], state.told = told_region(state.region), True
        if name in now.shares:
            report["share"] = now.shares[name]
        reports[name] = report
    return reports
