"""One self-contained page of one or two traces (extra `report`: Jinja2)."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vrga.images import data_uri, to_rgb
from vrga.intervals import pearson
from vrga.recording.trace import SHARES, Trace
from vrga.report.channels import channels_of, fitting, levels
from vrga.report.comparison import opening, question_of, side_by_side, verdict
from vrga.text_diff import alike

LONGEST_SIDE = 1280  # pixels of an image in the page
# Controls that turn the direction of all text after them: shown as signs. Arabic needs none.
TURNING = {code: f"[U+{code:04X}]" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def write_report(
    paths: Sequence[Path | str], output: Path | str, *, row: int = 0, megabytes: float = 16.0
) -> Path:
    """Write the page of one or two saved traces.

    Args:
        paths: trace folders; of two, the base comes first.
        output: the HTML file.
        row: of the batch.
        megabytes: most room for maps. Beyond it single heads are left out, those with the highest
            EFR first, then maps are made coarser.

    Raises:
        ImportError: Jinja2 is missing.
        FileNotFoundError, ValueError: as of `Trace.load` and `render`.
    """
    return write_page(map(Trace.load, paths), Path(output), row=row, megabytes=megabytes)


def write_page(traces: Iterable[Trace], output: Path, **options) -> Path:
    """The page of traces as a file; options and errors are those of `render`."""
    text = render(list(traces), **options)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Half a surrogate pair, which a tokenizer may give, is no UTF-8.
    output.write_bytes(text.encode("utf-8", "replace"))
    return output


def render(traces: Sequence[Trace], *, row: int = 0, megabytes: float = 16.0) -> str:
    """The page as HTML; see `write_report`.

    Raises:
        ImportError: Jinja2 is missing.
        ValueError: neither one nor two traces, an empty one, a row that they do not have, one with
            no step to show, or two traces of different prompts.
    """
    try:
        from jinja2 import Environment, PackageLoader
    except ImportError as error:
        raise ImportError("a report needs Jinja2: pip install 'vrga[report]'") from error
    if len(traces) not in (1, 2):
        raise ValueError(f"a report shows one or two traces; {len(traces)} given")
    for trace in traces:
        trace.steps_of(row)
    asked = _asked(traces, row)
    found = question_of(traces, row, asked).translate(TURNING)
    page = shown(traces, row=row, megabytes=megabytes)
    runs = page["runs"]
    pairs = side_by_side([run["tokens"] for run in runs])
    for run, (partners, differs) in zip(runs, pairs, strict=True):
        run |= {"partners": partners, "differs": differs}
    page |= {
        "differ": _differ(runs),
        "atlases": [0] if _same_heads(runs) else [0, 1],
        "opening": opening(traces, row, pairs),
    }
    told = verdict(traces, row, pairs, [run["name"] for run in runs], page["opening"])
    environment = Environment(loader=PackageLoader("vrga.report", ""), autoescape=True)
    template = environment.get_template("report.html.jinja")
    return template.render(
        question=found, asked=asked, verdict=told, runs=runs,
        page=as_json(page), page_images=page["images"],
    )  # fmt: skip


def shown(
    traces: Sequence[Trace], *, row: int = 0, megabytes: float = 16.0, layers: bool = False
) -> dict:
    """What a page shows of traces: their images once, as data URIs, and each run with its tokens,
    maps, shares of attention and regions.

    Args:
        layers: whether each layer is a channel of its own, beside the groups of layers.

    Raises:
        ValueError: as of `Trace.steps_of`, or shares that are not finite.
    """
    images: list[str] = []
    budget = 1e6 * megabytes / len(traces)
    runs = [_run(trace, row, images, budget, layers) for trace in traces]
    if len({run["name"] for run in runs}) < len(runs):
        for run, which in zip(runs, ("first", "second"), strict=True):
            run["name"] = f"{which}: {run['name']}"
    return {"runs": runs, "images": images}


def _asked(traces: Sequence[Trace], row: int) -> str:
    """The prompt of all traces, "" where it is unknown.

    Raises:
        ValueError: two prompts.
    """
    asked = [trace.asked[row] for trace in traces if trace.asked is not None]
    if len(set(asked)) > 1:
        # Long prompts may begin alike.
        start = max(alike(*asked) - 30, 0)
        first, second = (text[start : start + 80] for text in asked)
        raise ValueError(
            f"the traces are of different prompts, from character {start + 1} on {first!r} and "
            f"{second!r}: give two runs of one prompt, or make a report of each"
        )
    return asked[0].translate(TURNING) if asked else ""


def _same_heads(runs: list[dict]) -> bool:
    """Whether one atlas shows the heads of all runs; 1 % is rounding."""
    first, last = runs[0]["heads"], runs[-1]["heads"]
    if first is None or last is None:
        return first is last
    names = ("R", "H_img", "EFR", "visual", "background")
    return all(
        np.shape(first[name]) == np.shape(last[name])
        and np.allclose(first[name], last[name], rtol=0.01)
        for name in names
    )


def _differ(runs: list[dict]) -> str:
    """What to say beside the channel of visual heads where two runs have others."""
    chosen = [
        set() if run["heads"] is None else set(map(tuple, np.argwhere(run["heads"]["visual"])))
        for run in runs
    ]
    if chosen[0] == chosen[-1]:
        return ""
    counts = ", ".join(
        f"{len(own)} in {run['name']!r}" for own, run in zip(chosen, runs, strict=True)
    )
    return f"Not the same heads: {counts}; {len(chosen[0] & chosen[1])} are in both."


def as_json(page: dict) -> str:
    """JSON that can stand in a <script> element, whatever the model wrote."""
    text = json.dumps(page, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _run(trace: Trace, row: int, images: list[str], budget: float, layers: bool) -> dict:
    """One trace as the page reads it; its images are added to `images` unless they are there."""
    region, steps = trace.regions[row], trace.steps_of(row)
    grids = [(grid.h, grid.w) for grid in region.grids]
    cells = torch.cat([grid.index for grid in region.grids]) if grids else torch.zeros(0).long()
    channels = channels_of(trace, row, layers)
    kept, sizes = fitting(channels, grids, len(steps), budget)
    series = [name for name in SHARES if getattr(trace, name) is not None]
    maps = [levels(c.map, grids, sizes) for c in kept]
    recorded = [getattr(trace, name)[: len(steps), :, row] for name in series]
    # [channels, series, steps]
    shares = np.stack([[one[:, c.heads].mean(1).numpy() for one in recorded] for c in kept])
    if not np.isfinite(shares).all():
        raise ValueError(f"row {row} has shares of attention that are not finite")
    places = []
    for image in trace.images[row] if trace.images is not None else []:
        source = encoded(image)
        if source not in images:
            images.append(source)
        places.append(images.index(source))
    return {
        "name": _name(trace.config),
        "tokens": _tokens(trace, row),
        "steps": steps,
        "doubts": _doubts(trace, row),
        "back": [[steps[first], steps[end - 1]] for first, end in trace.spans(row)],
        "channels": [
            {"name": c.name, "mapped": c.map is not None, "single": c.single} for c in kept
        ],
        "left_out": len(channels) - len(kept),
        "series": series,
        "shares": _packed(np.rint(shares.clip(0, 1) * 65535).astype("<u2")),
        "maps": _packed(np.concatenate([np.zeros((0,), np.uint8)] + [m for m, _ in maps])),
        "tops": _packed(np.concatenate([np.zeros((0,), "<f4")] + [top for _, top in maps])),
        "grids": grids,
        "sizes": sizes,
        "images": places,
        "region": region.mask[cells].int().tolist(),
        "relocated": [
            [later.step, later.region.mask[cells].int().tolist()]
            for later in trace.relocated
            if later.row == row
        ],
        "relevance": _packed(
            levels(torch.cat([m.flatten() for m in region.map])[None], grids, grids)[0]
        )
        if grids
        else "",
        "heads": _heads(region),
        "config": trace.config,
        "versions": trace.versions,
        "closer": None if trace.closer is None else _closer(trace.closer, places),
    }


def _closer(found: dict, places: list[int]) -> dict:
    """What `Closer.numbers` tells, as the template shows it; `places`, of the run's images."""
    decision = found["decision"]
    crops = decision["crops"] if decision["zooms"] else []
    first = len(crops) if found["zoom"]["order"] == "crops" else 0
    return {
        "zooms": decision["zooms"],
        "reason": decision["reason"].translate(TURNING),
        "crops": crops,
        "pictures": [
            {"size": one["size"], "place": places[first + i] if places else None}
            for i, one in enumerate(found["pictures"])
        ],
        "cost": found["cost"],
    }


def _doubts(trace: Trace, row: int) -> list[str] | None:
    """Of each recorded step, how sure the model was of its token, and whether that was steered;
    None where nothing was decided by it."""
    if trace.uncertainty is None or trace.gate is None:
        return None
    open_heads = (trace.gate[:, :, row] > 0).flatten(1).any(1).tolist()
    told = ["left alone", "steered"] if trace.config.get("gain") != 1 else ["not steered"] * 2
    nats = trace.uncertainty[: len(trace.steps_of(row)), row].tolist()
    return [f"drawn at {x:.3g} nats: {told[on]}" for x, on in zip(nats, open_heads, strict=False)]


def _name(config: dict) -> str:
    """What a run is called."""
    if config.get("method") in ("vrga", "released") and config.get("gain") == 1:
        return "not steered"
    if config.get("method") in ("released_mask", "ablation"):
        return config["method"].replace("_", " ")
    return f"steered, gain {config.get('gain')}"


def _tokens(trace: Trace, row: int) -> list[str]:
    if trace.texts is not None:
        return [text.translate(TURNING) for text in trace.texts[row]]
    if trace.ids is not None:
        end = trace.ids.shape[1] if trace.ends is None else int(trace.ends[row]) + 1
        return [f"#{token} " for token in trace.ids[row, :end].tolist()]
    return [f"step {step} " for step in range(int(trace.filled().steps[-1]) + 1)]


def _heads(region) -> dict | None:
    """R, H_img and EFR of every head, and how R and H_img go together; None without an image."""
    stats = region.heads
    if not bool(stats.focus.isfinite().all()):
        return None
    r = pearson(stats.focus.flatten().numpy(), stats.entropy.flatten().numpy())
    return {
        "R": _rounded(stats.focus),
        "H_img": _rounded(stats.entropy),
        "EFR": _rounded(stats.efr),
        "visual": region.visual.int().tolist(),
        "background": region.background.int().tolist(),
        "pearson": None if any(map(math.isnan, r)) else [round(x, 4) for x in r],
    }


def _rounded(values: Tensor) -> list[list[float]]:
    """Four digits are more than a picture shows; EFR is huge where R is 0."""
    return [[float(f"{min(x, 1e9):.4g}") for x in line] for line in values.tolist()]


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def encoded(image: Image.Image) -> str:
    """An image as a data URI: PNG, or JPEG where that is large."""
    return data_uri(to_rgb(image), longest=LONGEST_SIDE)
