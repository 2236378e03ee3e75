"""Serving the page: on this machine alone unless told otherwise, nothing kept at the end."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
LARGEST_FILE = "20mb"


def check_gradio() -> None:
    """Raise ImportError, with what to install, where Gradio is missing."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(10**9)  # nor count for itself
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError('the page needs Gradio: pip install "vrga[app]"') from error


@contextmanager
def served(
    model: str | None = None, *, host: str = LOOPBACK, port: int | None = None, **options: Any
) -> Iterator[str]:
    """Serve the page inside the block.

    Args:
        model: as of `vrga.load`; None is the small model inside this package.
        host: address to listen on; the default is reached from this machine alone.
        port: None takes the first free one from 7860 on.
        options: of `LoadedModel`.

    Yields:
        The page's address.

    Raises:
        ImportError: Gradio is missing.
        OSError: no such checkpoint, or a port that is taken; ValueError: as of `vrga.load`.
    """
    _check_address(host, port)
    with _folder() as made:
        check_gradio()
        from vrga.app.examples import write_examples
        from vrga.app.loaded_model import LoadedModel
        from vrga.app.page import CSS, build
        from vrga.app.visitors import Visits

        loaded, folder = LoadedModel(model, **options), Path(made)
        examples = write_examples(folder / "examples", model) if loaded.is_small else []
        page = build(loaded, Visits(folder), examples)
        _, address, _ = page.launch(
            server_name=host, server_port=port, share=False, inbrowser=False, quiet=True,
            prevent_thread_lock=True, show_error=False, max_file_size=LARGEST_FILE,
            enable_monitoring=False, ssr_mode=False, pwa=False, mcp_server=False,
            footer_links=[], css=CSS, theme=_theme(),
        )  # fmt: skip
        try:
            yield address
        finally:
            page.close(verbose=False)


def _theme():
    """Gradio's own look, in fonts that are there, blue as the maps, with words dark enough."""
    import gradio as gr

    theme = gr.themes.Default(
        primary_hue="blue",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    soft = {name: "*neutral_600" for name in ("body_text_color_subdued", "block_info_text_color")}
    return theme.set(**soft, **{f"{name}_dark": "*neutral_300" for name in soft})


def _check_address(host: str, port: int | None) -> None:
    """Raise OSError, before anything is loaded, for an address that cannot be listened on."""
    try:
        with socket.create_server((host, port or 0)):
            return
    except OSError as error:
        raise OSError(
            f"cannot listen on {host}{f', port {port}' if port else ''} "
            f"({str(error.strerror or error).partition(' (')[0]}): give another --host or --port"
        ) from error


@contextmanager
def _folder() -> Iterator[str]:
    """The folder in which Gradio keeps what is uploaded, deleted at the end."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="vrga-app-") as made:
        os.environ["GRADIO_TEMP_DIR"] = made
        try:
            yield made
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def serve(model: str | None, say: Callable[[str], object], **options: Any) -> None:
    """Serve the page until the process is told to end; see `served`.

    Args:
        say: is told the address.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that files are deleted then, too
    with served(model, **options) as address:
        say(address)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return
