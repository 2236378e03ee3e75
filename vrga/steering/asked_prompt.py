"""A prompt that was read, and where its questions look from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vrga.config import VRGAConfig
from vrga.hf.announced_prompt import AnnouncedPrompt
from vrga.hf.host import Host
from vrga.hf.inputs import ForwardInputs
from vrga.hf.prompt_reader import PromptReader
from vrga.kernels.api import Kernels
from vrga.method.attention_rows import Sample
from vrga.method.call import exactly
from vrga.method.prompt import GridCells, Prompt, cells_mask, check_query, visible_keys
from vrga.method.region import Region, find_regions
from vrga.method.table import rules_of
from vrga.steering.probe import Probe
from vrga.steering.settings import Options


@dataclass(frozen=True)
class AskedPrompt:
    """A prompt, and its questions.

    Args:
        prompt: what its tokens are; query: positions of the questions' last tokens, int64 [B].
        words: positions of all of each question's words, where they are asked for, or None.
        end: keys in the cache when it is through.
        last_query: the last of the positions.
        device: of its inputs.
    """

    prompt: Prompt
    query: Tensor
    words: list[list[int]] | None
    end: int
    last_query: int
    device: torch.device

    @classmethod
    def read(
        cls,
        inputs: ForwardInputs,
        past: int,
        announced: AnnouncedPrompt | None,
        held: Prompt | None,
        *,
        reader: PromptReader,
        host: Host,
        options: Options,
    ) -> AskedPrompt:
        """Read it from its first forward pass.

        Args:
            inputs: of the pass, behind `past` keys.
            announced: what generate() was given, or None.
            held: the prompt that the cache holds already, or None.

        Raises:
            ValueError: images and grids that do not match, or a query that cannot be.
        """
        rows, width, mask = inputs.rows, inputs.width, inputs.mask
        if mask is not None and mask.ndim == 4:  # as generate() makes it for a static cache
            mask = visible_keys(mask, past + width).expand(rows, -1)
        if announced is not None:
            prompt, start = reader.read_announced(announced, rows, mask, held, past)
            end = announced.end(past)
        else:
            prompt, start = reader.read(inputs.named, (rows, width), mask), past
            if past:
                assert held is not None  # else `what_is` has refused the pass
                prompt = held.extend(prompt, past)
                if mask is not None and mask.shape[1] == past + width:
                    prompt = replace(prompt, visible=mask.cpu() != 0)
            end = past + width
        given = inputs if announced is None else announced.inputs
        host.check_positions(given, any(prompt.later(start).grids))
        ends = set(options.ends)
        query = check_query(reader.positions(prompt, options.query, start, ends), prompt)
        words = None
        if options.config.question == "whole":
            words = reader.content(prompt, query, ends)
        return cls(prompt, query, words, end, int(query.max()), inputs.tokens.device)

    def keys_of(self, cells: GridCells, name: str) -> Tensor:
        """Cells of the images as keys of the prompt, bool [B, S].

        Raises:
            ValueError: cells that do not fit the images.
        """
        given = cells(self.prompt.grids) if callable(cells) else cells
        return cells_mask(given, self.prompt, name)

    def probe(self, config: VRGAConfig, kernels: Kernels, past: int) -> Probe | None:
        """The probe of the questions' rows; None where no row has an image.

        Args:
            past: keys before the prompt's first pass.

        Raises:
            ValueError: a question that ends before that pass, or that begins before it where all
                of its words are asked for.
        """
        shift = 1 if config.reproduces else 0  # it probes the token before the question's last
        rows = [row for row, grids in enumerate(self.prompt.grids) if grids]
        probed = (self.query - shift).tolist()
        if any(probed[row] < past for row in rows):
            raise ValueError(
                f"query={self.query.tolist()} lies before the tokens of this forward pass, which "
                f"start at {past + shift}: give the position of the new question"
            )
        if not rows:
            return None
        if self.words is not None and any(self.words[row][0] < past for row in rows):
            first = min(self.words[row][0] for row in rows)
            raise ValueError(
                f"question='whole' needs every word of the question in this prompt's passes, and "
                f"{past} tokens were cached before, of which one at {first} is a word of it: "
                "fill the cache up to the image alone, or set question='last'"
            )
        grids = self.prompt.grids
        probed = [place if row else -1 for place, row in zip(probed, grids, strict=True)]
        return Probe(probed, self.prompt.visible, kernels, self.words)

    def probe_at(self, opened: Tensor, kernels: Kernels, past: int) -> Probe | None:
        """The probe of tokens amid the answer; None where no row with an image has any.

        Args:
            opened: which tokens of a pass, bool [B, Q] on the CPU; past: keys before the pass.
        """
        opened = opened & torch.tensor(
            [bool(grids) for grids in self.prompt.grids], device="cpu"
        )[:, None]  # fmt: skip
        if not opened.any():
            return None
        # A row may open several spans in a block of drafts; the last one counts.
        places = torch.arange(past, past + opened.shape[1], device="cpu")
        place = torch.where(opened, places, -1).amax(1)
        later = past + opened.shape[1] - self.prompt.visible.shape[1]
        visible = torch.nn.functional.pad(self.prompt.visible, (0, later), value=True)
        return Probe(place.tolist(), visible, kernels)

    def regions(
        self, probe: Probe, queries: list[int], config: VRGAConfig, host: Host
    ) -> dict[int, Region]:
        """Regions of the rows whose query row is in the pass that ends here.

        Args:
            queries: position of each row's last question token.

        Raises:
            ValueError: a method that reproduces code without sliding windows, where there are some.
        """
        rows = probe.here
        if not rows:
            return {}
        if probe.windowed and config.reproduces:
            raise ValueError(
                f"method={config.method!r} reproduces code without sliding windows, which "
                f"{type(host.text).__name__} has: use VRGAConfig.paper()"
            )
        samples, rules = [], rules_of(config)
        for row in rows:
            seen = probe.seen(row)
            if config.reproduces:
                # The released code averages over the whole row, keys after the query included.
                seen = self.prompt.visible[row].expand_as(seen)
            samples.append(Sample(self.prompt.grids[row], queries[row], seen))
        attention = probe.rows(rows, host.shape[0])
        with exactly(self.device):
            return dict(zip(rows, find_regions(attention, samples, config, rules), strict=True))
