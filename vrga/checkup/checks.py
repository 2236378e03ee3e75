"""The checks: each compares what a patched model does with the plain loops, or bit for bit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import CompileConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vrga
from vrga.checkup.loops import Look, look
from vrga.checkup.models import Subject
from vrga.checkup.result import Check, Status
from vrga.config import VRGAConfig
from vrga.region import Region

TOKENS = 5  # of each answer: the prompt's and four decode steps
STATIC = VRGAConfig()
DYNAMIC = VRGAConfig.published(gain=3.0)
HALF = (torch.float16, torch.bfloat16)
# What lies so near a threshold, as a share of it, may fall on either side of it by rounding.
MARGINS = {torch.float16: 0.1, torch.bfloat16: 0.3}
# Attention backends that transformers brings; there are others that users register.
BACKENDS = ("eager", "sdpa", "flash_attention", "flex_attention")


class Skipped(Exception):
    """A check that cannot be made here; says why."""


class Fault(Exception):
    """Something does not hold.

    Args:
        why: what; figure: largest absolute difference, or None.
    """

    def __init__(self, why: str, figure: float | None = None):
        super().__init__(why)
        self.figure = figure


# What a check returns: the largest absolute difference, and a remark.
Found = tuple[float | None, str]


@dataclass(frozen=True)
class Trial:
    """A check that is still to be made.

    Args:
        name: what ought to hold; make: finds out; advice: what to do where it does not.
    """

    name: str
    make: Callable[[], Found]
    advice: str

    def run(self) -> Check:
        """Make it; whatever is raised becomes part of the result."""
        start = time.perf_counter()
        status: Status
        try:
            figure, why = self.make()
            status = "holds"
        except Skipped as skipped:
            status, figure, why = "skipped", None, str(skipped)
        except Fault as fault:
            status, figure, why = "fails", fault.figure, f"{fault}. {self.advice}"
        except Exception as error:  # of any kind: an installation may break in any way
            told = f"{type(error).__name__}: {first_line(error)}"
            status, figure, why = "fails", None, f"{told}. {self.advice}"
        return Check(self.name, status, figure, why, time.perf_counter() - start)


def first_line(error: BaseException) -> str:
    """What an error says, cut to the first sentence of its first line."""
    line = (str(error).strip().splitlines() or ["(no message)"])[0]
    return line.split(". ")[0][:200]


class Examination:
    """The checks of one model.

    Args:
        subject: the model, unpatched, and what it is asked.
        impl: of `vrga.patch`.
    """

    def __init__(self, subject: Subject, impl: str = "auto"):
        self.subject, self.model, self.impl = subject, subject.model, impl
        self.one = {
            name: value.to(subject.device) for name, value in subject.rows[0].inputs.items()
        }
        self._kept: dict[tuple, Tensor] = {}
        self._attention: dict[int, tuple] = {}

    def trials(self) -> list[Trial]:
        """All of them, in order."""
        off = "Generate without it until then"
        return [
            Trial("unpatched model agrees with the loops", self.unpatched,
                  "The loops and the model disagree before vrga does anything: none of what "
                  "follows can be trusted; use versions that the README names"),
            Trial("region is the method's", self.region,
                  "The model would look elsewhere: do not use vrga here"),
            Trial("steered steps, static gate", lambda: self.steps(STATIC),
                  "Answers are not steered as they should be: do not use vrga here"),
            Trial("steered steps, dynamic gate", lambda: self.steps(DYNAMIC),
                  "Do not use VRGAConfig.published() here"),
            Trial("prefill untouched, bit for bit", self.prefill, "Do not use vrga here"),
            Trial("gain 1 and no image, bit for bit", self.nothing_to_steer,
                  "Unpatch the model for prompts that are not to be steered"),
            Trial("batch with left padding", self.batch, "Generate row by row"),
            Trial("static cache", self.static_cache,
                  f"{off}: leave out cache_implementation='static'"),
            Trial("compiled decoding", self.compiled, f"{off}: pass disable_compile=True"),
            *self._backends(),
            Trial("Triton kernels in generate", self.triton,
                  "Use vrga.patch(model, impl='torch')"),
            Trial("unpatched again, bit for bit", self.unpatch,
                  "Load the model anew instead of unpatching it"),
        ]  # fmt: skip

    # --- what is compared ---

    def _generate(self, inputs: dict[str, Tensor], **options) -> tuple[Tensor, Tensor]:
        """Greedy generation that never stops early: new tokens [B, T] and logits [B, T, V].

        Images are no answer: a random model might give the token of one.
        """
        options = dict(max_new_tokens=TOKENS, min_new_tokens=TOKENS) | options
        out = self.model.generate(
            **inputs, do_sample=False, suppress_tokens=self.subject.vision_tokens,
            return_dict_in_generate=True, output_logits=True, **options,
        )  # fmt: skip
        return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)

    def _patched(
        self, config: VRGAConfig, inputs: dict[str, Tensor], impl: str | None = None, **options
    ) -> tuple[Tensor, Tensor, list[Region]]:
        """What a patched model generates, and its regions."""
        with vrga.patch(self.model, config, impl=impl or self.impl) as patch:
            tokens, logits = self._generate(inputs, **options)
            return tokens, logits, patch.region

    @cached_property
    def _own(self) -> tuple[Tensor, Tensor]:
        """What the unpatched model generates from the first prompt."""
        return self._generate(self.one)

    @cached_property
    def _rounding(self) -> tuple[float, float]:
        """Largest difference between unpatched model and loops; largest logit."""
        tokens, logits = self._own
        wanted = self._loops(0, tokens[0].tolist())
        return distance(logits[0], wanted), float(wanted.abs().max())

    @property
    def tolerance(self) -> float:
        """Differences of logits that are rounding."""
        rounding, scale = self._rounding
        return max(5 * rounding, 1e-4 * scale)

    def _loops(
        self,
        row: int,
        tokens: list[int],
        config: VRGAConfig | None = None,
        found: Look | None = None,
    ) -> Tensor:
        """The loops' logits for an answer; kept, since most checks bring the same one."""
        steered = found and (config, frozenset(found.visual), frozenset(found.region))
        key = row, tuple(tokens), steered
        if key not in self._kept:
            asked = self.subject.rows[row]
            self._kept[key] = self.subject.loops.logits(asked, tokens, config, found)
        return self._kept[key]

    def _look(self, row: int, config: VRGAConfig, visual: set | None = None) -> Look:
        """Where a prompt's question looks, by the loops."""
        if row not in self._attention:
            self._attention[row] = self.subject.loops.attention(self.subject.rows[row])
        return look(*self._attention[row], self.subject.rows[row].pictures, config, visual)

    def _check_region(self, row: int, found: Region, config: VRGAConfig, pads: int = 0) -> float:
        """Compare a region with that of the loops; the largest difference of the maps."""
        asked = self.subject.rows[row]
        if found.query - pads != asked.query:
            raise Fault(
                f"row {row}: the patch took token {found.query - pads} for the end of the "
                f"question, which is token {asked.query}"
            )
        if not asked.pictures:
            if found.mask.any():
                raise Fault(f"row {row} has no image, but a region")
            return 0.0
        margin = MARGINS.get(self.subject.dtype, 1e-4)
        own, visual = self._look(row, config), pairs(found.visual)
        for at in visual ^ own.visual:
            focus, efr = own.head_focus[at], own.efr[at]
            if abs(focus - own.high) > margin * own.high and abs(efr - own.low) > margin * own.low:
                raise Fault(
                    f"row {row}: head {at} of layer {at[0]} is "
                    f"{'' if at in visual else 'not '}a visual head, by the loops it is "
                    f"{'not' if at in visual else 'one'}"
                )
        if visual != own.visual:
            own = self._look(row, config, visual)
        image = [position for picture in asked.pictures for position in picture.positions]
        ratio = dict(zip(image, own.ratio, strict=True))
        focus = set((found.focus - pads).tolist())
        wrong = [
            place for place in focus ^ own.focus
            if not abs(ratio.get(place, float("nan")) - own.threshold) <= margin * own.threshold
        ]  # fmt: skip
        region = positions(found, pads)
        if wrong or (focus == own.focus and region != own.region):
            raise Fault(
                f"row {row}: T is {sorted(region)}, by the loops {sorted(own.region)}; before "
                f"dilation {sorted(focus)}, by the loops {sorted(own.focus)}"
            )
        told = torch.cat([part.flatten() for part in found.map])
        return distance(told, torch.from_numpy(own.map))

    def _check_logits(
        self, row: int, tokens: Tensor, logits: Tensor, config: VRGAConfig, found: Region,
        pads: int = 0,
    ) -> float:  # fmt: skip
        """Compare a row's steered logits [T, V] with the loops; the largest difference.

        The loops steer to the region that the patch says it found, so that a wrong region shows
        where regions are compared, and here only what was done with it.
        """
        asked, answer = self.subject.rows[row], tokens.tolist()
        unsteered = self._loops(row, answer)
        if asked.pictures:
            own = self._look(row, config, pairs(found.visual))
            wanted = self._loops(row, answer, config, replace(own, region=positions(found, pads)))
        else:
            wanted = unsteered
        difference, effect = distance(logits, wanted), distance(wanted, unsteered)
        rounding, told = self.tolerance, f"row {row}: the logits differ by {difference:.1e}"
        if asked.pictures and self.subject.dtype in HALF:
            self._check_share(told, logits, wanted, unsteered)
        elif not difference <= rounding:
            if asked.pictures and distance(logits, unsteered) <= rounding:
                told += " because nothing is steered: they are those of the unpatched model"
            else:
                told += (
                    f" from the loops, where rounding explains {rounding:.1e} and steering changes "
                    f"them by {effect:.1e}"
                )
            raise Fault(told, difference)
        elif asked.pictures and effect < 4 * rounding:
            own = distance(self._loops(row, answer, config, self._look(row, config)), unsteered)
            if own >= 4 * rounding:
                raise Fault(
                    f"row {row}: steering to the region that the patch tells of changes nothing, "
                    f"to that of the loops it changes the logits by {own:.1e}",
                    own,
                )
            raise Skipped(
                f"with this prompt, steering changes the logits by {effect:.1e}, which cannot be "
                f"told from rounding ({rounding:.1e})"
            )
        return difference

    def _check_share(self, told: str, logits: Tensor, wanted: Tensor, unsteered: Tensor) -> None:
        """In half precision: how much of what steering should change has changed.

        Rounding moves single logits as far as steering does, but not in the same direction.
        """
        changed, wanted = (x.cpu().double()[1:] - unsteered[1:] for x in (logits, wanted))
        tokens, own = self._own
        noise = own[0].cpu().double() - self._loops(0, tokens[0].tolist())
        if not wanted.any():
            raise Fault(
                f"{told} at most: steering to the region that the patch tells of does nothing"
            )
        if float(wanted.square().mean()) < float(noise.square().mean()):
            raise Skipped(
                f"with this prompt, steering cannot be told from rounding in {self.subject.dtype}"
            )
        share = float((changed * wanted).sum() / (wanted * wanted).sum())
        if not 0.7 <= share <= 1.3:
            raise Fault(
                f"{told} from the loops; of what steering should have changed, {share:.0%} has",
                distance(logits, unsteered + torch.nn.functional.pad(wanted, (0, 0, 1, 0))),
            )

    def follows(self, config: VRGAConfig, **options) -> float:
        """Generate from the first prompt and compare region and steps with the loops."""
        tokens, logits, regions = self._patched(config, self.one, **options)
        self._check_region(0, regions[0], config)
        return self._check_logits(0, tokens[0], logits[0], config, regions[0])

    # --- the checks ---

    def unpatched(self) -> Found:
        rounding, scale = self._rounding
        allowed = (0.05 if self.subject.dtype in HALF else 1e-4) * scale
        if not rounding <= allowed:
            raise Fault(
                f"the logits differ by {rounding:.1e}, where rounding explains {allowed:.1e}",
                rounding,
            )
        return rounding, f"in {self.subject.dtype} against {self.subject.loops.precision}"

    def region(self) -> Found:
        figures = []
        for row, asked in enumerate(self.subject.rows):
            if not asked.pictures:
                continue
            inputs = {name: value.to(self.subject.device) for name, value in asked.inputs.items()}
            for config in (STATIC, DYNAMIC):
                found = self._patched(config, inputs, max_new_tokens=1, min_new_tokens=1)[2]
                figures.append(self._check_region(row, found[0], config))
        return max(figures), "largest difference of the maps, which sum to 1"

    def steps(self, config: VRGAConfig) -> Found:
        tokens, logits, regions = self._patched(config, self.one)
        return self._check_logits(0, tokens[0], logits[0], config, regions[0]), ""

    def prefill(self) -> Found:
        return same(self._patched(STATIC, self.one)[1][:, 0], self._own[1][:, 0]), ""

    def nothing_to_steer(self) -> Found:
        same(self._patched(VRGAConfig(gain=1.0), self.one)[1], self._own[1], "with a gain of 1")
        for asked in self.subject.rows:
            if not asked.pictures:
                inputs = {k: value.to(self.subject.device) for k, value in asked.inputs.items()}
                steered = self._patched(STATIC, inputs)[1]
                same(steered, self._generate(inputs)[1], "without an image")
        return 0.0, ""

    def batch(self) -> Found:
        tokens, logits, regions = self._patched(STATIC, self.subject.batch)
        figures, width = [], self.subject.batch["input_ids"].shape[1]
        for row in range(len(tokens)):
            pads = width - self.subject.rows[row].length
            self._check_region(row, regions[row], STATIC, pads)
            figures.append(
                self._check_logits(row, tokens[row], logits[row], STATIC, regions[row], pads)
            )
        return max(figures), f"{len(tokens)} rows"

    def static_cache(self) -> Found:
        options = dict(cache_implementation="static", disable_compile=True)
        return self._unless_impossible(options), ""

    def compiled(self) -> Found:
        if self.subject.device.type == "cuda":
            config, told = CompileConfig(), "as generate() compiles by itself"
        else:
            # Inductor would take a C++ compiler and a minute; what is traced is the same.
            config = CompileConfig(fullgraph=True, dynamic=False, mode=None, backend="aot_eager")
            config._compile_all_devices = True  # generate() compiles on a GPU alone otherwise
            told = "backend aot_eager"
        found = self._unless_impossible(dict(cache_implementation="static", compile_config=config))
        if not any("compiled_call" in name for name in vars(self.model)):
            raise Skipped("generate() did not compile")
        return found, told

    def _unless_impossible(self, options: dict) -> float:
        """`follows` with these options; skipped where the unpatched model cannot do it either."""
        try:
            return self.follows(STATIC, **options)
        except Skipped:
            raise
        except Exception:
            try:
                own = self._generate(self.one, **options)[1]
            except Exception as error:
                told = f"{type(error).__name__}: {first_line(error)}"
                raise Skipped(f"the unpatched model cannot do it either: {told}") from error
            if not distance(own, self._own[1]) <= self.tolerance:
                raise Skipped("the unpatched model computes something else with it") from None
            raise

    def _backends(self) -> list[Trial]:
        names = [
            name for name in ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys())
            if name.startswith(BACKENDS) and "paged" not in name
        ]  # fmt: skip
        advice = "Load the model with another attn_implementation"
        return [
            Trial(f"attention backend {name}", lambda name=name: self.backend(name), advice)
            for name in sorted(dict.fromkeys(names))
        ]

    def backend(self, name: str) -> Found:
        own = self.model.config.get_text_config()._attn_implementation
        flash = name.startswith("flash")
        try:
            self.model.set_attn_implementation({"text_config": name})
        except ImportError as error:
            raise Skipped("not installed") from error
        except (ValueError, RuntimeError) as error:
            raise Skipped(f"not for this model: {first_line(error)}") from error
        try:
            if self.model.config.get_text_config()._attn_implementation != name:
                raise Skipped("this model does not take it")
            if flash and self.subject.device.type == "cpu":
                raise Skipped("needs a GPU")
            if flash and self.subject.dtype not in HALF:
                return self._in_half(name)
            return self._with_backend()
        finally:
            self.model.set_attn_implementation({"text_config": own})

    def _with_backend(self) -> Found:
        try:
            with vrga.patch(self.model, STATIC):
                pass
        except ValueError as error:  # which says what to use instead
            raise Skipped(f"unsupported: {first_line(error)}") from error
        return self.follows(STATIC), ""

    def _in_half(self, name: str) -> Found:
        """Flash attention takes half precision alone: examine a rounded copy."""
        found = Examination(self.subject.halved(), self.impl)._with_backend()
        return found[0], "in float16"

    def triton(self) -> Found:
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if self.subject.device.type != "cuda" and not interpreted:
            raise Skipped("needs CUDA; impl='torch' is used here")
        return self.follows(STATIC, impl="triton"), "interpreted" if interpreted else ""

    def unpatch(self) -> Found:
        before, own = traces(self.model), self._own[1]
        with vrga.patch(self.model, STATIC, impl=self.impl):
            self._generate(self.one)
        if traces(self.model) != before:
            raise Fault("hooks, methods or the attention implementation of the patch are left")
        try:
            with vrga.patch(self.model, STATIC, impl=self.impl):
                raise InterruptedError
        except InterruptedError:
            if traces(self.model) != before:
                raise Fault("the patch stays on after an exception") from None
        return same(self._generate(self.one)[1], own), ""


def distance(found: Tensor, wanted: Tensor) -> float:
    """Largest absolute difference; NaN where something is not a number."""
    return float((found.detach().cpu().double() - wanted.detach().cpu().double()).abs().max())


def same(found: Tensor, wanted: Tensor, told: str = "") -> float:
    """0 where both are equal bit for bit; a Fault otherwise."""
    if torch.equal(found, wanted):
        return 0.0
    figure = distance(found, wanted)
    raise Fault(" ".join(filter(None, (f"the logits differ by {figure:.1e}", told))), figure)


def pairs(heads: Tensor) -> set[tuple[int, int]]:
    """Heads bool [L, H] as pairs (layer, head)."""
    return set(map(tuple, heads.nonzero().tolist()))


def positions(region: Region, pads: int) -> set[int]:
    """T as positions in the row without its `pads` tokens of padding."""
    return set((region.mask.nonzero().flatten() - pads).tolist())


def traces(model: nn.Module) -> list:
    """Everything that a patch could leave behind."""
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    return [
        *(getattr(config, "_attn_implementation", None) for config in configs),
        *(
            (name, len(module._forward_pre_hooks), len(module._forward_hooks), sorted(vars(module)))
            for name, module in model.named_modules()
        ),
    ]


def run(trials: Iterable[Trial]) -> list[Check]:
    """Make checks one after the other."""
    return [trial.run() for trial in trials]
