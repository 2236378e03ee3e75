"""vrga analyze: every figure once more, from attention matrices in full and plain loops."""

import dataclasses
import itertools
import json
import math
import re
import shlex
import sys

import numpy as np
import pytest
import torch
from command import RUNNER, ended, worked
from naive import region as naive_region

import vrga
from vrga import VRGAConfig
from vrga.analysis import ablate, dispersion, heads, recovery, rrar, study
from vrga.analysis.study import Study, verdict
from vrga.cli import app
from vrga.demo.data import COLORS, SPLITS, TEST_SEEDS, make_samples
from vrga.evaluation.items import drawn_items

pytestmark = pytest.mark.slow

COUNT, BINS = 4, 5
SIMILAR = make_samples(6, seed=study.FIRST, **SPLITS["similar"])


@pytest.fixture(scope="module")
def embedded():
    return vrga.load(dtype=torch.float32)


@pytest.fixture(scope="module", autouse=True)
def _loaded_once(embedded):
    """Every analysis of this file runs on one model."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(study, "load", lambda *args, **kwargs: embedded)
        yield


def asked(tmp_path, **more):
    return Study(tmp_path, **{"limit": COUNT, "split": "noise", "batch": 3, **more})


def items():
    return asked(None).items(500)


@pytest.fixture(scope="module")
def measured(embedded):
    """What eager attention says of each question, by prompt: see `_measure`."""
    model, processor = embedded
    own = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation({"text_config": "eager"})
    try:
        return {
            prompt: [_measure(model, processor, item, prompt) for item in items()]
            for prompt in ("direct", "cot")
        }
    finally:
        model.set_attn_implementation({"text_config": own})


@torch.inference_mode()
def _measure(model, processor, item, prompt):
    """R, H_img [L, H] and H_v at the question; image, box, spread [steps, L, H] of the answer."""
    chat = item.request(prompt, "").chat()[0]
    image = item.images[0]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    out = model.generate(
        **inputs, max_new_tokens=128, do_sample=False,
        output_attentions=True, return_dict_in_generate=True,
    )  # fmt: skip
    ids = inputs["input_ids"][0]
    query = next(
        i for i in range(len(ids))
        if processor.tokenizer.decode(ids[: i + 1]).endswith(item.question)
    )  # fmt: skip
    where = (ids == model.config.image_token_id).nonzero()[:, 0]
    side = image.width // 28
    row, column = item.box[1] // 28, item.box[0] // 28
    rows = torch.stack([a[0, :, query] for a in out.attentions[0]]).double()
    keys = query + 1
    a = rows[..., where]
    steps = [torch.stack([x[0, :, 0] for x in step])[..., where] for step in out.attentions[1:]]
    steps = torch.stack(steps).double()
    return {
        "focus": (a.mean(-1) / (rows.sum(-1) / keys)).numpy(),
        "entropy": torch.distributions.Categorical(a).entropy().numpy(),
        "visual": naive_region(rows.numpy(), [(where.tolist(), side, side)], keys)[2],
        "image": steps.sum(-1).numpy(),
        "box": steps[..., row * side + column].numpy(),
        "spread": torch.distributions.Categorical(steps).entropy().numpy(),
    }


def over_visual(one, name):
    """Mean over the visual heads, [steps]."""
    return np.mean([one[name][:, layer, head] for layer, head in one["visual"]], axis=0)


def test_heads_are_those_of_the_attention_matrices(measured, tmp_path):
    found = heads.analyze(asked(tmp_path))
    own = measured["direct"]
    focus, entropy = (np.mean([one[x] for one in own], axis=0) for x in ("focus", "entropy"))
    np.testing.assert_allclose(found["focus"], focus, rtol=1e-3)
    np.testing.assert_allclose(found["entropy"], entropy, rtol=1e-3, atol=1e-4)
    r = np.corrcoef(focus.ravel(), entropy.ravel())[0, 1]
    assert found["r_over_means"][0] == pytest.approx(r, abs=1e-3)
    each = [np.corrcoef(one["focus"].ravel(), one["entropy"].ravel())[0, 1] for one in own]
    assert found["r_per_question"][0] == pytest.approx(np.mean(each), abs=1e-3)
    sets = [set(map(tuple, one["visual"])) for one in own]
    chosen = np.zeros(focus.shape)
    for one in sets:
        for place in one:
            chosen[place] += 1 / COUNT
    np.testing.assert_allclose(found["chosen"], chosen)
    assert found["visual_heads"][0] == pytest.approx(np.mean([len(one) for one in sets]))
    pairs = [len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2)]
    assert found["overlap"][0] == pytest.approx(np.mean(pairs))


def test_the_overlap_is_that_of_all_pairs_and_its_interval_the_jackknifes():
    rng = np.random.default_rng(0)
    chosen = rng.random((9, 20)) < 0.4
    chosen[:, 0] = True

    def mean(rows):
        sets = [set(np.nonzero(row)[0].tolist()) for row in rows]
        pairs = [len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2)]
        return sum(pairs) / len(pairs)

    left_out = np.array([mean(np.delete(chosen, i, axis=0)) for i in range(9)])
    half = 1.959964 * math.sqrt(8 / 9 * ((left_out - left_out.mean()) ** 2).sum())
    wanted = mean(chosen), mean(chosen) - half, mean(chosen) + half
    assert heads.overlap(chosen) == pytest.approx(wanted, rel=1e-5)
    same = np.repeat(chosen[:1], 5, axis=0)
    assert heads.overlap(same) == pytest.approx((1, 1, 1))
    assert math.isnan(heads.overlap(chosen[:1])[0])


def test_rrar_is_that_of_the_attention_matrices(measured, tmp_path):
    found = rrar.analyze(asked(tmp_path), prompts=("cot", "direct"))
    ratios = {
        prompt: [
            np.mean([
                (one["box"][:, layer, head] / one["image"][:, layer, head]).mean()
                for layer, head in one["visual"]
            ])
            for one in measured[prompt]
        ]
        for prompt in ("cot", "direct")
    }  # fmt: skip
    for prompt, own in ratios.items():
        assert found["prompts"][prompt]["rrar"][0] == pytest.approx(np.mean(own), rel=1e-3)
    (order,) = found["order"]
    assert order["expected"] == "cot < direct"
    change = np.mean(ratios["direct"]) - np.mean(ratios["cot"])
    assert order["difference"][0] == pytest.approx(change, rel=1e-3)


def sample(score, ratio):
    return {"score": score, "looks": {"rrar": ratio}, "error": None}


def test_rrar_splits_right_from_wrong_and_pairs_the_prompts():
    rng = np.random.default_rng(0)
    base, other = rng.random(40), rng.normal(0, 1e-4, 40)
    samples = {
        "cot": [sample(float(i % 2), x + 0.3 * (i % 2)) for i, x in enumerate(base)],
        "direct": [sample(1.0, x + 0.3 * (i % 2) + 0.01) for i, x in enumerate(base - other)],
        "guided": [sample(1.0, x + 0.3 * (i % 2)) for i, x in enumerate(base + other)],
    }
    found = rrar.figures(samples)
    cot = found["prompts"]["cot"]
    assert cot["right"][0] == pytest.approx(base[1::2].mean() + 0.3)
    assert cot["wrong"][0] == pytest.approx(base[::2].mean()) and cot["wrong_answers"] == 20
    gap = base[1::2].mean() + 0.3 - base[::2].mean()
    half = 1.959964 * math.sqrt(base[1::2].var(ddof=1) / 20 + base[::2].var(ddof=1) / 20)
    assert cot["right_minus_wrong"] == pytest.approx((gap, gap - half, gap + half))
    order = {one["expected"]: one["verdict"] for one in found["order"]}
    # Far smaller than the spread over questions, but much the same for every one of them.
    assert order["cot < direct"] == "holds" and order["direct < guided"] == "reversed"
    assert order["cot < guided"] == "not clear"
    assert found["prompts"]["direct"]["verdict"] == "cannot tell"


@pytest.mark.parametrize(
    "box, named",
    [
        ((0, 0, 28, 28), "upper left"),
        ((140, 140, 168, 168), "lower right"),
        ((84, 56, 112, 84), "central"),
        ((84, 0, 112, 28), "upper"),
        ((0, 84, 28, 112), "left"),
        ((0, 28, 168, 168), "central"),  # its middle counts, not its corner
        ((56, 100, 57, 168), "lower"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_the_guided_prompt_names_the_place(box, named):
    (item,) = drawn_items(make_samples(1, seed=3))
    item = rrar.guided(dataclasses.replace(item, box=box))
    assert item.texts["guided"] == f"{item.question} Look at the {named} part of the image."
    assert item.texts["direct"] == item.question


@pytest.mark.slow
def test_the_course_is_that_of_the_attention_matrices(measured, tmp_path):
    found = dispersion.analyze(asked(tmp_path), bins=BINS)
    for name in dispersion.FIGURES:
        courses = []
        for one in measured["cot"]:
            values = over_visual(one, name)
            parts = [[] for _ in range(BINS)]
            for t, value in enumerate(values):
                parts[math.floor(t * BINS / len(values))].append(value)
            courses.append([np.mean(part) for part in parts])
        off = [part[0] for part in found["courses"][f"{name}_visual"]["off"]]
        np.testing.assert_allclose(off, np.mean(courses, axis=0), rtol=2e-3)
        all_heads = [one[name].mean() for one in measured["cot"]]
        course = [part[0] for part in found["courses"][f"{name}_all"]["off"]]
        assert np.mean(course) == pytest.approx(np.mean(all_heads), rel=0.05)
        trend = next(
            x for x in found["trends"]
            if (x["figure"], x["heads"], x["arm"]) == (name, "visual", "off")
        )  # fmt: skip
        place = (np.arange(BINS) + 0.5) / BINS
        assert trend["slope"][0] == pytest.approx(
            np.polyfit(place, np.mean(courses, axis=0), 1)[0], rel=5e-3, abs=1e-4
        )
    # Steering moves attention to the image's region T, so its first step looks harder.
    steered = {(x["figure"], x["heads"]): x["difference"][0] for x in found["steering"]}
    assert steered["image", "all"] > 0


@pytest.mark.parametrize(
    ("course", "told"),
    [
        ([4, 3, 2, 1], "holds"),
        ([1, 2, 3, 4], "reversed"),
        ([2, 1, 8, 1], "not clear"),  # a peak near the end: the line rises, the ends fall
        ([1, 8, 1, 2], "not clear"),
    ],
    ids=str,
)
def test_a_trend_holds_where_line_and_ends_agree(course, told):
    rng = np.random.default_rng(0)
    values = np.array(course) + rng.normal(0, 0.1, (40, 4))
    looks = [{f"{name}_{heads}": list(row) for name in dispersion.FIGURES
              for heads in dispersion.HEADS} for row in values]  # fmt: skip
    own = [{"looks": one, "score": 1.0, "error": None} for one in looks]
    found = dispersion.figures({"off": own, "on": own}, 4)
    trend = next(x for x in found["trends"] if x["figure"] == "box")
    assert trend["verdict"] == told
    change = values[:, 3] - values[:, 0]
    half = 1.96 * change.std(ddof=1) / math.sqrt(40)
    wanted = change.mean(), change.mean() - half, change.mean() + half
    assert trend["last_less_first"] == pytest.approx(wanted, abs=0.01)
    for part, end in (("first", 0), ("last", 3)):
        half = 1.959964 * values[:, end].std(ddof=1) / math.sqrt(40)
        assert trend[part][0] - trend[part][1] == pytest.approx(half)
    course, _ = dispersion.tables(found, 40)
    cells = [list(column.cells)[2] for column in course.columns]  # the box, visual heads
    assert cells[1] == "box" and all(" (" in cell for cell in cells[3:7])
    few = dispersion.figures({"off": own[:5], "on": own[:5]}, 4)["trends"]
    assert {one["verdict"] for one in few} == {"cannot tell"}


def test_answers_shorter_than_the_parts_are_left_out(tmp_path):
    found = dispersion.analyze(asked(tmp_path / "a", limit=2, max_new_tokens=7), bins=6)
    assert found["left_out"] == {"off": 0, "on": 0}  # 7 tokens, 6 of them put in again
    with pytest.raises(ValueError, match="no answer is as long as 7 tokens"):
        dispersion.analyze(asked(tmp_path / "b", limit=2, max_new_tokens=7), bins=7)


def by_hand(embedded, config, choose=None):
    """Right or not, one question at a time."""
    model, processor = embedded
    hits = []
    for item in items():
        chat = item.request("cot", "").chat()[0]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = processor(text=[text], images=[item.images[0]], return_tensors="pt")
        with vrga.patch(model, config, tokenizer=processor.tokenizer) as patch:
            patch.query = item.question
            patch.ablated = choose
            out = model.generate(**inputs, max_new_tokens=48, do_sample=False)
        answer = processor.batch_decode(
            out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )[0]
        hits.append(answer.endswith(f"\\boxed{{{item.answer}}}"))
    return np.array(hits)


def lowest(regions):
    """As many heads of the lowest R as there are visual ones."""
    (region,) = regions
    order = sorted(
        itertools.product(*map(range, region.visual.shape)),
        key=lambda place: float(region.heads.focus[place]),
    )
    chosen = torch.zeros_like(region.visual)
    for place in order[: int(region.visual.sum())]:
        chosen[place] = True
    return chosen[None]


@pytest.mark.slow
def test_ablated_arms_answer_as_by_hand(embedded, tmp_path, monkeypatch):
    monkeypatch.setitem(study.__dict__, "FIRST", TEST_SEEDS.start + 200_003)
    found = ablate.analyze(asked(tmp_path, max_new_tokens=48), heads=3, first_layer=0)
    given = VRGAConfig.ablation("given")
    wanted = {
        "none": by_hand(embedded, VRGAConfig.published(gain=1.0)),
        "prefill visual": by_hand(
            embedded, given, lambda regions: torch.stack([r.visual for r in regions])
        ),
        "prefill low_focus": by_hand(embedded, given, lowest),
        "step visual": by_hand(embedded, VRGAConfig.ablation("visual", 3, 0)),
        "step low_focus": by_hand(embedded, VRGAConfig.ablation("low_focus", 3, 0)),
    }
    assert len({tuple(hits) for hits in wanted.values()}) > 1
    for name, hits in wanted.items():
        assert found["arms"][name]["accuracy"][0] == hits.mean()
        if name != "none":
            change = hits.mean() - wanted["none"].mean()
            assert found["arms"][name]["against_none"][0] == pytest.approx(change)
    visual = found["arms"]["step visual"]
    assert visual["heads"] == 18
    random = found["arms"]["step random"]["accuracy"][0]
    assert visual["below_random"][0] == pytest.approx(random - visual["accuracy"][0])


def test_heads_of_the_prefill_are_as_many_and_others(embedded):
    model, processor = embedded
    item = items()[0]
    inputs = processor(
        text=[processor.apply_chat_template(item.request("cot", "").chat()[0])],
        images=[item.images[0]], return_tensors="pt",
    )  # fmt: skip
    with vrga.patch(model) as patch:
        model.generate(**inputs, max_new_tokens=1)
        region = patch.region[0]
    visual = ablate.at_prefill("visual", 0)("x", region)
    assert torch.equal(visual, region.visual)
    low = ablate.at_prefill("low_focus", 0)("x", region)
    assert torch.equal(low, lowest([region])[0])
    many = dataclasses.replace(region, visual=torch.arange(48).view(6, 8) % 5 < 2)
    random = {seed: ablate.at_prefill("random", seed)("x", many) for seed in range(20)}
    assert all(one.sum() == 20 and not (one & many.visual).any() for one in random.values())
    assert len({tuple(one.flatten().tolist()) for one in random.values()}) == 20
    assert torch.equal(ablate.at_prefill("random", 3)("x", many), random[3])
    assert not torch.equal(ablate.at_prefill("random", 3)("y", many), random[3])


@pytest.mark.parametrize(
    "shape, wanted",
    [((28, 28), (5, 6)), ((36, 16), (5, 6)), ((6, 8), (2, 1)), ((1, 2), (1, 0))],
    ids=str,
)
def test_a_small_model_loses_as_large_a_share(shape, wanted):
    assert ablate.sizes(*shape) == wanted


@pytest.mark.parametrize(
    "interval, said",
    [((0.1, 0.05, 0.2), "holds"), ((-0.1, -0.2, -0.05), "reversed"),
     ((0.1, -0.1, 0.3), "not clear"), ((0.0, 0.0, 0.0), "not clear"),
     ((0.1, math.nan, math.nan), "cannot tell")],
)  # fmt: skip
def test_an_order_holds_if_its_whole_interval_does(interval, said):
    assert verdict(interval) == said


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A file of three questions with boxes."""
    folder = tmp_path_factory.mktemp("questions")
    rows = []
    for number, sample in enumerate(make_samples(3, seed=TEST_SEEDS.start + 900)):
        sample.image.save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": sample.question,
                     "answer": sample.color, "box": sample.box})  # fmt: skip
    return write(folder / "boxes.jsonl", rows)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("analysis", ["heads", "ablate", "rrar", "dispersion"])
def test_every_command_runs_on_a_file(questions, tmp_path, analysis, monkeypatch):
    command = ["analyze", analysis, str(questions), "--output", str(tmp_path / "out")]
    if analysis != "heads":
        command += ["--max-new-tokens", "12"]
    monkeypatch.setattr(sys, "argv", ["vrga", *command])
    worked(*command)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["command"] == shlex.join(["vrga", *command]) and found["failed"] == 0
    assert found["settings"]["questions"] == 3 and found["versions"]["torch"]
    told = (tmp_path / "out" / "table.md").read_text()
    assert told.startswith(("3 questions", "RRAR, 3 questions")) and "\n| --- | --- |" in told
    assert (tmp_path / "out" / f"{analysis}.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_goes_on_where_it_stopped(embedded, tmp_path, monkeypatch):
    first = rrar.analyze(asked(tmp_path, limit=2), prompts=("direct",))
    monkeypatch.setattr(type(embedded[0]), "generate", None)  # nothing is asked again
    again = rrar.analyze(asked(tmp_path, limit=2, resume=True), prompts=("direct",))
    assert again["prompts"]["direct"]["rrar"] == pytest.approx(first["prompts"]["direct"]["rrar"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["rrar", "--prompts", "cot,vague"], "--prompts vague: known are direct, cot"),
        (["ablate", "--selection", "never"], "--selection never: known are step, prefill"),
        (["ablate", "--first-layer", "6"], "would ablate nothing: the model has layers 0 to 5"),
        (["ablate", "--heads", "8"], "--heads 8: 1 to 7 of a layer's 8 heads"),
        (["dispersion", "--prompt", "guided"], "--prompt guided: known are direct, cot, back"),
        (["dispersion", "--bins", "1"], "--bins 1: at least 2"),
        (["heads", "--split", "dark"], "split 'dark': known are clean"),
        (["recovery", "--config", "best"], "--config best: known are published; paper; tight"),
        (["heads", "--seed", "-1"], "--seed -1: 0 to 89"),
        (["heads", "FILE", "--split", "noise"], "--split is for drawn questions"),
        (["heads", "gone.jsonl"], "gone.jsonl"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_input_is_one_line_and_status_2(questions, tmp_path, capsys, arguments, told):
    arguments = [questions if a == "FILE" else a for a in arguments]
    assert ended("analyze", *arguments, "--output", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert told in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"box": None}, "question '1' has no box"),
        ({"box": [0, 0, 500, 20]}, "question '1': box (0.0, 0.0, 500.0, 20.0) is not inside an"),
        ({"image": None}, "question '1' has a box and no image"),
        ({"image": "gone.png"}, "gone.png does not exist"),
    ],
    ids=["no box", "outside", "no image", "missing image"],
)
def test_a_question_without_a_place_is_named(questions, change, told):
    row = json.loads(questions.read_text().splitlines()[0])
    path = write(questions.with_name("bad.jsonl"), [{**row, **change}])
    with pytest.raises((ValueError, OSError)) as refused:
        rrar.analyze(Study(questions.parent / "out", path))
    assert told in str(refused.value)


def test_questions_that_fail_are_counted_and_left_out(questions, tmp_path):
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    del rows[1]["box"], rows[1]["image"]
    found = heads.analyze(Study(tmp_path, write(questions.with_name("few.jsonl"), rows)))
    assert found["failed"] == 1 and found["questions"] == 2
    with pytest.raises(ValueError, match="no question could be asked; question '1': no image"):
        heads.analyze(Study(tmp_path, write(questions.with_name("none.jsonl"), [rows[1]])))


@pytest.mark.slow
def test_recovery_pairs_every_config_with_the_true_region(tmp_path):
    configs = {
        "wide": VRGAConfig.published(gain=30.0),
        "off by gain": VRGAConfig.published(gain=1.0),
    }
    found = recovery.analyze(
        asked(tmp_path, limit=6, split="similar"), prompt="direct", configs=configs
    )
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    by_arm = {}
    for one in map(json.loads, lines):
        by_arm.setdefault(one["arm"], []).append(one)
    assert list(by_arm) == [
        "off", "wide", "wide (true region)", "off by gain", "off by gain (true region)"
    ]  # fmt: skip
    right = {name: np.array([one["score"] for one in own]) for name, own in by_arm.items()}
    wide = found["configs"]["wide"]
    assert wide["change"][0] == pytest.approx((right["wide"] - right["off"]).mean())
    assert wide["bound"][0] == pytest.approx((right["wide (true region)"] - right["off"]).mean())
    lost = (right["wide (true region)"] - right["wide"]).mean()
    assert wide["lost_by_localisation"][0] == pytest.approx(lost)
    none = found["configs"]["off by gain"]
    assert none["change"][0] == none["bound"][0] == 0 and none["verdict"] == "cannot tell"
    rrar = {name: np.mean([one["looks"]["rrar"] for one in own]) for name, own in by_arm.items()}
    assert rrar["wide (true region)"] > 1.5 * rrar["off"], rrar
    assert rrar["wide (true region)"] > rrar["wide"] and rrar["off by gain"] == rrar["off"]
    assert (tmp_path / "recovery.png").stat().st_size > 5_000
    for name, own in by_arm.items():
        one = found["configs"].get(name.removesuffix(" (true region)"), found)
        told = one["outcomes_of_bound" if name.endswith("(true region)") else "outcomes"]
        wrong = sum(part[0] for part in told["wrong"].values())
        assert wrong == pytest.approx(1 - right[name].mean()), name
        named = [
            bool(re.search(rf"answer {x.letter} ({'|'.join(COLORS)})", y["text"]))
            for x, y in zip(SIMILAR, own, strict=True)
        ]
        assert told["letter"][0] == pytest.approx(np.mean(named)), name
        assert told["color_given_letter"][0] == pytest.approx(right[name][named].mean()), name
    for arm, flips in (("wide", "flips"), ("wide (true region)", "flips_of_bound")):
        change = right[arm] - right["off"]
        counts = {"gained": (change > 0).sum(), "lost": (change < 0).sum(), "of": 6}
        assert wide[flips] == counts


def test_outcomes_tell_the_letter_from_its_color():
    told = [
        ("answer K red. \\boxed{red}", 1),
        ("see K red. answer K blue. \\boxed{blue}", 0),  # color
        ("answer K green. \\boxed{blue}", 0),  # color
        ("answer A red. \\boxed{red}", 1),  # right by chance
        ("answer A blue. \\boxed{blue}", 0),  # letter
        ("answer K red. <think}", 0),  # none: the box is what counts
        ("<think}", 0),  # none
        ("\\boxed{blue}", 0),  # none: of which letter?
        (None, None),  # failed
    ]
    samples = [{"id": str(i), "text": t, "score": s} for i, (t, s) in enumerate(told)]
    found = recovery.outcomes(samples, dict.fromkeys(map(str, range(9)), "K"))
    assert {name: part[0] for name, part in found["wrong"].items()} == {
        "color": 2 / 9, "letter": 1 / 9, "none": 4 / 9
    }  # fmt: skip
    assert found["letter"][0] == 4 / 9 and found["color_given_letter"][0] == 1 / 4
    assert recovery.wrong_of(found) == "22.2, 11.1, 44.4 %"


def test_outcomes_are_left_out_of_questions_that_were_not_drawn():
    samples = {name: [{**sample(1.0, 0.5), "text": "red"}] for name in ("off", "a")}
    for one in samples.values():
        one[0]["looks"] |= {"hit": True, "coverage": 0.1}
    samples["a (true region)"] = samples["a"]
    found = recovery.figures(samples, ["a"])
    assert "outcomes" not in found and "outcomes" not in found["configs"]["a"]
    assert recovery.WRONG not in [c.header for c in recovery.table(found, "cot", 1).columns]


def test_recovery_runs_the_configs_named(tmp_path):
    command = ["analyze", "recovery", "--split", "long", "--prompt", "direct", "--limit", "3"]
    command += ["--config", "default", "--config", "paper", "--output", str(tmp_path)]
    worked(*command)
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found["configs"]) == found["settings"]["configs"] == ["default", "paper"]


@pytest.mark.parametrize("command", ["analyze recovery", "lookback", "eval"])
def test_help_names_every_split(command):
    said = RUNNER.invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"}).output
    assert all(re.search(rf"\b{split}\b", said) for split in SPLITS), said


def test_recovery_needs_boxes(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "?", "answer": "a"}))
    with pytest.raises(ValueError, match="question '1' has no box"):
        recovery.analyze(Study(tmp_path / "out", data=path))
