"""A prompt that is through, and what its rows are steered to."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from vrga.config import VRGAConfig
from vrga.hf.host import Host
from vrga.hf.prompt_reader import PromptReader
from vrga.kernels.api import Kernels
from vrga.method.region import Region, empty_region
from vrga.method.timeline import Timeline
from vrga.steering.asked_prompt import AskedPrompt
from vrga.steering.settings import Options


@dataclass(frozen=True)
class Located:
    """A prompt whose regions are located.

    Args:
        asked: the prompt; timeline: of its rows' regions.
        question: the text of each row's question, bool [B, S].
        reached: keys in the cache.
        host, reader, options, kernels: as of its run.
    """

    asked: AskedPrompt
    timeline: Timeline
    question: Tensor
    reached: int
    host: Host
    reader: PromptReader
    options: Options
    kernels: Kernels

    @classmethod
    def of(
        cls,
        asked: AskedPrompt,
        found: dict[int, Region],
        reached: int,
        *,
        host: Host,
        reader: PromptReader,
        options: Options,
        kernels: Kernels,
    ) -> Located:
        """Put the rows' regions together: those found, of rows with an image, or given.

        Raises:
            ValueError: cells given that do not fit the images, or to a method that reads none.
        """
        prompt, length = asked.prompt, asked.prompt.image.shape[1]
        question = reader.question(prompt, asked.query, set(options.ends))
        regions = [
            found[row] if grids else empty_region(int(asked.query[row]), length, host.shape)
            for row, grids in enumerate(prompt.grids)
        ]
        words = reader.words(prompt, question)
        regions = [replace(r, question=said) for r, said in zip(regions, words, strict=True)]
        if options.given is not None:
            if options.config.method == "ablation":
                raise ValueError("patch.given is not read by method='ablation': set it to None")
            masks = asked.keys_of(options.given, "given")
            regions = [replace(r, mask=m) for r, m in zip(regions, masks, strict=True)]
        timeline = Timeline(regions, reached)
        return cls(asked, timeline, question, reached, host, reader, options, kernels)

    @property
    def config(self) -> VRGAConfig:
        """The configuration in force for this prompt."""
        return self.options.config
