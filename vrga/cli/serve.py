"""`vrga serve`: an OpenAI-compatible server, with steering for the requests that ask."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from vrga.cli.options import console
from vrga.hf.files import check_model


class Precision(str, enum.Enum):
    """Of the weights in the engine."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def serve(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or hub id.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Behind --: vLLM's own, e.g. -- --max-model-len 8192.", metavar="..."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    dtype: Annotated[Precision, typer.Option(help="Of the weights.")] = Precision.float32,
    steer: Annotated[
        str | None,
        typer.Option(
            help="How requests are steered that do not say: a preset's name, or JSON. Without it "
            "they are not."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Ask about a drawn image first, or not.")
    ] = True,
) -> None:
    """Serve a model with vLLM, steering the requests that ask for it."""
    from vrga.engine.request import DEFAULT, read_request
    from vrga.engine.serve import check_installed

    where = str(check_model(model))
    if steer is not None:
        try:
            read_request({"vrga": steer}, where)
        except ValueError as error:
            raise ValueError(f"--steer ({DEFAULT}): {error}") from None
    check_installed()
    from vrga.engine.serve import serve as start

    status = start(
        where,
        arguments or [],
        host=host,
        port=port,
        dtype=dtype.value,
        default=steer,
        checked=check,
        say=lambda line: console.print(f"vrga: {line}", markup=False, soft_wrap=True),
    )
    raise typer.Exit(status)
