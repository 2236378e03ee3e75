"""Where things are in a prompt: image tokens, their grids, the query position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The tokens of one image, or of one frame of a video, in raster order.

    Args:
        index: positions in the padded row, int64 [h * w].
        h, w: rows and columns of the token grid (after the vision tower's merge).
        video: whether it is of a video.
    """

    index: Tensor
    h: int
    w: int
    video: bool = False


# For each row, for each of its images: bool [h, w] on the image's token grid; or a callable that
# makes them from each row's list of `Grid`.
GridCells = list[list[Tensor]] | Callable[[list[list[Grid]]], list[list[Tensor]]]


@dataclass(frozen=True)
class Prompt:
    """What a batch of prompts holds, on the CPU.

    Args:
        ids: token ids, int64 [B, S], or None when the model was given embeddings.
        visible: False on padding, bool [B, S].
        image: True on image and video tokens, bool [B, S].
        grids: for each row its images' grids in order of appearance.
    """

    ids: Tensor | None
    visible: Tensor
    image: Tensor
    grids: list[list[Grid]]

    def repeated(self, rows: int) -> Prompt:
        """The prompt in a batch of `rows`: generate() repeats each sample for beams and returns."""
        if rows % len(self.grids):
            raise ValueError(f"{rows} rows in the forward pass, {len(self.grids)} in the prompt")
        times = rows // len(self.grids)

        def each(x: Tensor) -> Tensor:
            return x.repeat_interleave(times, 0)

        grids = [grids for grids in self.grids for _ in range(times)]
        ids = None if self.ids is None else each(self.ids)
        return Prompt(ids, each(self.visible), each(self.image), grids)

    def later(self, start: int) -> Prompt:
        """What stands from position `start` on, counted from there."""
        grids = [
            [replace(g, index=g.index - start) for g in row if int(g.index[0]) >= start]
            for row in self.grids
        ]
        ids = None if self.ids is None else self.ids[:, start:]
        return Prompt(ids, self.visible[:, start:], self.image[:, start:], grids)

    def extend(self, later: Prompt, past: int) -> Prompt:
        """The prompt of a cache of `past` tokens, followed by `later`.

        Tokens that were generated since this prompt are text; a cache cut below the prompt's
        length cuts the prompt.
        """
        held = self.image.shape[1]
        text = past - held

        def joined(before: Tensor, after: Tensor, fill: int | bool) -> Tensor:
            kept = torch.nn.functional.pad(before[:, :past], (0, max(text, 0)), value=fill)
            return torch.cat([kept, after], 1)

        grids = [
            [grid for grid in row if int(grid.index[-1]) < past]
            + [replace(grid, index=grid.index + past) for grid in new]
            for row, new in zip(self.grids, later.grids, strict=True)
        ]
        return Prompt(
            None if self.ids is None or later.ids is None else joined(self.ids, later.ids, -1),
            joined(self.visible, later.visible, True),
            joined(self.image, later.image, False),
            grids,
        )


def visible_keys(mask: Tensor, keys: int) -> Tensor:
    """Keys that the last query row sees, bool [B or 1, `keys`], from any backend's mask.

    A mask that ends before the keys hides the rest: flash attention's, with a static cache.

    Args:
        mask: bool or additive float [B, 1, Q, S], or 0/1 [B, S].
    """
    if mask.ndim == 2:
        visible = mask != 0
    else:
        visible = mask[:, 0, -1]
        if mask.dtype != torch.bool:
            visible = visible > torch.finfo(mask.dtype).min / 2
    return torch.nn.functional.pad(visible[:, :keys], (0, max(keys - visible.shape[1], 0)))


def expanded(values: list, rows: int) -> list:
    """One value per row, where generate() has expanded each sample to several rows (beams)."""
    if values and rows % len(values) == 0:
        return [value for value in values for _ in range(rows // len(values))]
    return values


def check_query(query: Tensor, prompt: Prompt) -> Tensor:
    """Validate query positions; int64 [B] on the CPU.

    Raises:
        ValueError: a position out of the row, on padding, on an image token or before the images.
    """
    rows, length = prompt.image.shape
    if query.dtype.is_floating_point or query.dtype == torch.bool or query.shape != (rows,):
        raise ValueError(
            f"query must be {rows} integer positions, one per row; got {query.dtype} of shape "
            f"{list(query.shape)}"
        )
    query = query.detach().to("cpu", torch.int64)
    for row, place in enumerate(query.tolist()):
        if not prompt.grids[row]:
            continue  # nothing is located in a row without an image
        where = f"query[{row}]={place}"
        if not 0 <= place < length:
            raise ValueError(f"{where} is out of the row: positions are 0 to {length - 1}")
        if not prompt.visible[row, place]:
            raise ValueError(f"{where} is on padding: give the position in the padded row")
        if prompt.image[row, place]:
            raise ValueError(f"{where} is on an image token: give the question's last token")
        if not prompt.image[row, :place].any():
            raise ValueError(
                f"{where} stands before the row's images and cannot see them: give a position "
                "after the image"
            )
    return query


def cells_mask(cells: list[list[Tensor]], prompt: Prompt, name: str) -> Tensor:
    """Cells of the images' token grids as a mask over the prompt, bool [B, S].

    Args:
        cells: for each row, or each sample before expansion, for each image bool [h, w].
        name: what to call them in an error.

    Raises:
        ValueError: cells that do not fit the prompt's rows and grids, or of another form.
    """
    grids = [[(grid.h, grid.w) for grid in row] for row in prompt.grids]
    wanted = (
        f"wanted: for each row, for each of its images a mask bool [h, w] on its token grid, here "
        f"of shapes {grids}; or a callable that makes them from each row's list of Grid"
    )
    if isinstance(cells, (str, dict, Tensor)) or not isinstance(cells, Sequence):
        raise ValueError(f"{name} is {_told(cells)}; {wanted}")
    cells = expanded(list(cells), len(prompt.grids))
    masks: list[list[Tensor]] = []
    for row in cells:
        if isinstance(row, (str, dict, Tensor)) or not isinstance(row, Sequence):
            raise ValueError(f"{name} has a row that is {_told(row)}; {wanted}")
        masks.append([_mask_of(cell, name, wanted) for cell in row])
    found = [[tuple(cell.shape) for cell in row] for row in masks]
    if found != grids:
        raise ValueError(f"{name} has cells of shape {found}; the prompt's images have {grids}")
    mask = torch.zeros_like(prompt.image)
    for at, (images, row_grids) in enumerate(zip(masks, prompt.grids, strict=True)):
        for cell, grid in zip(images, row_grids, strict=True):
            mask[at, grid.index] = cell.flatten()
    return mask


def _mask_of(cell: object, name: str, wanted: str) -> Tensor:
    """One image's mask, bool [h, w], on the CPU."""
    try:
        found = torch.as_tensor(cell).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} has cells that are {_told(cell)}; {wanted}") from None
    plain = found.dtype == torch.bool or bool(((found == 0) | (found == 1)).all())
    if found.ndim != 2 or not plain:
        raise ValueError(
            f"{name} has cells that are {found.dtype} {list(found.shape)} and no mask; {wanted}"
        )
    return found.to(torch.bool)


def _told(value: object) -> str:
    """A value in an error."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype}"
    text = repr(value)
    return f"{text[:60]}..." if len(text) > 60 else text
