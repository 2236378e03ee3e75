"""Where things are in a prompt: image tokens, their grids, the query position."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vrga.hf.inputs import TYPES
from vrga.hf.layouts import IMAGES, VIDEOS, Cells
from vrga.turns import TurnMarks

TEXT_READ = 8192  # text tokens at the end of a prompt in which the last turn is looked for
Query = str | int | Tensor | Sequence | Callable[[Tensor, Tensor], Tensor]


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

        def each(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.repeat_interleave(times, 0)

        grids = [grids for grids in self.grids for _ in range(times)]
        return Prompt(each(self.ids), each(self.visible), each(self.image), grids)

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


def read_prompt(
    ids: Tensor | None,
    attention_mask: Tensor | None,
    token_types: Tensor | None,
    *,
    cells: dict[int, Iterable[Cells]] | None,
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
    kinds: Tensor, cells: dict[int, Iterable[Cells]], named: tuple[str, ...]
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


def user_end(
    prompt: Prompt,
    end_tokens: set[int],
    vision_tokens: set[int],
    *,
    header: int = 8,
    unlisted: int = 0,
) -> Tensor:
    """Default query without a chat template: the last text token of each row's last user turn.

    The turn is taken to end at the row's last end-of-turn token. It is open, and goes on to the
    end of the row, where that token has an image behind it, no text before it, or more than
    `header` tokens behind it. A question that stands before its image cannot see it: then it is
    the last token of the turn.

    Args:
        header: most tokens that a template puts between a closed turn and the answer.
        unlisted: so many tokens at the end of a row without an end-of-turn token close its turn
            and begin the answer.

    Returns:
        int64 [B]; 0 where a row has neither text nor image.

    Raises:
        ValueError: no token ids, or an image without any text.
    """
    if prompt.ids is None:
        raise ValueError(
            "the question cannot be found: the model was given inputs_embeds, not input_ids; set "
            "patch.query to the position of each row's last question token"
        )
    length = prompt.ids.shape[1]
    ends = torch.isin(prompt.ids, torch.tensor(sorted(end_tokens), dtype=torch.int64))
    ends &= prompt.visible
    marks = torch.isin(prompt.ids, torch.tensor(sorted(vision_tokens), dtype=torch.int64))
    words = prompt.visible & ~prompt.image & ~ends
    found = torch.zeros(len(prompt.ids), dtype=torch.int64)
    for row in range(len(prompt.ids)):
        end = _last(ends[row], length)
        if end is None:
            closed, image = length - unlisted, _last(prompt.image[row], length)
            last = _last(words[row] & ~marks[row], closed)
            told = last is not None and (image is None or last > image)
            end = closed if told else length
        elif (
            prompt.image[row, end:].any()
            or not words[row, :end].any()
            or int(prompt.visible[row, end + 1 :].sum()) > header
        ):
            end = length
        text, image = words[row] & ~marks[row], _last(prompt.image[row], end)
        last = _last(text, end)
        if last is not None and image is not None and last < image:
            last = _last(words[row], end)
        if last is None and prompt.grids[row]:
            raise ValueError(
                f"row {row} has an image but no text token before the end of its turn: set "
                "patch.query to the position of the question's last token"
            )
        found[row] = 0 if last is None else last
    return found


def _last(where: Tensor, end: int) -> int | None:
    """The last place before `end` where a mask [S] is true; None for none."""
    places = where[:end].nonzero().flatten()
    return int(places[-1]) if len(places) else None


def template_end(prompt: Prompt, decode: Callable, marks: TurnMarks, row: int) -> int | None:
    """The last token of a row's question, as the chat template's marks tell it; None for none.

    Args:
        decode: token ids (list of int) -> text, special tokens included.
    """
    place = (prompt.visible[row] & ~prompt.image[row]).nonzero().flatten()[-TEXT_READ:]
    tokens = prompt.ids[row, place].tolist()
    text = decode(tokens)
    found = marks.question(text)
    if found is None:
        return None
    start, end = found
    said = len(text[:end].rstrip())
    if said <= start:
        return None  # the turn says nothing
    wanted = text[:said]  # compared, not counted: a part of a character decodes to something else
    low, high = 0, len(tokens)  # the shortest beginning that has all of it
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if decode(tokens[:middle])[:said] == wanted else (middle, high)
    return int(place[high - 1])


def question_end(prompt: Prompt, questions: Sequence[str], decode: Callable) -> Tensor:
    """The position of the token that completes the last occurrence of each row's question.

    Args:
        questions: one text per row.
        decode: token ids (list of int) -> text, special tokens included.

    Returns:
        int64 [B].

    Raises:
        ValueError: a question that its row does not contain.
    """
    if prompt.ids is None:
        raise ValueError("query as text needs input_ids; the model was given inputs_embeds")
    positions = []
    for row, (ids, visible, question) in enumerate(
        zip(prompt.ids, prompt.visible, questions, strict=True)
    ):
        # Image placeholders are left out of the text: they are many and hold no words.
        place = (visible & ~prompt.image[row]).nonzero().flatten()
        tokens = ids[place].tolist()
        said = unicodedata.normalize("NFC", question)  # which tokenizers do to what they read
        total = decode(tokens).count(said)
        if not question or not total:
            raise ValueError(
                f"query={question!r} does not occur in the prompt of row {row}: give the question "
                "as it stands there, or its last token's position"
            )
        # The count of occurrences grows with the prefix, so the last one ends at the first
        # prefix that has them all.
        low, high = 0, len(tokens)
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (
                (low, middle) if decode(tokens[:middle]).count(said) >= total else (middle, high)
            )
        positions.append(int(place[high - 1]))
    return torch.tensor(positions)


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
    for row, (images, row_grids) in enumerate(zip(masks, prompt.grids, strict=True)):
        for cell, grid in zip(images, row_grids, strict=True):
            mask[row, grid.index] = cell.flatten()
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
