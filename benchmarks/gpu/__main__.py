"""Measure on a GPU what the docs cannot say without one: python -m benchmarks.gpu

    python3 -m benchmarks.gpu --budget 540 --output DIR    # measure; again to go on
    python -m benchmarks.gpu --plan --output DIR           # what a GPU would be asked, no more
    python -m benchmarks.gpu --merge DIR [DIR ...]         # into benchmarks/results/gpu and docs

Needs torch, triton, transformers and numpy, and neither network nor installation. Every result is
one line in DIR/lines.jsonl, written and flushed before the next case begins; a later call with the
same DIR goes on where this one ended or was killed. What fails or hangs is written down and passed
over (--again tries it once more). What has changed since its line was written, in kernels/ or
vrga/, in a version or in the device, is measured anew. Without a GPU the same is done at tiny
shapes to prove the program; --merge refuses such lines.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path

from benchmarks.gpu.case import PLUGIN, Case, Stage, digest
from benchmarks.gpu.plan import told
from benchmarks.gpu.runner import LOG, Gone, Run, Worker
from benchmarks.gpu.stages import gpu_stages, proof_stages
from benchmarks.gpu.store import Store, newest, where
from benchmarks.gpu.targets import copy_of, table

HERE = Case("where", "where", "benchmarks.gpu.where:here")
NOBODY = {"kind": "cuda", "device": "a GPU", "versions": {}}


def chosen(stages: list[Stage], only: list[str]) -> list[Stage]:
    """Stages with those cases alone whose id begins with one of `only`.

    Raises:
        ValueError: a beginning that no case has.
    """
    ids = [case.id for stage in stages for case in stage.cases]
    for start in only:
        if not any(name.startswith(start) for name in ids):
            known = ", ".join(dict.fromkeys(name.split("/")[0] for name in ids))
            raise ValueError(f"--only {start}: no case begins so; they begin with {known}")
    kept = []
    for stage in stages:
        cases = tuple(c for c in stage.cases if not only or c.id.startswith(tuple(only)))
        if cases:
            kept.append(Stage(stage.name, cases, stage.lanes, stage.setup))
    return kept


def say(line: str) -> None:
    """Print; a run goes on when nobody listens any more."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def measure(options: argparse.Namespace, start: float) -> int:
    """Plan, measure, say what is left; 0, or 1 if nothing at all could be measured."""
    with Store(options.output) as store:
        worker = Worker(options.output)
        try:
            found = worker.ask(HERE, 120)
        except (TimeoutError, Gone) as error:
            found = {"status": "failed", "error": f"a worker gave no answer {error}"}
        if found["status"] != "done":
            worker.close()
            say(f"nothing can be measured: {found['error']}; see {options.output / LOG}")
            return 1
        here = found["result"]
        if options.commit:
            here["commit"] = options.commit
        gpu = here["kind"] == "cuda"
        stages = chosen(gpu_stages() if gpu else proof_stages(), options.only)
        environment = {} if gpu else {"TRITON_INTERPRET": "1"}
        run = Run(store, here, options.budget, start=start, again=options.again, spare=worker,
                  environment=environment, tell=say)  # fmt: skip
        if not gpu:
            say("torch sees no GPU: tiny shapes prove the program, and say nothing of speed")
        say(told(stages, run, options.budget, time.monotonic() - start))
        left = run.measure(stages)
        own = [line for line in newest(store.lines) if where(line) == where(here)]
    failed = [line["id"] for line in own if line["status"] != "done"]
    if gpu:
        done: dict[str, list[dict]] = {}
        for line in own:
            if line["status"] == "done":
                done.setdefault(line["group"], []).append(line)
        say(table(done, copy_of(own)))
    say(f"{len(store.lines)} lines in {store.path}; left for a later call: {len(left)} cases")
    if failed:
        say(f"failed or hung: {', '.join(failed)}")
    return 0


def plan(options: argparse.Namespace) -> int:
    """Print what a GPU would be asked in this budget, case by case; measures nothing."""
    with Store(options.output) as store:
        seen = [line for line in store.lines if line["kind"] == "cuda"]
        here = (seen or [NOBODY])[-1] | {"commit": options.commit or f"sources {digest(PLUGIN)}"}
        run = Run(store, here, options.budget, start=0.0)
        stages = chosen(gpu_stages(), options.only)
        print(told(stages, run, options.budget, 12.0))
        for stage in stages:
            print(
                f"\n{stage.name}: {stage.setup:g} s until a worker is ready, {stage.lanes} beside"
            )
            for case in run.todo(stage):
                print(f"{case.estimate:5g} s, at most {case.limit:g}: {case.id}")
    return 0


def main() -> int:
    """Exit status."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--budget", type=float, default=540, help="seconds (%(default)s)")
    parser.add_argument("--output", type=Path, help="folder of the lines")
    parser.add_argument("--only", nargs="+", default=[], metavar="START", help="of a case's id")
    parser.add_argument("--again", action="store_true", help="also what failed or hung before")
    parser.add_argument("--commit", help="what is measured, where there is no git")
    parser.add_argument("--plan", action="store_true", help="say what would be done, and end")
    parser.add_argument("--merge", nargs="+", type=Path, metavar="DIR", help="lines to tables")
    options = parser.parse_args()
    if options.merge:
        from benchmarks.gpu.merge import merge

        try:
            for line in merge(options.merge):
                print(line)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        return 0
    if options.output is None:
        parser.error("--output DIR is missing: the folder that results are written to")
    if not options.budget > 0:
        parser.error(f"--budget {options.budget:g} is no time; give seconds, 540 for ten minutes")
    try:
        return plan(options) if options.plan else measure(options, start)
    except (BlockingIOError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    raise SystemExit(main())
