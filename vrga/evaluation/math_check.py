"""Are two mathematical expressions equal? Asked of math-verify in a process of its own.

lmms-eval scores in worker threads, where math-verify's timeout, a signal, does not work; and no
signal interrupts the integer arithmetic of an answer such as 9^{9^9}. A process can be ended.

This file is also what that process runs, so it imports nothing of vrga.
"""

from __future__ import annotations

import atexit
import json
import select
import subprocess
import sys
import threading

START = 120.0  # seconds for the process to import sympy, on a busy machine


class Checker:
    """One process that compares, started when first needed and again after a timeout."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def equal(self, answer: str, target: str, timeout: float = 5.0) -> bool:
        """Whether two LaTeX or plain expressions are equal; False where this takes too long.

        Args:
            answer: the expression to check.
            target: the expected one.
            timeout: seconds for one comparison.

        Raises:
            ImportError: math-verify is not installed.
        """
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                process = self._start()
            assert process.stdin is not None  # a pipe
            try:
                process.stdin.write(json.dumps([answer, target]) + "\n")
                process.stdin.flush()
                reply = self._read(process, timeout)
            except OSError:
                reply = ""
            if not reply:  # it takes too long, or the process died of it
                self.close()
            return reply == "true"

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        process = self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if self._read(process, START) != "ready":
            process.kill()
            lines = process.communicate()[1].split("\n")
            self._process = None
            raise ImportError(f"math-verify does not start: {' '.join(lines[-2:]).strip()}")
        return process

    @staticmethod
    def _read(process: subprocess.Popen[str], timeout: float) -> str:
        """The next line of the process; empty if there is none in time, or no process."""
        assert process.stdout is not None  # a pipe
        ready = select.select([process.stdout], [], [], timeout)[0]
        return process.stdout.readline().strip() if ready else ""


CHECKER = Checker()
atexit.register(CHECKER.close)


def serve() -> None:
    """Answer pairs on standard input, a JSON list a line, by true or false."""
    import logging
    import os

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)  # what it cannot parse is no news
    sys.stderr = open(os.devnull, "w")  # a full pipe would stop this process

    def read(text: str) -> list:
        return parse("\\boxed{" + text.replace("°", "^\\circ") + "}", parsing_timeout=None)

    print("ready", flush=True)
    for line in sys.stdin:
        answer, target = json.loads(line)
        try:
            same = verify(read(target), read(answer), timeout_seconds=None)
        except Exception:  # whatever sympy makes of a model's text, it is not the target
            same = False
        print("true" if same else "false", flush=True)


if __name__ == "__main__":
    serve()
