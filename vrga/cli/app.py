"""`vrga app`: a local page on which a question is asked."""

from __future__ import annotations

from typing import Annotated

import typer

from vrga.cli.options import DeviceMap, Dtype, Longest, Model, Weights, console
from vrga.hf.files import check_model


def page(
    model: Model = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 opens the page to the network.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The first free one from 7860 if absent.")
    ] = None,
    max_new_tokens: Longest = 256,
    dtype: Weights = Dtype.auto,
    device_map: DeviceMap = None,
) -> None:
    """Open a local page: ask about pictures with and without VRGA, and see where it looks."""
    check_model(model)
    from vrga.app.server import serve

    serve(
        model,
        lambda address: console.print(f"open {address} (Ctrl-C ends it)", soft_wrap=True),
        host=host, port=port, max_new_tokens=max_new_tokens, dtype=dtype.value,
        device_map=device_map,
    )  # fmt: skip
