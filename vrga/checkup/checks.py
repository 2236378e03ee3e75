"""The checks: each compares what a patched model does with the plain loops, or bit for bit."""

from __future__ import annotations

import functools
import os

from transformers import CompileConfig

import vrga
from vrga.annotations import Model
from vrga.checkup.compare import HALF, Comparison, distance, same
from vrga.checkup.trial import Fault, Found, Skipped, Trial, first_line
from vrga.config import VRGAConfig
from vrga.hf.backends import backend_of, backends_of, known_backends, set_backend

STATIC = VRGAConfig.sparing()  # steers strongly: what is off shows
DYNAMIC = VRGAConfig.published(gain=3.0)
# Attention backends that transformers brings; there are others that users register.
BACKENDS = ("eager", "sdpa", "flash_attention", "flex_attention")


class Examination(Comparison):
    """The checks of one model."""

    def trials(self) -> list[Trial]:
        """All of them, in order."""
        off = "Generate without it until then"
        return [
            Trial("unpatched model agrees with the loops", self.unpatched,
                  "The loops and the model disagree before vrga does anything: none of what "
                  "follows can be trusted; use versions that docs/compatibility.md names"),
            Trial("region is the method's", self.region,
                  "The model would look elsewhere: do not use vrga here"),
            Trial("steered steps, static gate", lambda: self.steps(STATIC),
                  "Answers are not steered as they should be: do not use vrga here"),
            Trial("steered steps, dynamic gate", lambda: self.steps(DYNAMIC),
                  "Do not use VRGAConfig.published() here"),
            Trial("every step is accounted for", self.accounted,
                  "What patch.steps tells cannot be trusted"),
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

    # --- the checks ---

    def unpatched(self) -> Found:
        rounding, scale = self.rounding
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
                found = self.patched(config, inputs, max_new_tokens=1, min_new_tokens=1)[2]
                figures.append(self.check_region(row, found[0], config))
        return max(figures), "largest difference of the maps, which sum to 1"

    def steps(self, config: VRGAConfig) -> Found:
        tokens, logits, regions = self.patched(config, self.one)
        return self.check_logits(0, tokens[0], logits[0], config, regions[0]), ""

    def accounted(self) -> Found:
        with vrga.patch(self.model, STATIC, impl=self.impl) as patch:
            generated = self.generate(self.subject.batch)[0].shape[1]
            told, regions = patch.steps, patch.region
        if len(told) != len(regions):
            raise Fault(f"patch.steps tells of {len(told)} rows, the batch has {len(regions)}")
        for row, (steps, region) in enumerate(zip(told, regions, strict=True)):
            left = sum(steps.left_alone.values())
            if steps.generated != generated or steps.steered + left != generated - 1:
                raise Fault(
                    f"row {row}: {generated} tokens, of which the first is the prompt's, are told "
                    f"as {steps.generated} generated, {steps.steered} steered and {left} left alone"
                )
            if bool(steps.steered) != bool(region.mask.any()):
                raise Fault(
                    f"row {row}: {steps.steered} steps steered, to a region of "
                    f"{int(region.mask.sum())} tokens"
                )
        return None, f"{len(told)} rows"

    def prefill(self) -> Found:
        return same(self.patched(STATIC, self.one)[1][:, 0], self.own[1][:, 0]), ""

    def nothing_to_steer(self) -> Found:
        same(self.patched(VRGAConfig(gain=1.0), self.one)[1], self.own[1], "with a gain of 1")
        for asked in self.subject.rows:
            if not asked.pictures:
                inputs = {k: value.to(self.subject.device) for k, value in asked.inputs.items()}
                steered = self.patched(STATIC, inputs)[1]
                same(steered, self.generate(inputs)[1], "without an image")
        return 0.0, ""

    def batch(self) -> Found:
        tokens, logits, regions = self.patched(STATIC, self.subject.batch)
        figures, width = [], self.subject.batch["input_ids"].shape[1]
        for row in range(len(tokens)):
            pads = width - self.subject.rows[row].length
            self.check_region(row, regions[row], STATIC, pads)
            figures.append(
                self.check_logits(row, tokens[row], logits[row], STATIC, regions[row], pads)
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
        options = dict(cache_implementation="static", compile_config=config)
        try:
            found = self._unless_impossible(options)
        except RuntimeError as error:
            if "disable_compile=True" not in str(error):  # which is what vrga's refusals advise
                raise
            raise Skipped(f"refused for this model: {first_line(error)}") from error
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
                own = self.generate(self.one, **options)[1]
            except Exception as error:
                told = f"{type(error).__name__}: {first_line(error)}"
                raise Skipped(f"the unpatched model cannot do it either: {told}") from error
            if not distance(own, self.own[1]) <= self.tolerance:
                raise Skipped("the unpatched model computes something else with it") from None
            raise

    def _backends(self) -> list[Trial]:
        names = [
            name for name in known_backends()
            if name.startswith(BACKENDS) and "paged" not in name
        ]  # fmt: skip
        advice = "Load the model with another attention backend"
        return [
            Trial(f"attention backend {name}", functools.partial(self.backend, name), advice)
            for name in sorted(dict.fromkeys(names))
        ]

    def backend(self, name: str) -> Found:
        own = backend_of(self.model)
        flash = name.startswith("flash")
        try:
            set_backend(self.model, name)
        except ImportError as error:
            raise Skipped("not installed") from error
        except (ValueError, RuntimeError) as error:
            raise Skipped(f"not for this model: {first_line(error)}") from error
        try:
            if backend_of(self.model) != name:
                raise Skipped("this model does not take it")
            if flash and self.subject.device.type == "cpu":
                raise Skipped("needs a GPU")
            if flash and self.subject.dtype not in HALF:
                return self._in_half(name)
            return self._with_backend()
        finally:
            set_backend(self.model, own)

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
        before, own = traces(self.model), self.own[1]
        with vrga.patch(self.model, STATIC, impl=self.impl):
            self.generate(self.one)
        if traces(self.model) != before:
            raise Fault("hooks, methods or the attention implementation of the patch are left")
        try:
            with vrga.patch(self.model, STATIC, impl=self.impl):
                raise InterruptedError
        except InterruptedError:
            if traces(self.model) != before:
                raise Fault("the patch stays on after an exception") from None
        return same(self.generate(self.one)[1], own), ""


def traces(model: Model) -> list:
    """Everything that a patch could leave behind."""
    return [
        *backends_of(model),
        *(
            (name, len(module._forward_pre_hooks), len(module._forward_hooks), sorted(vars(module)))
            for name, module in model.named_modules()
        ),
    ]
