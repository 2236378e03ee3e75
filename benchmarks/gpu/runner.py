"""Measure cases in workers until all are done or the budget is spent."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.gpu.case import ROOT, Case, Stage, check
from benchmarks.gpu.store import OUTPUT, Store, finished, identity, key

LOG = "log.txt"
MARGIN = 5  # seconds of the budget in which workers are ended and nothing is measured


class Gone(Exception):
    """A worker that gave no answer; says why."""


class Worker:
    """A child process that measures one case at a time."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None):
        own = {OUTPUT: str(folder.resolve())}
        with (folder / LOG).open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu.worker", str(os.getpid())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, bufsize=0,
                env=dict(os.environ) | own | dict(environment or {}), start_new_session=True,
            )  # fmt: skip
        self.fresh = True

    def ask(self, case: Case, seconds: float) -> dict:
        """The answer to a case.

        Raises:
            TimeoutError: none came in time.
            Gone: the process ended.
        """
        self.fresh = False
        asked = {"id": case.id, "call": case.call, "arguments": case.arguments}
        try:
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        except BrokenPipeError:
            raise Gone(self._end()) from None
        deadline, pipe, text = time.monotonic() + seconds, self._process.stdout.fileno(), b""
        while not text.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise TimeoutError
            piece = os.read(pipe, 1 << 16)
            if not piece:
                raise Gone(self._end())
            text += piece
        return json.loads(text)

    def _end(self) -> str:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "closed its pipe and did not end"
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    def close(self) -> None:
        """End it, and whatever it started; all that it had to say has been read."""
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


class Run:
    """One call of this program.

    Args:
        store: where results go.
        here: what `benchmarks.gpu.where.here` says.
        budget: seconds from `start` on, a reading of time.monotonic().
        again: whether what failed or hung earlier is tried once more.
        environment: variables that workers get beside those of this process.
        spare: a worker that is ready.
        tell: prints a line.
    """

    def __init__(
        self,
        store: Store,
        here: dict,
        budget: float,
        *,
        start: float,
        again: bool = False,
        environment: Mapping[str, str] | None = None,
        spare: Worker | None = None,
        tell: Callable[[str], None] = print,
    ):
        self.store, self.here, self.tell = store, here, tell
        self._end, self._start = start + budget - MARGIN, start
        self._environment, self._spare = environment, spare
        self._done = finished(store.lines, here, again)
        self._lock = threading.Lock()
        self._left: list[str] = []

    def left(self) -> float:
        """Seconds in which something can still be measured."""
        return self._end - time.monotonic()

    def todo(self, stage: Stage) -> list[Case]:
        """Cases of a stage that no line tells of."""
        return [c for c in stage.cases if key(identity(c, self.here)) not in self._done]

    def measure(self, stages: Sequence[Stage]) -> list[str]:
        """Stage by stage; the ids of what is left for a later call."""
        check(stages)
        try:
            for stage in stages:
                self._measure(stage)
        finally:
            if self._spare is not None:
                self._spare.close()
        return self._left

    def _measure(self, stage: Stage) -> None:
        queue = self.todo(stage)
        count = max(1, min(stage.lanes, len(queue)))
        broken: list[BaseException] = []

        def lane() -> None:
            try:
                self._lane(stage, queue)
            except BaseException as error:
                broken.append(error)

        # A worker dies with the thread that started it: the last lane is this thread.
        others = [threading.Thread(target=lane) for _ in range(count - 1)]
        for thread in others:
            thread.start()
        self._lane(stage, queue)
        for thread in others:
            thread.join()
        if broken:
            raise broken[0]

    def _next(self, stage: Stage, queue: list[Case], ready: str | None) -> Case | None:
        """The first case that should end in time; those before it wait for a later call."""
        with self._lock:
            while queue:
                case = queue.pop(0)
                if case.estimate + (stage.setup if case.worker != ready else 0) <= self.left():
                    return case
                self._left.append(case.id)
        return None

    def _lane(self, stage: Stage, queue: list[Case]) -> None:
        worker, ready = None, None
        try:
            while (case := self._next(stage, queue, ready)) is not None:
                if worker is not None and ready != case.worker:
                    worker.close()
                    worker = None
                if worker is None:
                    worker, ready = self._worker(), case.worker
                if not self._one(stage, case, worker):
                    # A failure may have broken the CUDA context: the next case gets a new one.
                    worker.close()
                    worker = ready = None
        finally:
            if worker is not None:
                worker.close()

    def _worker(self) -> Worker:
        with self._lock:
            spare, self._spare = self._spare, None
        return spare or Worker(self.store.path.parent, self._environment)

    def _one(self, stage: Stage, case: Case, worker: Worker) -> bool:
        """Measure a case and write it down; whether its worker is still good."""
        own = case.limit + (3 * stage.setup if worker.fresh else 0)
        allowed, began = min(own, self.left()), time.monotonic()
        try:
            found = worker.ask(case, allowed)
        except TimeoutError:
            if allowed < own:
                with self._lock:
                    self._left.append(case.id)
                self.tell(f"{case.id}: cut off by the budget, not by its own limit; left for later")
                return False
            found = {"status": "timeout", "error": f"no result in {own:g} s"}
        except Gone as error:
            found = {"status": "failed", "error": f"the process {error}"}
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        found = {"at": at, "seconds": round(time.monotonic() - began, 3)} | found
        with self._lock:
            self.store.append(identity(case, self.here) | found)
        spent = time.monotonic() - self._start
        told = f"[{spent:5.0f} s] {case.id}: {found['status']} in {found['seconds']:.1f} s"
        self.tell(told if found["status"] == "done" else f"{told}: {found['error']}")
        return found["status"] == "done"
