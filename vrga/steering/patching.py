"""patch and unpatch: what a user holds of a patched model."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from vrga.config import VRGAConfig
from vrga.config_file import FILE
from vrga.hf.announced_prompt import AnnouncedPrompt
from vrga.hf.chosen_config import checkpoint_of, choose
from vrga.hf.host import Host
from vrga.hf.inputs import ForwardInputs
from vrga.hf.pipelines import parts_of
from vrga.hf.prompt_reader import PromptReader
from vrga.hf.question_ends import Query
from vrga.hf.versions import warn_if_untested
from vrga.kernels.api import check_implementation
from vrga.method.prompt import GridCells
from vrga.method.region import Region
from vrga.method.timeline import Episode
from vrga.recording.choices import Heads
from vrga.recording.filling import fill
from vrga.recording.recorder import Recorder
from vrga.recording.trace import Trace
from vrga.steering.hooks import Hooks
from vrga.steering.record_block import Recording
from vrga.steering.settings import check_names, check_setting
from vrga.steering.steps import Steps

if TYPE_CHECKING:
    from vrga.hf.pipelines import Pipeline


def patch(
    model: nn.Module | Pipeline,
    config: VRGAConfig | str | None = None,
    *,
    query: Query = "user_end",
    impl: str = "auto",
    tokenizer: object | None = None,
    **fields: object,
) -> Patch:
    """Make `model.generate` steer attention to the region its question is about.

    Only the language model's attention changes: the prefill runs on the attention backend the
    model had, with one probed row per sample and layer; every later step is steered.

    Args:
        model: a loaded model of a supported family, e.g. Qwen2_5_VLForConditionalGeneration; or a
            pipeline of transformers, whose model is patched and whose tokenizer is taken.
        config: the method's numbers, or the name of a preset, e.g. "published". None is what the
            checkpoint brings in vrga_config.json beside its weights, else `VRGAConfig()`, the
            paper's. Of a hub id the cache alone is read.
        query: where each row's question ends, see `Patch.query`.
        impl: "torch" (any device), "triton" (CUDA), or "auto": Triton on CUDA, else torch.
        tokenizer: needed only for `query` as text and for <back> spans; None loads the one of
            `model.name_or_path`.
        fields: of the configuration, over its own: `patch(model, gain=2)`.

    Returns:
        The patch; as a context manager it takes itself off at the end, also after an exception.

    Raises:
        ValueError: an unsupported model, one that is patched already, a bad argument, or a damaged
            vrga_config.json. The model is unchanged then.
        TypeError: a name that is neither an argument nor a field.
    """
    return Patch(model, config, query=query, impl=impl, tokenizer=tokenizer, **fields)


def unpatch(model: nn.Module | Pipeline) -> bool:
    """Take the patch off; the model is exactly as before. False if there was none."""
    found = patch_of(parts_of(model)[0])
    if found is not None:
        found.remove()
    return found is not None


def patch_of(model: nn.Module) -> Patch | None:
    """The patch a model carries, or None."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, Hooks) and isinstance(owner.settings, Patch):
                return owner.settings
    return None


class Patch:
    """One patched model, and what the method found in the last prompt.

    Attributes:
        config: the `VRGAConfig` in force; set it between two calls of generate.
        enabled: False switches the model back to its own attention without unpatching.
        query: where each row's question ends, that is the position of its last token in the
            padded row. "user_end" (default): the last text token of the last closed turn. Or:
            an int tensor [B]; a text, or one text per row, searched in the prompt (the last
            occurrence counts); a callable (input_ids [B, S], visible [B, S]) -> int tensor [B].
            In a later turn on the same cache, positions count from the first cached token; texts
            and callables see the new tokens alone.
        given: regions to steer to in place of those found, in the form of `record`'s `watch`, or
            a callable as there; None (default) steers to what was found.
        ablated: heads that lose the image in every decode step, with
            `VRGAConfig.ablation("given")`: bool [L, H] for all rows, [B, L, H], or a callable
            that makes such from the rows' regions, e.g. `lambda regions:
            torch.stack([region.visual for region in regions])`.
    """

    def __init__(
        self,
        model: nn.Module | Pipeline,
        config: VRGAConfig | str | None = None,
        *,
        query: Query = "user_end",
        impl: str = "auto",
        tokenizer: object | None = None,
        **fields: object,
    ):
        check_names(fields)
        model, _, own = parts_of(model)
        tokenizer = own if tokenizer is None else tokenizer
        self._host = Host(model)
        chosen = choose(config, fields, *checkpoint_of(self._host.model))
        self.config = chosen.config
        self._chosen = chosen
        if patch_of(self._host.model) is not None:
            raise ValueError(
                "the model is patched already: call vrga.unpatch(model) first, or set the config "
                "of the patch it has"
            )
        check_implementation(impl, self._host.device)
        self._impl = impl
        self.query = query
        self.enabled = True
        self.given: GridCells | None = None
        self.ablated: Tensor | Callable | None = None
        self._reader = PromptReader(self._host, tokenizer)
        self._hooks = Hooks(self._host, self._reader, self)
        warn_if_untested()
        self._hooks.attach()

    def __setattr__(self, name: str, value: object) -> None:
        check_setting(name, value)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        run = self._hooks.run
        config = self.config if run is None else run.config
        parts = [self._host.family.title]
        parts.append(f"gain {config.gain:g}" if config.boosts else config.method)
        if config is self._chosen.config and self._chosen.path is not None:
            parts[-1] += f", others from {FILE}" if self._chosen.fields else f" from {FILE}"
        if not self._host.attachment.is_attached:
            parts.append("taken off")
        elif not self.enabled:
            parts.append("switched off")
        if run is None or not run.is_located:
            return f"Patch({', '.join([*parts, 'no prompt yet'])})"
        return f"Patch({', '.join([*parts, *run.told])})"

    def remove(self) -> None:
        """Take the patch off. Doing it twice does nothing."""
        self._hooks.detach()

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def __deepcopy__(self, memo: dict) -> Patch:
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        vars(twin).update({name: copy.deepcopy(own, memo) for name, own in vars(self).items()})
        return twin

    def __reduce__(self) -> tuple:
        raise pickle.PicklingError(
            "a patched model cannot be saved or sent as a pickle: its patch holds hooks of this "
            "process. Call vrga.unpatch(model) first (or save its weights alone, with "
            "model.save_pretrained), and patch it anew where it is loaded"
        )

    # --- what was found ---

    @property
    def model(self) -> nn.Module:
        """The model that is patched."""
        return self._host.model

    @property
    def impl(self) -> str:
        """ "auto", "torch" or "triton", as `patch` was given it."""
        return self._impl

    @property
    def region(self) -> list[Region]:
        """What the last prompt's questions look at, one `Region` per row of the batch.

        Of several threads, each sees its own last prompt.

        Raises:
            RuntimeError: no prompt has been seen yet.
        """
        run = self._hooks.located
        if run is None:
            raise RuntimeError("no region yet: run model.generate(...) with the patch enabled")
        return run.regions

    @property
    def steps(self) -> list[Steps]:
        """What became of the last answer's steps, one `Steps` per row of the batch.

        For a row with an image, steps steered and steps left alone are together one less than its
        tokens: the first token comes from the prompt's own pass. Reads the device.

        Raises:
            RuntimeError: no prompt has been seen yet.
        """
        run = self._hooks.located
        if run is None:
            raise RuntimeError("no steps yet: run model.generate(...) with the patch enabled")
        return run.answer.steps

    @property
    def episodes(self) -> list[Episode]:
        """With a `relocate`: where the last generation found its region anew, and which."""
        run = self._hooks.located
        return [] if run is None else run.answer.timeline.episodes

    @contextmanager
    def record(
        self,
        watch: GridCells | None = None,
        *,
        layers: Iterable[int] | None = None,
        steps: Container[int] | None = None,
        maps: Heads | None = None,
        layer_maps: bool = False,
    ) -> Iterator[Trace]:
        """Measure where every head looks at each decode step, without output_attentions.

        The block holds one call of generate, prefill included.

        Args:
            watch: cells whose share of attention is measured beside the region's: for each row,
                for each of its images, bool [h, w] on the image's token grid. Or a callable
                that makes them from each row's list of `Grid`.
            layers: those to measure, counted from 0; None is all.
            steps: those to measure, counted from 0, e.g. `range(0, 1000, 10)`; None is all. A step
                is of one generated token, also where drafts bring several in a pass.
            maps: heads of which every measured step's attention on each image token is kept:
                "visual" (H_v of any row), "all", bool [L, H] (of torch or NumPy), or pairs (layer,
                head). 2 bytes for each step, head and image token.
            layer_maps: whether to keep the mean over each measured layer's heads likewise.

        Yields:
            The trace; it can be read when the block is left.

        Raises:
            ValueError: layers, steps or heads that there are not, or that are of another form.
            RuntimeError: the patch records already.
        """
        if self._hooks.recording is not None:
            raise RuntimeError("the patch records already: leave that block of record() first")
        recorder, trace = Recorder(self._host.shape, layers, steps, maps, layer_maps), Trace()
        recording = Recording(recorder, watch, threading.current_thread())
        self._hooks.recording = recording
        try:
            yield trace
            if recording.run is not None:
                recording.run.answer.settle()
        finally:
            self._hooks.recording = None
            if recording.run is not None:
                recording.run.answer.stop_measuring()
        recorder.off = not self.enabled
        fill(trace, recorder, self.config, self._host.model, self._reader.known_tokenizer)

    def announce(self, inputs: dict) -> None:
        """Tell of a prompt whose forward passes are made by hand, in more than one piece.

        Args:
            inputs: what generate() would be given: input_ids [B, S], attention_mask, and what
                the processor returned of the images' sizes. Until S tokens are in the cache, or
                S more where these inputs leave the cached tokens out, every pass is prefill.

        Raises:
            ValueError: neither input_ids nor inputs_embeds.
        """
        self._hooks.announce(AnnouncedPrompt(ForwardInputs.of(dict(inputs))))
