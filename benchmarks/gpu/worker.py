"""A process that measures: python -m benchmarks.gpu.worker, a case a line in, an answer a line out.

It can be killed at any time: a case that hangs or breaks the CUDA context takes nothing with it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
import traceback

PR_SET_PDEATHSIG = 1


def answer(call: str, arguments: dict) -> dict:
    """Call "module:function"; its result, or what went wrong."""
    start = time.monotonic()
    try:
        module, _, function = call.partition(":")
        result = getattr(importlib.import_module(module), function)(**arguments)
        json.dumps(result, allow_nan=False)
        found = {"status": "done", "result": result}
    except Exception as error:
        traceback.print_exc()
        first = str(error).strip().splitlines()[:1] or [""]
        found = {"status": "failed", "error": f"{type(error).__name__}: {first[0][:300]}"}
    return found | {"seconds": round(time.monotonic() - start, 3)}


def main() -> None:
    """Answer until the parent closes the pipe; die with it however it dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):  # it died before that
        return
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what cases print goes to the log
    for line in sys.stdin:
        case = json.loads(line)
        print(f"--- {case['id']}", file=sys.stderr, flush=True)
        replies.write(json.dumps(answer(case["call"], case["arguments"])) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
