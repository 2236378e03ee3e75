"""What the heads did, step by step, without output_attentions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from vrga.annotations import Tokenizer
from vrga.lookback import TAG
from vrga.method.region import Region
from vrga.method.timeline import Relocation, Timeline
from vrga.recording.row_images import fitted
from vrga.recording.token_texts import back_spans, runs
from vrga.recording.transcript import Transcript

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure
    from PIL import Image

SHARES = ("image", "region", "watched", "question", "prompt", "generated")
MEASURES = (*SHARES, "entropy", "spread", "gate")


class Filled(NamedTuple):
    """Parts of a trace that is not empty; see `Trace`."""

    image: Tensor
    region: Tensor
    steps: Tensor
    layers: Tensor


@dataclass
class Trace:
    """Attention of each decode step as it was after steering, on the CPU; empty until filled.

    Every tensor is float32 [steps, L, B, H] unless said otherwise. Step 0 is the forward pass
    whose query is the first generated token, step s the one of token s. Drafts that were rejected
    are left out. The last token of an answer is no query. Steps and layers are those that were
    asked for.

    Args:
        image: mass on the image tokens.
        region: mass on the region T of that step, see `region_at` (with `VRGAConfig.ablation`: on
            the image).
        watched: mass on the watched cells; None without `watch`.
        question: mass on the question's text, from the last image or marker before it up to its
            last token; None with `watch`, and for the hard mask and ablations.
        prompt: mass on the prompt's other text, likewise.
        generated: mass on generated tokens, likewise.
        entropy: H_mass in nats, before steering.
        spread: H_img in nats, before steering: the entropy of attention over the image's tokens;
            NaN where a head gives the image none, as in rows without an image.
        gate: 1 where the gate was open; with gain 1, where it would have been.
        inside: whether each row was inside a <back> span, bool [steps, B]; None where the patch
            has no tokenizer, or was given no token ids.
        uncertainty: entropy in nats of the distribution that each step's token was drawn from,
            [steps, B]; None unless `when` or `relocate` is "uncertain".
        steps: number of each step, int64 [steps]; layers: of each layer, int64 [L].
        maps: attention on every image token, float16 [steps, heads, B, n], in the order of the
            row's grids, zero where a row has fewer; None without `maps`.
        heads: (layer, head) of `maps`, int64 [heads, 2].
        layer_maps: the mean over each layer's heads, float16 [steps, L, B, n]; None without
            `layer_maps`.
        regions: what was steered to at first, one per row.
        relocated: with a `relocate`, the regions that came later, in the order of steps.
        ends: where each row's answer ends, int64 [B]: steps below are of its tokens, and later ones
            of padding, which tables, pictures and reports leave out; None where it is not known.
        ids: generated token ids, int64 [B, tokens]; None without generate(), and of beams.
        texts: the text that each generated token adds, per row up to its end of sequence; see
            `attach`.
        asked: each row's prompt as text, likewise.
        images: each row's images, one per grid; see `attach`; closer: see `Closer.numbers`.
        config: the config's fields.
        versions: of the packages, and the model's name.
        transcript: what texts are made of; missing: why the trace is empty, where it is.
    """

    image: Tensor | None = None
    region: Tensor | None = None
    watched: Tensor | None = None
    question: Tensor | None = None
    prompt: Tensor | None = None
    generated: Tensor | None = None
    entropy: Tensor | None = None
    spread: Tensor | None = None
    gate: Tensor | None = None
    inside: Tensor | None = None
    uncertainty: Tensor | None = None
    steps: Tensor | None = None
    layers: Tensor | None = None
    maps: Tensor | None = None
    heads: Tensor | None = None
    layer_maps: Tensor | None = None
    regions: list[Region] = field(default_factory=list)
    relocated: list[Relocation] = field(default_factory=list)
    ends: Tensor | None = None
    ids: Tensor | None = None
    texts: list[list[str]] | None = None
    asked: list[str] | None = None
    images: list[list[Image.Image]] | None = None
    closer: dict | None = None
    config: dict = field(default_factory=dict)
    versions: dict = field(default_factory=dict)
    transcript: Transcript | None = field(default=None, repr=False)
    missing: str = field(default="it was not recorded yet", repr=False)

    def __repr__(self) -> str:
        if self.image is None:
            return f"Trace(empty: {self.missing})"
        steps, layers, rows, heads = self.image.shape
        parts = [f"{steps} steps", f"{layers} layers of {heads} heads"]
        parts += [f"{rows} rows"] if rows > 1 else []
        parts += [f"maps of {len(self.heads)} heads"] if self.heads is not None else []
        if self.texts is not None:
            text = " ".join("".join(self.texts[0]).split())
            parts.append(repr(text if len(text) <= 60 else text[:57] + "..."))
        return f"Trace({', '.join(parts)})"

    def plot(self, row: int = 0, *, kind: str = "trend", **options: Any) -> Figure:
        """A figure of one row, see `vrga.plots`.

        Args:
            row: of the batch.
            kind: "trend", where attention goes token by token (`trend_figure`), or "tokens", where
                it is on the image at some tokens (`token_figure`; needs `maps`).
            options: of that function, e.g. heads.

        Raises:
            ImportError: matplotlib is missing.
            ValueError: another kind, or as of those functions.
        """
        if kind not in ("trend", "tokens"):
            raise ValueError(f"kind={kind!r}: known are trend, tokens")
        try:
            from vrga import plots
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install 'vrga[plot]'") from error
        if kind == "trend":
            return plots.trend_figure(self, row, **options)
        return plots.token_figure(self, row=row, **options)

    def attach(
        self,
        tokenizer: Tokenizer | None = None,
        images: Sequence[Sequence[Image.Image]] | None = None,
    ) -> Trace:
        """Add what a report shows and the model does not know: texts and images.

        Args:
            tokenizer: the processor's; None is the one that the patch knows or the model's own,
                and without any the texts stay unknown.
            images: for each row, its images, one for each of the region's grids; of a video
                frames, as many or a multiple.

        Returns:
            The trace itself.

        Raises:
            ValueError: not as many images as the rows have grids.
        """
        if images is not None:
            if len(images) != len(self.regions):
                raise ValueError(
                    f"images of {len(images)} rows given; the trace has {len(self.regions)}"
                )
            self.images = [
                fitted(row, region) for row, region in zip(images, self.regions, strict=True)
            ]
        if self.ids is not None and self.transcript is not None:
            told = self.transcript.told(self.regions, tokenizer)
            if told is not None:  # else a report shows the tokens' numbers
                self.texts, asked = told
                self.asked = self.asked if asked is None else asked
        return self

    def save(self, path: str | Path) -> Path:
        """Write the trace to a folder: trace.json, trace.safetensors, and its images as PNG.

        Texts are added first, see `attach`, where a tokenizer is known.

        Raises:
            ValueError: an empty trace, one with NaN in its shares, or a folder with other files.
        """
        from vrga.recording.trace_folder import write

        if self.texts is None:
            self.attach()
        return write(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a folder that `save` wrote.

        Raises:
            FileNotFoundError: no trace there.
            PermissionError: one that may not be read.
            ValueError: a damaged one, or one of another format. What is returned is whole: every
                part has its shape and dtype, and shares of attention are finite.
        """
        from vrga.recording.trace_folder import read

        return read(Path(path))

    def to_pandas(self) -> pandas.DataFrame:
        """One line for each layer, head and row of the batch at each step of the row's answer.

        Columns: step, layer, head, row, the measures that were taken, `inside` where spans were
        followed, `uncertainty` where it decided, and `text`, the token that was the query, where
        texts are known.

        Raises:
            ImportError: pandas is missing.
            ValueError: an empty trace.
        """
        from vrga.recording.trace_frame import frame

        return frame(self)

    def check_filled(self) -> None:
        """Raise ValueError for a trace of no step."""
        if self.image is None:
            raise ValueError(f"the trace is empty: {self.missing}")

    def filled(self) -> Filled:
        """What all traces but an empty one have.

        Raises:
            ValueError: as of `check_filled`.
        """
        self.check_filled()
        assert self.image is not None and self.region is not None
        assert self.steps is not None and self.layers is not None
        return Filled(self.image, self.region, self.steps, self.layers)

    def steps_of(self, row: int) -> list[int]:
        """The recorded steps that are of the row's answer; they are the first ones.

        Raises:
            ValueError: an empty trace, a row that it does not have, or one with no such step.
        """
        own = self.filled()
        rows, steps = own.image.shape[2], own.steps.tolist()
        if not 0 <= row < rows:
            raise ValueError(f"row={row}: the trace has rows 0 to {rows - 1}")
        end = steps[-1] + 1 if self.ends is None else int(self.ends[row])
        found = [step for step in steps if step < end]
        if not found:
            raise ValueError(
                f"row {row} has nothing to show: of its {end + 1} tokens the last is not measured, "
                f"and the first recorded step is {steps[0]}"
            )
        return found

    def region_at(self, row: int, step: int) -> Region:
        """What the row was steered to at a step."""
        return Timeline(self.regions, relocated=self.relocated).at(row, step)

    def map_of(self, row: int, heads: Tensor | None = None) -> Tensor:
        """Mean attention of some heads on the row's image tokens, float32 [steps, n].

        Steps are those of `steps_of`.

        Args:
            heads: bool [L, H] over all of the model's layers; None is the row's visual heads.

        Raises:
            ValueError: as of `steps_of`; no head, or heads whose maps were not recorded.
        """
        steps = len(self.steps_of(row))
        region = self.regions[row]
        heads = region.visual if heads is None else heads
        wanted = [tuple(pair) for pair in heads.nonzero().tolist()]
        known = [] if self.heads is None else [tuple(pair) for pair in self.heads.tolist()]
        missing = [pair for pair in wanted if pair not in known]
        if self.maps is None or missing or not wanted:
            raise ValueError(
                f"no maps of {len(missing) or 'any'} heads (layer, head) {missing[:3]}: record "
                "them, patch.record(maps='visual')"
            )
        n = sum(grid.h * grid.w for grid in region.grids)
        return self.maps[:steps, [known.index(pair) for pair in wanted], row, :n].float().mean(1)

    def spans(self, row: int) -> list[tuple[int, int]]:
        """The row's <back> spans as [first, end) in recorded steps, by `inside` or the texts."""
        steps = self.steps_of(row)
        if self.inside is not None:
            inside = self.inside[: len(steps), row].tolist()
        elif self.texts is not None:
            # A trace of before there were other tags does not name one.
            said = back_spans(self.texts[row], self.config.get("tag", TAG))
            inside = [said[step] for step in steps]
        else:
            return []
        return runs(inside)
