"""`vrga report`: a page of traces, or of a server's answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vrga.beforehand import check_file
from vrga.cli.options import console


def report(
    traces: Annotated[
        list[Path],
        typer.Argument(
            help="One or two trace folders, of two the base first; or the folder of base/ and "
            "steered/, or of closer/. Or a JSON file: what `vrga serve` answered."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path(
        "report.html"
    ),
    row: Annotated[int | None, typer.Option(min=0, help="Row of the batch; 0.")] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="An image of the server's request, in their order; can be repeated."),
    ] = None,
    size: Annotated[
        float | None,
        typer.Option(min=0.1, help="Most megabytes of maps, 16; heads are left out beyond."),
    ] = None,
) -> None:
    """Make a page of one or two traces, or of a server's answer: where the model looked."""
    if len(traces) == 1 and traces[0].is_file():
        if row is not None or size is not None:
            raise ValueError(
                "--row and --size are of traces: a server's answer is of one row and has no maps"
            )
        check_file(output, "--output")
        from vrga.report import write_looked

        path = write_looked(traces[0], image or [], output)
        console.print(f"report: {path}", style="dim", soft_wrap=True)
        return
    if image:
        raise ValueError(
            "--image goes with the JSON file of a server's answer; a trace has its images with it"
        )
    if len(traces) == 1 and not (traces[0] / "trace.json").is_file():  # as generate --trace writes
        # What looked closer is of another prompt, and has a page of its own.
        for names in (("base", "steered"), ("closer",)):
            parts = [traces[0] / name for name in names]
            there = [part for part in parts if (part / "trace.json").is_file()]
            if there:
                traces = there
                break
    if len(traces) > 2:
        raise ValueError(f"a report shows one or two traces; {len(traces)} given")
    for trace in traces:
        if not (trace / "trace.json").is_file():
            raise FileNotFoundError(
                f"no trace at {trace}: trace.save writes a folder with trace.json, and "
                "vrga generate --trace one with base/ and steered/ in it, or with closer/"
            )
    check_file(output, "--output")
    from vrga.report import write_report

    given: dict[str, Any] = {"row": row, "megabytes": size}
    path = write_report(traces, output, **{k: v for k, v in given.items() if v is not None})
    console.print(f"report: {path}", style="dim", soft_wrap=True)
