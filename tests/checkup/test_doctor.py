"""vrga doctor: what holds is said to hold, and every check turns red when its promise is broken."""

import copy
import importlib
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from command import run as command

import vrga
from vrga import VRGAConfig
from vrga.checkup import kernels
from vrga.checkup.checks import DYNAMIC, STATIC, Examination
from vrga.checkup.loops import Loops
from vrga.checkup.models import TINY, checkpoint, tiny
from vrga.checkup.result import WIDTH, Check, Checkup
from vrga.checkup.run import doctor, versions
from vrga.checkup.trial import run
from vrga.hf.files import embedded
from vrga.method.key_groups import KeyGroups
from vrga.steering.decode_step import DecodeStep

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
UNPATCHED = "unpatched model agrees with the loops"
REGION = "region is the method's"
STATIC_GATE, DYNAMIC_GATE = "steered steps, static gate", "steered steps, dynamic gate"
PREFILL = "prefill untouched, bit for bit"
NOTHING = "gain 1 and no image, bit for bit"
BATCH, CACHE, COMPILED = "batch with left padding", "static cache", "compiled decoding"
EAGER, SDPA = "attention backend eager", "attention backend sdpa"
TRITON, UNPATCH = "Triton kernels in generate", "unpatched again, bit for bit"
STEPS = "every step is accounted for"
SECOND = "llava: region and steps"
DECODE, PROBE = "Triton decode kernel, its reference", "Triton probe kernel, its reference"
STEERED = {STATIC_GATE, DYNAMIC_GATE, BATCH, CACHE, EAGER, SDPA}
QUICK = STEERED | {UNPATCHED, REGION, PREFILL, NOTHING, UNPATCH}


def by_status(checks, status):
    return {check.name for check in checks if check.status == status}


def examined(subject, names=QUICK):
    """The named checks of a model, by name."""
    trials = [trial for trial in Examination(subject).trials() if trial.name in names]
    assert {trial.name for trial in trials} == set(names)
    return {check.name: check for check in run(trials)}


def red(subject, names=QUICK):
    return by_status(examined(subject, names).values(), "fails")


@pytest.fixture
def subject():
    return tiny("qwen2_5_vl", CPU)


@pytest.fixture
def broken(monkeypatch):
    """Break what `vrga.patch` does: `broken(change)` calls change(model, config, options), which
    may return another config, and then after(patch, config, options)."""
    own = vrga.patch

    def install(change=None, after=None):
        def patch(model, config=None, **options):
            changed = config if change is None else change(model, config, options)
            found = own(model, changed, **options)
            if after is not None:
                after(found, config, options)
            return found

        monkeypatch.setattr(vrga, "patch", patch)

    return install


def off(config):
    """A config that finds the same region and steers nothing to it."""
    return replace(config, gain=1.0)


def unsteered_where(chosen):
    """After patching: calls of generate() whose options are chosen steer nothing, in silence."""

    def after(patch, config, options):
        own = patch.model.generate

        def generate(*args, **kwargs):
            patch.config = off(config) if chosen(kwargs) else config
            return own(*args, **kwargs)

        patch.model.__dict__["generate"] = generate

    return after


# --- on this installation ---


@pytest.fixture(scope="module")
def found():
    return vrga.doctor(device="cpu")


def test_everything_holds_here(found):
    assert found.ok, found
    holds = by_status(found.checks, "holds")
    assert (
        QUICK | {STEPS, COMPILED, TRITON, SECOND, DECODE, PROBE} <= holds
    )  # Triton is interpreted here
    skipped = by_status(found.checks, "skipped")
    assert all(name.startswith("attention backend fl") for name in skipped)
    bits = {check.name: check.figure for check in found.checks if "bit for bit" in check.name}
    assert bits == {PREFILL: 0, NOTHING: 0, UNPATCH: 0}
    assert all(0 < check.figure < 1e-3 for check in found.checks if check.name in STEERED)


def test_the_table_fits_a_report(found):
    lines = str(found).splitlines()
    assert repr(found) == str(found) and max(map(len, lines)) <= WIDTH
    assert str(found).isascii()
    for name, version in versions(CPU).items():
        assert f"{name} {version}" in " ".join(lines)
    for check in found.checks:
        assert any(check.name in line and check.status in line for line in lines)
    held = len(by_status(found.checks, "holds"))
    assert "random qwen2_5_vl" in lines[2] and lines[-1].startswith(f"{held} holds, ")


def test_it_prints_nothing_and_leaves_no_trace(subject, capsys):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    tiny("qwen2_5_vl", CPU)
    doctor(family="llava", device="cpu")
    assert capsys.readouterr().out == ""
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("family", sorted(TINY))
def test_every_family_that_can_be_made_is_examined(family):
    checks = examined(tiny(family, CPU))
    assert by_status(checks.values(), "holds") == set(QUICK), checks


def test_a_checkpoint_is_examined_on_a_drawn_image():
    checks = examined(checkpoint(embedded(), CPU))
    assert by_status(checks.values(), "holds") == set(QUICK), checks


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("copied", [True, False])
def test_half_precision_is_told_from_rounding(subject, dtype, copied, broken):
    model = copy.deepcopy(subject.model).to(dtype)
    loops = Loops(copy.deepcopy(model).double() if copied else model, copied)
    half = replace(subject, model=model, loops=loops)
    checks = examined(half)
    assert by_status(checks.values(), "holds") == set(QUICK), checks
    broken(lambda model, config, options: off(config))
    assert red(half) == STEERED
    assert "of what steering should have changed" in examined(half, {BATCH})[BATCH].why


def test_flash_attention_is_examined_on_a_rounded_copy(subject):
    assert Examination(subject)._in_half("sdpa")[1] == "in float16"
    assert subject.dtype == torch.float32


# --- what is broken turns red ---


def test_steering_that_is_silently_off_fails_the_command(monkeypatch):
    """As when every decode step was taken for a fresh prompt."""

    monkeypatch.setattr(DecodeStep, "attend", lambda self, call: call.output())
    done = command("doctor", "--device", "cpu")
    assert done.exit_code == 1 and "To report this" in done.output
    assert max(map(len, done.output.splitlines())) <= WIDTH
    lines = done.output.splitlines()
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in lines
            if line.startswith("|") and line.count("|") == 5}  # fmt: skip
    fails = {name for name, status in rows.items() if status == "fails"}
    assert fails - {STEPS} == STEERED | {COMPILED, TRITON, SECOND}
    assert "nothing is steered" in " ".join(done.output.split())


def test_every_step_taken_for_a_prompt_is_seen(subject, broken):
    def after(patch, config, options):
        def hook(module, args, kwargs):
            ids = kwargs.get("input_ids")
            patch.enabled = ids is not None and ids.shape[1] > 1

        first = subject.model.model.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
        own = patch.remove

        def remove():
            first.remove()
            own()

        vars(patch)["remove"] = remove

    broken(after=after)
    assert red(subject) == STEERED


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_patch_that_tells_of_no_region_is_seen(subject, dtype, monkeypatch):
    """As when its steps are new prompts without an image, whose regions are empty."""
    own = vrga.Patch.region.fget

    def region(self):
        return [replace(found, mask=torch.zeros_like(found.mask)) for found in own(self)]

    monkeypatch.setattr(vrga.Patch, "region", property(region))
    model = copy.deepcopy(subject.model).to(dtype)
    loops = Loops(copy.deepcopy(model).double())
    assert red(replace(subject, model=model, loops=loops)) >= STEERED
    # Even if it does not steer, so that the logits agree with such a region.
    with monkeypatch.context() as also:
        patch = vrga.patch
        also.setattr(vrga, "patch", lambda model, config, **more: patch(model, off(config), **more))
        assert red(replace(subject, model=model, loops=loops)) >= STEERED


def test_a_wrong_gain_is_seen(subject, broken):
    broken(lambda model, config, options: replace(config, gain=config.gain + 0.05))
    assert red(subject) == STEERED | {NOTHING}


def test_a_wrong_region_is_seen(subject, broken):
    broken(lambda model, config, options: replace(config, dilation=config.dilation + 1))
    checks = examined(subject)
    assert by_status(checks.values(), "fails") == {REGION, BATCH, CACHE, EAGER, SDPA}
    assert "T is [" in checks[REGION].why and "by the loops [" in checks[REGION].why


def test_other_visual_heads_are_seen(subject, broken):
    broken(lambda model, config, options: replace(config, focus_percentile=50.0))
    checks = examined(subject)
    assert REGION in by_status(checks.values(), "fails")
    assert "visual head" in checks[REGION].why


def test_steering_to_other_tokens_than_are_told_is_seen(subject, monkeypatch):
    own = KeyGroups.flags

    def others(groups, regions, *rest):
        return own(groups, [replace(r, mask=r.image & ~r.mask) for r in regions], *rest)

    monkeypatch.setattr(KeyGroups, "flags", others)
    assert red(subject) == STEERED


def test_the_wrong_end_of_the_question_is_seen(subject, broken):
    def after(patch, config, options):
        patch.query = lambda ids, visible: (ids == 1).int().argmax(1) - 2

    broken(after=after)
    checks = examined(subject, {REGION, BATCH})
    assert by_status(checks.values(), "fails") == {REGION, BATCH}
    assert "for the end of the question, which is token 37" in checks[REGION].why


@pytest.mark.parametrize(
    ("chosen", "name"),
    [
        (lambda options: options.get("cache_implementation") == "static", CACHE),
        (lambda options: "compile_config" in options, COMPILED),
        (lambda options: len(options["input_ids"]) > 1, BATCH),
    ],
    ids=["static cache", "compiled", "batch"],
)
def test_one_way_of_generating_that_is_not_steered_is_seen(subject, broken, chosen, name):
    broken(after=unsteered_where(chosen))
    names = QUICK | {COMPILED} if name == COMPILED else QUICK
    checks = examined(subject, names)
    assert by_status(checks.values(), "fails") == {name}
    assert "nothing is steered" in checks[name].why


def test_one_attention_backend_that_is_not_steered_is_seen(subject, broken):
    def change(model, config, options):
        own = model.config.get_text_config()._attn_implementation
        return off(config) if own == "eager" else config

    broken(change)
    assert red(subject) == {EAGER}


def test_one_implementation_that_is_not_steered_is_seen(subject, broken):
    broken(lambda model, config, options: off(config) if options["impl"] == "triton" else config)
    assert red(subject, {STATIC_GATE, TRITON}) == {TRITON}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (None, None),
        (dict(steered=3), "row 2: 5 tokens, .* 5 generated, 3 steered and 0 left alone"),
        (dict(generated=4, steered=3), "row 2: 5 tokens, .* 4 generated"),
        (dict(steered=0, left_alone={"fresh prompt": 4}), "row 2: 0 steps steered, to a region of"),
        ([], "patch.steps tells of 0 rows, the batch has 3"),
    ],
    ids=["all told", "one forgotten", "one not generated", "none steered", "no rows"],
)
def test_steps_that_are_not_accounted_for_are_seen(subject, monkeypatch, row, why):
    left = [{}, {"no image": 4}, {}]
    told = [dict(generated=5, steered=4 - sum(x.values()), left_alone=x) for x in left]
    if row is not None:
        told[-1].update(row)
    told = [] if row == [] else [SimpleNamespace(**each) for each in told]
    monkeypatch.setattr(vrga.Patch, "steps", property(lambda self: told), raising=False)
    check = examined(subject, {STEPS})[STEPS]
    assert check.status == ("holds" if why is None else "fails")
    assert why is None or re.search(why, check.why)


def test_a_touched_prefill_is_seen(subject, broken):
    def after(patch, config, options):
        own = patch.model.generate

        def generate(*args, **kwargs):
            out = own(*args, **kwargs)
            out.logits[0].mul_(1 + 1e-6)
            return out

        patch.model.__dict__["generate"] = generate

    broken(after=after)
    assert red(subject) == {PREFILL, NOTHING}


def test_a_patch_that_stays_on_is_seen(subject, broken):
    def after(patch, config, options):
        vars(patch)["remove"] = lambda: None

    broken(after=after)
    assert red(subject, {UNPATCH}) == {UNPATCH}


def test_what_a_patch_leaves_behind_is_seen(subject, broken):
    def after(patch, config, options):
        own = patch.remove

        def remove():
            own()
            patch.model.register_forward_hook(lambda module, args, output: None)

        vars(patch)["remove"] = remove

    broken(after=after)
    checks = examined(subject, {UNPATCH})
    assert checks[UNPATCH].status == "fails" and "are left" in checks[UNPATCH].why


def test_weights_that_a_patch_changed_are_seen(subject, broken):
    def after(patch, config, options):
        with torch.no_grad():
            patch.model.lm_head.weight.mul_(1.001)

    broken(after=after)
    assert red(subject, {UNPATCHED, UNPATCH}) == {UNPATCH}


def test_loops_that_are_another_model_are_seen(subject):
    with torch.no_grad():
        subject.loops.model.lm_head.weight.mul_(1.01)
    assert UNPATCHED in red(subject)


@pytest.mark.parametrize(
    ("name", "module", "function"),
    [(DECODE, "decode", "decode_attention"), (PROBE, "probe", "probe_scores")],
)
def test_a_wrong_kernel_is_seen(monkeypatch, name, module, function):
    module = importlib.import_module(f"vrga.kernels.{module}")
    own = getattr(module, function)

    def wrong(q, *args, **kwargs):
        return own(q * 1.001, *args, **kwargs)

    monkeypatch.setattr(module, function, wrong)
    assert by_status(run(kernels.trials(CPU)), "fails") == {name}


def test_an_error_is_a_failure_with_its_words(subject, broken):
    def change(model, config, options):
        raise KeyError("past_key_values")

    broken(change)
    checks = examined(subject)
    assert by_status(checks.values(), "holds") == {UNPATCHED}
    assert "KeyError: 'past_key_values'" in checks[STATIC_GATE].why


def test_what_the_unpatched_model_cannot_do_is_no_fault_of_the_patch(subject, monkeypatch):
    own = type(subject.model).generate

    def generate(self, *args, **kwargs):
        if kwargs.get("cache_implementation"):
            raise RuntimeError("no static cache in this version. Sorry")
        return own(self, *args, **kwargs)

    monkeypatch.setattr(type(subject.model), "generate", generate)
    check = examined(subject, {CACHE})[CACHE]
    assert check.status == "skipped"
    assert check.why.endswith("cannot do it either: RuntimeError: no static cache in this version")


# --- what cannot be examined ---


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (dict(device="tpu"), "device='tpu' is not there: torch .* sees cpu"),
        (dict(device="cuda:99"), "device='cuda:99' is not there"),
        (dict(device="meta"), "device='meta' is not there"),
        (dict(family="gpt2"), "family='gpt2': tiny models can be made of qwen2_5_vl, "),
        (dict(model="somewhere", family="llava"), "leave out family='llava'"),
        (dict(model="/no/model"), "no checkpoint at /no/model"),
    ],
)
def test_what_is_not_there_is_refused_in_words(arguments, told):
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        vrga.doctor(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_refused_where_there_is_none():
    done = command("doctor", "--device", "cuda")
    assert done.exit_code != 0 and "device='cuda' is not there" in str(done.exception)


def test_a_checkup_in_which_nothing_holds_is_not_ok():
    skipped = Check("one", "skipped", None, "needs CUDA", 0.0)
    assert not Checkup((skipped,), {}, "nothing", 0.0).ok
    holds = Check("two", "holds", 0.0, "", 0.0)
    assert Checkup((skipped, holds), {}, "something", 0.0).ok
    fails = Check("three", "fails", float("nan"), "broken. Mend it", 0.0)
    found = Checkup((holds, fails), {}, "something", 0.0)
    assert not found.ok and "fails: three: broken. Mend it" in str(found) and "nan" in str(found)


def test_the_gains_that_are_examined_steer():
    assert STATIC == VRGAConfig.sparing() and STATIC.gain != 1 and DYNAMIC.gain != 1
    assert (STATIC.gate, DYNAMIC.gate) == ("static", "dynamic")
