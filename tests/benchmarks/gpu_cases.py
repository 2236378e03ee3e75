"""Cases that finish, fail, die and hang, to run in workers; and a run of them that can be killed.

python gpu_cases.py FOLDER BUDGET [again]
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from benchmarks.gpu.case import Case, Stage
from benchmarks.gpu.plan import told
from benchmarks.gpu.runner import Run
from benchmarks.gpu.store import OUTPUT, Store

HERE = {"kind": "cpu", "device": "cpu: none", "versions": {"torch": "0"}, "commit": "abc"}
PATH = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])


def counted(number):
    """A result; printing must not disturb it."""
    print("some output")
    return {"number": number}


def failing():
    raise ValueError("it cannot\nbe done")


def dying():
    os.kill(os.getpid(), signal.SIGSEGV)


def leaving():
    os._exit(3)


def not_json():
    return {"figure": float("nan")}


def hanging():
    (Path(os.environ[OUTPUT]) / "pid").write_text(str(os.getpid()))
    threading.Event().wait()


def case(name, call=None, **more):
    """A case of this module; the same one in all its calls."""
    arguments = {"number": int(name)} if call is None else {}
    more = {"estimate": 0.0, "limit": 20, "worker": "any", "sources": ("kernels",)} | more
    return Case(name, "group", f"gpu_cases:{call or 'counted'}", arguments, **more)


BAD = tuple(case(name, name) for name in ("failing", "dying", "leaving", "not_json"))
HANGS = case("hanging", "hanging", limit=0.3)


def stages():
    """Twelve good cases around the bad ones, some of them side by side."""
    good = [case(str(number)) for number in range(12)]
    return [
        Stage("side by side", (*good[:3], BAD[0], *good[3:5], BAD[1]), lanes=3, setup=0),
        Stage("alone", (*good[5:8], *BAD[2:], HANGS, *good[8:]), setup=0),
    ]


def run_of(store, budget, **options):
    """A run in workers that find this module."""
    return Run(store, HERE, budget, start=time.monotonic(), environment={"PYTHONPATH": PATH},
               **options)  # fmt: skip


if __name__ == "__main__":
    folder, budget, *again = sys.argv[1:]
    with Store(Path(folder)) as store:
        run = run_of(store, float(budget), again=bool(again), tell=lambda x: print(x, flush=True))
        print(told(stages(), run, float(budget), 0.0), flush=True)
        run.measure(stages())
