"""A trace as a folder: trace.json, trace.safetensors, and images as PNG."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vrga.beforehand import WORDS, check_trace_folder
from vrga.images import read_image, to_rgb
from vrga.method.heads import HeadStatistics
from vrga.method.prompt import Grid
from vrga.method.region import Region
from vrga.method.timeline import Relocation
from vrga.recording.trace import MEASURES, Trace
from vrga.recording.trace_checks import check_trace

FORMAT, VERSION = "vrga-trace", 1
TENSORS = "trace.safetensors"
_WHOLE = (
    *MEASURES, "inside", "uncertainty", "steps", "layers", "maps", "heads", "layer_maps", "ids",
    "ends",
)  # fmt: skip
_REGION = ("focus", "mask", "image", "visual", "background")
_HEADS = ("focus", "entropy", "efr")


def write(trace: Trace, path: Path) -> Path:
    """Write a trace; see `Trace.save`."""
    trace.check_filled()
    check_trace_folder(path)
    counts = None if trace.images is None else [len(images) for images in trace.images]
    try:
        check_trace(trace, counts)  # what could not be loaded must not take an older one's place
    except ValueError as error:
        raise ValueError(f"the trace cannot be saved: {error}") from error
    path.mkdir(parents=True, exist_ok=True)
    for old in (*path.glob("image-*-*.png"), path / WORDS):
        old.unlink(missing_ok=True)  # the words come last: a folder cut short has none
    tensors = {name: getattr(trace, name) for name in _WHOLE if getattr(trace, name) is not None}
    regions, relocated = [], []
    for row, region in enumerate(trace.regions):
        tensors |= _region_tensors(region, f"region.{row}.")
        regions.append(_words_of(region))
    for number, later in enumerate(trace.relocated):
        tensors |= _region_tensors(later.region, f"relocated.{number}.")
        relocated.append({"row": later.row, "step": later.step} | _words_of(later.region))
    save_file({name: x.contiguous().clone() for name, x in tensors.items()}, path / TENSORS)
    _as_others(path / TENSORS)
    for row, images in enumerate(trace.images or []):
        for number, image in enumerate(images):
            to_rgb(image).save(path / _png(row, number))
    words = {
        "format": FORMAT,
        "version": VERSION,
        "config": trace.config,
        "versions": trace.versions,
        "texts": trace.texts,
        "asked": trace.asked,
        "regions": regions,
        "relocated": relocated,
        "images": counts,
        "closer": trace.closer,
    }
    text = json.dumps(words, ensure_ascii=False, indent=1)
    # Half a surrogate pair, which a tokenizer may give, is no UTF-8.
    (path / WORDS).write_bytes(text.encode("utf-8", "replace"))
    return path


def read(path: Path) -> Trace:
    """Read a trace; see `Trace.load`."""
    words = _words(path)
    try:
        tensors = load_file(path / TENSORS)
    except FileNotFoundError:
        raise ValueError(f"the trace {path} is not complete: it has no {TENSORS}") from None
    except PermissionError as error:
        raise PermissionError(f"{path / TENSORS} may not be read: {error}") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path / TENSORS} is damaged or cut short: {error}") from error
    try:
        trace, counts = _assembled(words, tensors)
        check_trace(trace, counts)
    # Whatever wrong types and sizes lead to while the parts are put together.
    except Exception as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"the trace {path} is damaged: {WORDS} and {TENSORS} do not fit together ({why})"
        ) from error
    if counts is not None:
        trace.images = [
            [_image(path / _png(row, number)) for number in range(count)]
            for row, count in enumerate(counts)
        ]
    return trace


def _assembled(words: dict, tensors: dict[str, Tensor]) -> tuple[Trace, Any]:
    """The trace without its images, and how many images the rows have."""
    half = dict.fromkeys(("maps", "layer_maps"), torch.float16)
    there = {name: tensors[name] for name in _WHOLE if name in tensors}
    whole: dict[str, Any] = {k: _as(half.get(k, torch.float32), x) for k, x in there.items()}
    whole |= {name: words[name] for name in ("config", "versions", "texts", "asked")}
    trace = Trace(**whole, closer=words.get("closer"))  # older folders have none
    if trace.ends is None and trace.texts is not None:  # an older folder
        trace.ends = torch.tensor([len(texts) - 1 for texts in trace.texts])
    trace.regions = [
        _region(entry, tensors, f"region.{row}.") for row, entry in enumerate(words["regions"])
    ]
    trace.relocated = [
        Relocation(entry["row"], entry["step"], _region(entry, tensors, f"relocated.{number}."))
        for number, entry in enumerate(words.get("relocated", []))  # older folders have none
    ]
    return trace, words["images"]


def _words(path: Path) -> dict:
    """trace.json of a folder, checked to be of this format."""
    file = path / WORDS
    try:
        words = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"no trace at {path}: trace.save writes a folder with {WORDS}"
        ) from None
    except PermissionError as error:
        raise PermissionError(f"{file} may not be read: {error}") from error
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(words, dict) or words.get("format") != FORMAT:
        raise ValueError(f"{file} is not of a trace: its format is not {FORMAT!r}")
    if words.get("version") != VERSION:
        raise ValueError(
            f"{file} has format version {words.get('version')!r}, and this vrga reads {VERSION}: a "
            "newer one wrote it; install that, or record the answer again"
        )
    return words


def _as_others(file: Path) -> None:
    """Give a file that was written for its owner alone the mode that a new file has here."""
    probe = file.with_name(file.name + ".mode")
    probe.touch()
    try:
        file.chmod(probe.stat().st_mode & 0o777)
    finally:
        probe.unlink()


def _words_of(region: Region) -> dict:
    grids = [[grid.h, grid.w, grid.video] for grid in region.grids]
    return {"query": region.query, "grids": grids, "question": region.question}


def _region_tensors(region: Region, prefix: str) -> dict[str, Tensor]:
    tensors = {prefix + name: getattr(region, name) for name in _REGION}
    tensors |= {f"{prefix}heads.{name}": getattr(region.heads, name) for name in _HEADS}
    for i, (relevance, grid) in enumerate(zip(region.map, region.grids, strict=True)):
        tensors |= {f"{prefix}map.{i}": relevance.float(), f"{prefix}index.{i}": grid.index}
    return tensors


def _region(entry: dict, tensors: dict[str, Tensor], prefix: str) -> Region:
    sizes = entry["grids"]  # [h, w], and in newer folders whether it is of a video
    grids = [Grid(tensors[f"{prefix}index.{i}"], *size) for i, size in enumerate(sizes)]
    return Region(
        query=entry["query"],
        question=entry.get("question"),  # older folders have none
        map=[
            _as(torch.float32, tensors[f"{prefix}map.{i}"]).view(grid.h, grid.w)
            for i, grid in enumerate(grids)
        ],
        grids=grids,
        heads=HeadStatistics(
            *(_as(torch.float32, tensors[f"{prefix}heads.{name}"]) for name in _HEADS)
        ),
        **{name: tensors[prefix + name] for name in _REGION},
    )


def _as(dtype: torch.dtype, found: Tensor) -> Tensor:
    """A tensor of floating point in the precision that a trace has; others as they are."""
    return found.to(dtype) if found.is_floating_point() else found


def _png(row: int, number: int) -> str:
    return f"image-{row}-{number}.png"


def _image(path: Path) -> Image.Image:
    try:
        if not path.exists():
            raise ValueError(f"the trace lacks its image {path}")
        return read_image(path)
    except PermissionError as error:
        raise PermissionError(f"{path} may not be read: {error}") from error
    except OSError as error:
        if isinstance(error.__cause__, PermissionError):
            raise PermissionError(f"{path} may not be read: {error.__cause__}") from error
        raise ValueError(f"the trace's {error}") from error
