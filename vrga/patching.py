"""patch and unpatch: the only module that edits a model."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType

import torch
from torch import Tensor, nn

from vrga.attention import KEYWORD, Probe, register
from vrga.config import VRGAConfig
from vrga.models import family_of
from vrga.reading import PromptReader
from vrga.region import Region, empty_region, find_region
from vrga.released import released_region
from vrga.steering import Steering, check_implementation
from vrga.tokens import Prompt, Query, cells_mask, check_query, visible_keys
from vrga.trace import Recorder, Trace


def patch(
    model: nn.Module,
    config: VRGAConfig | None = None,
    *,
    query: Query = "user_end",
    impl: str = "auto",
    tokenizer: object | None = None,
) -> Patch:
    """Make `model.generate` steer attention to the region its question is about.

    Only the language model's attention changes: the prefill runs on the attention backend the
    model had, with one probed row per sample and layer; every later step is steered.

    Args:
        model: a loaded model of a supported family, e.g. Qwen2_5_VLForConditionalGeneration.
        config: the method's numbers; None is `VRGAConfig()`.
        query: where each row's question ends, see `Patch.query`.
        impl: "torch" (any device), "triton" (CUDA), or "auto": Triton on CUDA, else torch.
        tokenizer: needed only for `query` as text; None loads the one of `model.name_or_path`.

    Returns:
        The patch; as a context manager it takes itself off at the end, also after an exception.

    Raises:
        ValueError: an unsupported model, one that is patched already, or a bad argument. The
            model is unchanged then.
    """
    return Patch(model, config, query=query, impl=impl, tokenizer=tokenizer)


def unpatch(model: nn.Module) -> bool:
    """Take the patch off; the model is exactly as before. False if there was none."""
    found = patch_of(model)
    if found is not None:
        found.remove()
    return found is not None


def patch_of(model: nn.Module) -> Patch | None:
    """The patch a model carries, or None."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, Patch):
                return owner
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
        given: regions to steer to in place of those found, in the form of `record`'s `watch`;
            None (default) steers to what was found.
    """

    def __init__(
        self,
        model: nn.Module,
        config: VRGAConfig | None = None,
        *,
        query: Query = "user_end",
        impl: str = "auto",
        tokenizer: object | None = None,
    ):
        config = VRGAConfig() if config is None else config
        if not isinstance(config, VRGAConfig):
            raise ValueError(f"config={config!r} is not a VRGAConfig")
        family = family_of(model)
        if patch_of(model) is not None:
            raise ValueError(
                "the model is patched already: call vrga.unpatch(model) first, or set the config "
                "of the patch it has"
            )
        check_implementation(impl, next(model.parameters()).device)
        self.model, self.config, self.query, self.impl = model, config, query, impl
        self.enabled = True
        self.given: list[list[Tensor]] | None = None
        self._family = family
        self._reader = PromptReader(model, family, tokenizer)
        self._outer, self._text = family.modules(model)
        if "sliding_attention" in (getattr(self._text.config, "layer_types", None) or ()):
            raise ValueError(
                f"{type(self._text).__name__} has sliding-window layers, whose cache drops image "
                "tokens: load it with use_sliding_window=False"
            )
        self._parameters = list(inspect.signature(self._outer.forward).parameters)
        self._step: Probe | Steering | None = None
        self._prompt: Prompt | None = None
        self._query: Tensor | None = None
        self._regions: list[Region] | None = None
        self._cache: Callable[[], object] = lambda: None
        self._recording: tuple[Recorder, object] | None = None

        own = self._text.config._attn_implementation
        self._name = register(own)
        self._own = own
        self._set_attention(self._name)
        if self._text.config._attn_implementation != self._name:
            raise ValueError(
                f"{type(self._text).__name__} does not let its attention be replaced; it has no "
                "attention interface in this version of transformers"
            )
        self._handles = [
            self._outer.register_forward_pre_hook(self._before, with_kwargs=True),
            self._text.register_forward_pre_hook(self._inject, with_kwargs=True),
            self._text.register_forward_hook(self._after, with_kwargs=True),
        ]
        for method in family.refused:
            if hasattr(model, method):
                model.__dict__[method] = _refuse(method)

    def _set_attention(self, name: str) -> None:
        # By the key of the sub-config, so that the vision tower keeps its own implementation.
        self.model.set_attn_implementation({self._family.text_config: name})

    def remove(self) -> None:
        """Take the patch off. Doing it twice does nothing."""
        for handle in self._handles:
            handle.remove()
        if self._handles:
            for method in self._family.refused:
                self.model.__dict__.pop(method, None)
            if self._text.config._attn_implementation == self._name:
                self._set_attention(self._own)
        self._handles = []
        self._step = None

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    @property
    def region(self) -> list[Region]:
        """What the last prompt's questions look at, one `Region` per row of the batch.

        Raises:
            RuntimeError: no prompt has been seen yet.
        """
        if self._regions is None:
            raise RuntimeError("no region yet: run model.generate(...) with the patch enabled")
        return self._regions

    @contextmanager
    def record(self, watch: list[list[Tensor]] | None = None) -> Iterator[Trace]:
        """Measure where every head looks at each decode step, without output_attentions.

        The block holds one call of generate, prefill included.

        Args:
            watch: cells whose share of attention is measured beside the region's: for each row,
                for each of its images, bool [h, w] on the image's token grid.

        Yields:
            The trace; it can be read when the block is left.
        """
        recorder, trace = Recorder(), Trace()
        self._recording = (recorder, watch)
        try:
            yield trace
        finally:
            self._recording = None
            if isinstance(self._step, Steering):
                self._step.recorder = None
                self._step = self._step if self._step.applied else None
        trace.fill(recorder)

    # --- hooks ---

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before the multimodal model: decide what this forward pass is."""
        if not self.enabled:
            return
        inputs = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        _check_inputs(inputs, module)
        ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
        shape = tuple(ids.shape if ids is not None else embeds.shape[:2])
        if torch.compiler.is_compiling() and shape[1] == 1:
            return  # compiled decoding: the state of the prefill stands
        if self._text.config._attn_implementation != self._name:
            raise RuntimeError(
                f"the attention implementation was changed to "
                f"{self._text.config._attn_implementation!r} while the model is patched: call "
                "vrga.unpatch(model) first"
            )
        cache = inputs.get("past_key_values")
        known = cache is not None and cache is self._cache()
        if not (known and shape[1] == 1):
            past = 0 if cache is None else int(cache.get_seq_length())
            if past and not known:
                raise ValueError(
                    f"the cache holds {past} tokens of a prompt this patch has not seen: fill it "
                    "with the patched model, or switch the patch off (patch.enabled = False)"
                )
            if not past or self._opens_turn(ids, inputs):
                self._prefill(inputs, shape, past)
                return
        if isinstance(self._step, Steering):
            self._step.begin()

    def _opens_turn(self, ids: Tensor | None, inputs: dict) -> bool:
        """Whether tokens that follow a cached prompt bring a new question."""
        if inputs.get("pixel_values") is not None or inputs.get("pixel_values_videos") is not None:
            return True
        if ids is None:
            return False
        ends = torch.tensor(sorted(self._reader.end_tokens()), device=ids.device)
        # A closed turn goes on with the next one's header; a drafted answer ends with its end.
        return bool(torch.isin(ids[:, :-1], ends).any())

    def _prefill(self, inputs: dict, shape: tuple, past: int) -> None:
        """Read the prompt and set up the probe of its query rows."""
        mask = inputs.get("attention_mask")
        if isinstance(mask, dict):
            mask = mask["full_attention"]
        if mask is not None and mask.ndim == 4:  # as generate() makes it for a static cache
            mask = visible_keys(mask, past + shape[1]).expand(shape[0], -1)
        prompt = self._reader.read(inputs, mask, shape)
        query = self._reader.positions(prompt, self.query, past)
        if past:
            prompt = self._prompt.extend(prompt, past)
            if mask is not None and mask.shape[1] == past + shape[1]:
                prompt = replace(prompt, visible=mask.cpu() != 0)
        query = check_query(query, prompt)
        self._prompt, self._query, self._regions = prompt, query, None
        rows = [row for row, grids in enumerate(prompt.grids) if grids]
        probed = (query - self._query_shift()).tolist()
        if any(probed[row] < past for row in rows):
            raise ValueError(
                f"query={query.tolist()} lies before the tokens of this forward pass, which start "
                f"at {past + self._query_shift()}: give the position of the new question"
            )
        self._step = None
        if not rows:
            self._locate(None)
            return
        probed = [place if grids else -1 for place, grids in zip(probed, prompt.grids, strict=True)]
        self._step = Probe(probed, prompt.visible, self.impl)
        self._step.begin(past)

    def _query_shift(self) -> int:
        # The released code probes the token before the question's last.
        return 0 if self.config.method == "vrga" else 1

    def _inject(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Before the text model: hand this step to its attention layers."""
        if not self.enabled or self._step is None:
            return None
        return args, {**kwargs, KEYWORD: self._step}

    def _after(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        """After the text model's prefill: find the regions, and steer from here on."""
        if not self.enabled:
            return
        if torch.compiler.is_compiling() and not isinstance(self._step, Probe):
            return
        cache = getattr(output, "past_key_values", None)
        if cache is not None and cache is not self._cache():
            self._cache = weakref.ref(cache)
        if not isinstance(self._step, Probe):
            return
        probe, self._step = self._step, None
        self._locate(probe)

    def _locate(self, probe: Probe | None) -> None:
        """Turn probed attention rows into regions and the steering; None: no row has an image."""
        config, prompt = self.config, self._prompt
        text, length = self._text.config, prompt.image.shape[1]
        shape = (text.num_hidden_layers, text.num_attention_heads)
        find = find_region if config.method == "vrga" else released_region
        regions = []
        for row, grids in enumerate(prompt.grids):
            query = int(self._query[row])
            if not grids:
                regions.append(empty_region(query, length, shape))
                continue
            visible = prompt.visible[row]
            # The released code averages over the whole row, keys after the query included.
            keys = visible[: query + 1] if config.method == "vrga" else visible
            rows = probe.attention_rows(row, shape[0])
            regions.append(find(rows, grids, query, int(keys.sum()), config))
        self._regions = regions
        self._step = self._steering(regions, probe.capacity) if probe is not None else None

    def _steering(self, regions: list[Region], capacity: int) -> Steering | None:
        """What the decode steps do; None where they do what the unpatched model does."""
        if self.given is not None:
            if self.config.method == "ablation":
                raise ValueError("patch.given is not read by method='ablation': set it to None")
            masks = cells_mask(self.given, self._prompt, "given")
            regions = [replace(r, mask=m) for r, m in zip(regions, masks, strict=True)]
        off = self.config.gain == 1 and self.config.method in ("vrga", "released")
        if off and self._recording is None:
            return None
        watch = recorder = None
        if self._recording is not None:
            recorder, watch = self._recording
            if recorder.steps:
                raise ValueError("a trace holds one call of generate: record each on its own")
            watch = None if watch is None else cells_mask(watch, self._prompt, "watch")
        steering = Steering(
            regions, self.config, self.impl, applied=not off, watch=watch, recorder=recorder,
            capacity=capacity,
        )  # fmt: skip
        steering.begin()
        return steering


def _refuse(method: str) -> Callable:
    def refused(*args, **kwargs):
        raise ValueError(
            f"{method} packs requests into one row and hides the cache, so a patched model cannot "
            "steer it: use model.generate, or vrga.unpatch(model) first"
        )

    return refused


def _check_inputs(inputs: dict, module: nn.Module) -> None:
    """Refuse forward arguments that steering cannot serve."""
    wanted = inputs.get("output_attentions")
    if wanted or (wanted is None and getattr(module.config, "output_attentions", False)):
        raise ValueError(
            "output_attentions=True is not available on a patched model, whose decode kernel "
            "never builds the attention matrix: use patch.record(), or patch.enabled = False"
        )
