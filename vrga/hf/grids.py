"""The image tokens of a model's inputs, and the grid that each of them belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from vrga.hf.inputs import TYPES
from vrga.hf.layouts import IMAGES, VIDEOS, Cells
from vrga.method.prompt import Grid, Prompt


def read_prompt(
    ids: Tensor | None,
    attention_mask: Tensor | None,
    token_types: Tensor | None,
    *,
    cells: Mapping[int, Iterable[Cells]] | None,
    positions: Tensor | None,
    image_token: int | None,
    video_token: int | None,
    named: tuple[str, ...] = (),
    shape: tuple[int, int],
) -> Prompt:
    """Find the image tokens of a batch and the grid each of them belongs to.

    Args:
        ids: int64 [B, S] or None; then `token_types` must say where the images are.
        attention_mask: [B, S or more], zero on padding, or None; its last S columns count.
        token_types: [B, S], 1 on image and 2 on video tokens; read only
            where `ids` is None.
        cells: the images' and frames' tokens in the order of the rows, see `vrga.hf.layouts`. None:
            the grids are read from
        positions: multimodal rotary positions, int64 [3 or 4, B, S], the last three of them
            time, height and width.
        image_token, video_token: ids of the placeholder tokens.
        named: the inputs that `cells` were read from, for errors.
        shape: (B, S).

    Raises:
        ValueError: image tokens and grids do not match.
    """
    kinds = torch.zeros(shape, dtype=torch.int64)
    if ids is not None:
        ids = ids.detach().to("cpu", torch.int64)
        for kind, token in ((IMAGES, image_token), (VIDEOS, video_token)):
            if token is not None:
                kinds[ids == token] = kind
    elif token_types is not None:
        kinds = token_types.detach().to("cpu", torch.int64)
    else:
        raise ValueError(
            f"inputs_embeds do not tell where the images are: pass input_ids, or {TYPES} "
            "(1 on image tokens, 2 on video tokens, 0 on text) where the model takes them"
        )
    if attention_mask is None:
        visible = torch.ones(shape, dtype=torch.bool)
    else:
        visible = attention_mask.detach().to("cpu")[:, -shape[1] :] != 0
    kinds = kinds * visible
    if cells is None and kinds.any():
        grids = _grids_by_position(kinds, positions, named)
    else:
        grids = _grids_in_order(kinds, cells or {}, named)
    return Prompt(ids, visible, kinds > 0, grids)


def _grids_in_order(
    kinds: Tensor, cells: Mapping[int, Iterable[Cells]], named: tuple[str, ...]
) -> list[list[Grid]]:
    """Give each row's image and video tokens the next of the cells, which come in row order."""
    source = " and ".join(named) or "the model's number of tokens per image"
    coming = {kind: iter(found) for kind, found in cells.items() if found is not None}
    grids: list[list[Grid]] = []
    for number, row in enumerate(kinds):
        found: list[Grid] = []
        for kind in (IMAGES, VIDEOS):
            index = (row == kind).nonzero().flatten()
            while len(index):
                cell = next(coming.get(kind, iter(())), None)
                if cell is None:
                    raise ValueError(
                        f"row {number} has {len(index)} image tokens that {source} does not "
                        "account for: pass what the processor returned for every image of the batch"
                    )
                if cell.tokens > len(index):
                    raise ValueError(
                        f"{source} announces an image of {cell.h} x {cell.w} tokens, but only "
                        f"{len(index)} image tokens are left in row {number}"
                    )
                span = int(index[cell.tokens - 1] - index[0]) + 1
                if span != cell.span:
                    raise ValueError(
                        f"row {number} has an image of {cell.h} x {cell.w} tokens by {source}, but "
                        f"its {cell.tokens} image tokens stand over {span} positions, with text "
                        "among them: the processor and the model's vision config do not agree"
                    )
                rows = index[cell.lead : cell.lead + cell.h * (cell.w + cell.gap)]
                place = rows.view(cell.h, -1)[:, : cell.w].flatten()
                found.append(Grid(place, cell.h, cell.w, kind == VIDEOS))
                index = _behind(index, cell)
        grids.append(sorted(found, key=lambda grid: int(grid.index[0])))
    left = sum(len(list(coming[k])) for k, v in cells.items() if isinstance(v, Sequence))
    if left:
        raise ValueError(f"{source} has {left} grids more than the rows have images")
    return grids


def _behind(index: Tensor, cell: Cells) -> Tensor:
    """The image tokens that follow a cell, without what a run of them may leave over."""
    index = index[cell.tokens :]
    if cell.spare and len(index):
        gaps = (index.diff() != 1).nonzero().flatten()
        run = int(gaps[0]) + 1 if len(gaps) else len(index)
        if run <= cell.spare:
            return index[run:]
    return index


def _grids_by_position(
    kinds: Tensor, positions: Tensor | None, named: tuple[str, ...]
) -> list[list[Grid]]:
    """Read each run of image tokens' grid from its rotary positions in height and width."""
    if positions is None or positions.ndim != 3:
        raise ValueError(
            f"the images' token grids are unknown: pass {' or '.join(named)}, as the processor "
            "returns it"
        )
    spatial = positions[-2:].detach().to("cpu", torch.int64)
    grids: list[list[Grid]] = []
    for row, kind in enumerate(kinds):
        found = []
        index = kind.nonzero().flatten()
        breaks = ((index.diff() != 1) | (kind[index].diff() != 0)).nonzero().flatten() + 1
        for run in index.tensor_split(breaks) if len(index) else []:
            span = spatial[:, row, run]
            h, w = (span.amax(1) - span.amin(1) + 1).tolist()
            if len(run) % (h * w):
                raise ValueError(
                    f"row {row} has {len(run)} image tokens in a run whose positions span "
                    f"{h} x {w}: pass {TYPES} and image_grid_thw, as the processor "
                    "returns them; without them the model takes an image for plain text"
                )
            video = int(kind[run[0]]) == VIDEOS
            found += [Grid(frame, h, w, video) for frame in run.split(h * w)]
        grids.append(found)
    return grids
