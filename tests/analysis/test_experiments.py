"""vrga lookback and vrga tune: arms on the same questions, from files or drawn."""

import dataclasses
import json
import math

import numpy as np
import pytest
from command import run, worked
from rich.console import Console
from saying_chain import saying
from untrained import NARROW, untrained

from vrga import VRGAConfig
from vrga.analysis import lookback as experiment
from vrga.analysis.lookback import FIRST, STEERINGS, arms
from vrga.analysis.study import Study
from vrga.analysis.sweeps import swept
from vrga.analysis.tuning import halves
from vrga.beforehand import OF_LOOKBACK
from vrga.demo.data import SPLITS, make_samples, parse_answer
from vrga.demo.drawn import drawn_of
from vrga.demo.fine.settings import FINDING
from vrga.evaluation.items import drawn_items, read_items
from vrga.evaluation.samples import accuracy, look, mean_look
from vrga.evaluation.store import Store

BOX = [0, 0, 9, 9]
GAIN = ("--preset", "published", "--gain", 4)
SMALL = ("--limit", 6, "--batch-size", 6, "--max-new-tokens", 64, "--split", "similar")


def samples(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lookback") / "run"
    done = worked("lookback", *SMALL, "--output", folder, *GAIN)
    return folder, done.output


@pytest.mark.slow
def test_every_arm_answers_every_question(whole):
    folder, output = whole
    found = samples(folder)
    names = {f"{p}/{s}" for p in ("direct", "cot", "back") for s in OF_LOOKBACK}
    assert {f"{one['prompt']}/{one['arm']}" for one in found} == names and len(names) == 12
    assert len(found) == 12 * 6 and {one["id"] for one in found} == set("012345")
    for one in found:  # inside <back> alone nothing is steered where none is said
        assert one["steered"] == (one["steps"] is not None and one["steps"]["steered"] > 0)
        assert one["arm"] not in ("off", "always") or one["steered"] == (one["arm"] == "always")
    assert any(one["steered"] for one in found if one["arm"] == "back")
    for words in ("against off", "looks back", "RRAR", "back+relocate"):
        assert words in output and words in (folder / "table.md").read_text()


@pytest.mark.slow
def test_scores_are_those_of_the_texts(whole):
    drawn = make_samples(6, seed=FIRST, **SPLITS["similar"])
    for one in samples(whole[0]):
        right = parse_answer(one["text"]) == drawn[int(one["id"])].color
        assert one["score"] == right and one["target"] == drawn[int(one["id"])].color


@pytest.mark.slow
def test_without_a_span_steering_inside_spans_changes_nothing(whole):
    by_arm = {(one["prompt"], one["arm"], one["id"]): one for one in samples(whole[0])}
    for prompt in ("direct", "cot"):
        for number in "012345":
            off = by_arm[prompt, "off", number]
            for arm in ("back", "back+relocate"):
                assert by_arm[prompt, arm, number]["text"] == off["text"]
                assert by_arm[prompt, arm, number]["looks"] == pytest.approx(off["looks"])


@pytest.mark.slow
def test_the_model_looks_back_when_it_is_asked_to(whole):
    found = json.loads((whole[0] / "results.json").read_text())["arms"]
    for name, one in found.items():
        assert one["stats"]["trigger_rate"] == float(name.startswith("back/"))
        assert (one["image_inside"][0] is not None) == name.startswith("back/")
    # Inside spans more of the attention is steered to the image than outside them.
    inside = [found[f"back/{arm}"]["image_inside"][0] for arm in ("off", "back")]
    outside = [found[f"back/{arm}"]["image_outside"][0] for arm in ("off", "back")]
    assert inside[1] > inside[0] + 0.01 and outside[1] == pytest.approx(outside[0], abs=1e-3)


@pytest.mark.slow
def test_an_interrupted_run_goes_on(whole, tmp_path, monkeypatch):
    own, added = Store.add, []

    def add(self, several):
        added.append(several)
        if len(added) > 20:
            raise KeyboardInterrupt
        own(self, several)

    monkeypatch.setattr(Store, "add", add)
    stopped = run("lookback", *SMALL, "--output", tmp_path, *GAIN)
    assert (
        stopped.exit_code == 130 and "--resume" in stopped.output and len(samples(tmp_path)) == 20
    )
    monkeypatch.setattr(Store, "add", own)
    assert run("lookback", *SMALL, "--output", tmp_path, *GAIN).exit_code != 0  # not over it
    worked("lookback", *SMALL, "--output", tmp_path, *GAIN, "--resume")
    results = [json.loads((x / "results.json").read_text())["arms"] for x in (tmp_path, whole[0])]
    assert results[0] == results[1]


def write_data(folder, rows):
    for i, sample in enumerate(make_samples(3, seed=4)):
        sample.image.save(folder / f"{i}.png")
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_questions_come_from_a_file(tmp_path):
    rows = [
        {"image": "0.png", "question": "what color is the K?", "answer": "red", "box": BOX},
        {"id": "b", "images": ["1.png", "2.png"], "question": "Which?", "answer": "B",
         "choices": ["cat", "dog"]},
        {"question": "Is it?", "answer": "Yes"},
    ]  # fmt: skip
    first, second, third = read_items(write_data(tmp_path, rows))
    assert (first.id, second.id, third.id) == ("1", "b", "3") and first.box == (0, 0, 9, 9)
    assert [path.name for path in second.images] == ["1.png", "2.png"]
    assert second.texts["direct"].startswith("Which?\nA. cat\nB. dog\n")
    assert "<back>" in first.texts["back"] and "<back>" not in first.texts["cot"]
    assert first.is_right("so \\boxed{red}", "cot") and not first.is_right("red", "cot")
    assert first.is_right("Red.", "direct")
    assert second.is_right("\\boxed{B}", "cot") and second.is_right("\\boxed{dog}", "back")
    assert not second.is_right("\\boxed{A}", "cot")
    angles = dataclasses.replace(second, choices={"A": "30°", "B": "45°"})
    assert angles.is_right("\\boxed{45}", "cot") and not angles.is_right("\\boxed{30}", "cot")
    assert third.is_right("\\boxed{yes}", "back") and not third.is_right("\\boxed{no}", "back")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": "?", "answer": "a", "box": [1, 2]}, "is not .left, top, right, bottom."),
        ("{", "line 1: "),
        ({"question": "?", "image": "0.png"}, "line 1: no 'answer'; its fields are id, image"),
        (
            {"question": "?", "answer": "a", "image": ["0.png", "1.png"]},
            "image is one path, images",
        ),
        ({"question": "?", "answer": "a", "images": "0.png"}, "'0.png'.*images a list of paths"),
        ({"question": "?", "answer": "C", "choices": ["a", "b"]}, "'C' is none of the choices"),
    ],
    ids=["half a box", "no json", "no answer", "list", "no list", "no such choice"],
)
def test_a_bad_line_is_named(tmp_path, row, told):
    path = tmp_path / "q.jsonl"
    path.write_text(row if isinstance(row, str) else json.dumps(row))
    with pytest.raises(ValueError, match=told):
        read_items(path)


def test_ids_that_stand_twice_and_empty_files_are_refused(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(2 * (json.dumps({"id": "x", "question": "?", "answer": "a"}) + "\n"))
    with pytest.raises(ValueError, match="line 2: the id 'x' stands twice"):
        read_items(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no question"):
        read_items(path)


def test_a_file_with_a_bad_image_goes_through(tmp_path):
    rows = [
        {"image": "0.png", "question": "what color is the K?", "answer": "red", "box": BOX},
        {"image": "gone.png", "question": "what color is the K?", "answer": "red"},
    ]  # fmt: skip
    path = write_data(tmp_path, rows)
    done = run("lookback", path, "--prompts", "cot", "--steering", "off,back", "--max-new-tokens",
               4, "--output", tmp_path / "run")  # fmt: skip
    assert done.exit_code == 4 and "2 samples failed" in done.output, done.output
    found = {(one["arm"], one["id"]): one for one in samples(tmp_path / "run")}
    assert "gone.png does not exist" in found["off", "2"]["error"]
    assert found["off", "1"]["error"] is None and found["off", "1"]["looks"]["rrar"] is not None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--steering", "sometimes"), "--steering sometimes: known are off, always"),
        (("--prompts", "loud"), "--prompts loud: known are direct, cot, back"),
        (("--split", "dark"), "split 'dark': known are clean, noise"),
        (("--split", "chain"), "--split chain: the embedded model was not trained on"),
    ],
    ids=["steering", "prompt", "split", "model"],
)
def test_what_is_not_known_is_told(tmp_path, options, told):
    done = run("lookback", "--output", tmp_path / "x", *options)
    assert done.exit_code != 0 and told in str(done.exception)
    assert not (tmp_path / "x").exists()


def test_the_arms_say_when_and_where():
    named = {
        arm.name: arm.config
        for arm in arms(VRGAConfig.published(gain=2.0), ["cot"], list(STEERINGS))
    }
    assert named["cot/off"] is None
    assert (named["cot/always"].when, named["cot/always"].gain) == ("always", 2.0)
    assert (named["cot/back"].when, named["cot/back"].relocate) == ("back", "question")
    assert named["cot/back+relocate"].relocate == "back"


def test_arms_that_look_closer_say_when_and_count_their_looks(tmp_path, monkeypatch):
    """A question without a picture is asked as well, and has no look."""
    (first, second) = drawn_of("chain", 2, 7)
    items = [first, dataclasses.replace(second, images=(), box=None)]
    monkeypatch.setattr(Study, "questions", lambda *given: items)
    monkeypatch.setattr(Study, "load", lambda own: untrained())
    study = Study(tmp_path, split="chain", max_new_tokens=48, console=Console(quiet=True))
    names = ["off", "zoom", "back+zoom", "back+zoom-by-question"]
    with saying({first.question: "a <back> b </back> c <back>"} | {second.question: "a"}):
        found = experiment.experiment(
            study, config=FINDING, prompts=["direct"], steerings=names, zoom=NARROW, measure=False
        )["arms"]
    looks = {name: found[f"direct/{name}"]["closer"] for name in names}
    assert looks["off"] is None and looks["zoom"]["looks"] == looks["zoom"]["looked"] == 0.5
    assert looks["back+zoom"]["looked"] == looks["back+zoom-by-question"]["looks"] == 0.5
    assert found["direct/off"]["each"] == "00" and found["direct/zoom"]["tokens"] > 0
    told = [one for one in samples(tmp_path) if one["arm"] == "back+zoom" and one["id"] == "0"]
    assert len(told[0]["zoom"]["looks"]) == 2


def test_presets_without_spans_are_refused(tmp_path):
    done = run("lookback", "--preset", "released_mask", "--output", tmp_path / "x")
    assert "--preset of method 'released_mask' knows nothing of <back>" in str(done.exception)


def test_other_questions_do_not_resume(tmp_path):
    rows = [{"image": "0.png", "question": "what color is the K?", "answer": "red"}]
    path = write_data(tmp_path, rows)
    arguments = ("lookback", path, "--prompts", "direct", "--steering", "off", "--max-new-tokens",
                 4, "--output", tmp_path / "run")  # fmt: skip
    assert run(*arguments).exit_code == 0
    write_data(tmp_path, [rows[0] | {"answer": "blue"}])
    assert "data_hash" in str(run(*arguments, "--resume").exception)


def test_a_prompt_of_ones_own_need_not_ask_for_a_box(tmp_path):
    rows = [{"question": "Which color?", "answer": "red"}]
    (item,) = read_items(write_data(tmp_path, rows), "{question} Look back, then one word.")
    assert item.is_right("<back>blue</back> red", "back") and not item.is_right("red", "cot")


def test_line_separators_inside_a_text_are_text(tmp_path):
    path = tmp_path / "q.jsonl"
    row = {"question": "a\u2028b\x85c?", "answer": "x"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", "utf-8")
    assert read_items(path)[0].question == row["question"]


def test_a_sweep_is_every_combination_once():
    configs = swept(
        VRGAConfig.published(), ["gain=1.5,2", "gate=dynamic,static", "gate_focus=0.6,1"]
    )
    assert len(configs) == 6  # a static gate has no thresholds
    assert configs["gain=2 gate=static"] == VRGAConfig.published(gain=2, gate="static")
    assert configs["gain=1.5 gate=dynamic gate_focus=1"] == VRGAConfig.published(gate_focus=1)
    for wrong in (["noise=3"], ["gain"], ["gain=1,2", "gain=3"], []):
        with pytest.raises(ValueError, match="--sweep"):
            swept(VRGAConfig.published(), wrong)
    with pytest.raises(ValueError, match="gate='open'"):
        swept(VRGAConfig.published(), ["gate=open"])


def test_the_halves_have_no_question_in_common(tmp_path):
    rows = [{"id": str(i), "question": "?", "answer": "a"} for i in range(11)]
    path = write_data(tmp_path, rows)
    tuning, held_out = halves(Study(tmp_path, path, seed=1))
    assert {one.id for one in tuning} | {one.id for one in held_out} == set(map(str, range(11)))
    assert len(tuning) == 5 and not {one.id for one in tuning} & {one.id for one in held_out}
    drawn = halves(Study(tmp_path, limit=8))
    pictures = [[np.asarray(item.images[0]).tobytes() for item in half] for half in drawn]
    assert len(set(sum(pictures, []))) == 8
    with pytest.raises(ValueError, match="too few to tune on"):
        halves(Study(tmp_path, path, limit=3))


@pytest.mark.slow
def test_tuning_reports_the_best_on_the_other_half(tmp_path):
    arguments = ("tune", "--sweep", "gain=1.5,30", "--limit", 24, "--split", "similar",
                 "--batch-size", 12, "--max-new-tokens", 64, "--output", tmp_path)  # fmt: skip
    worked(*arguments)
    found = json.loads((tmp_path / "results.json").read_text())
    tuning = {name: one["accuracy"][0] for name, one in found["tuning"].items() if name != "off"}
    assert found["best"] == max(tuning, key=tuning.get) and set(tuning) == {"gain=1.5", "gain=30"}
    assert set(found["held_out"]) == {"off", found["best"]}
    best = VRGAConfig.published(**json.loads((tmp_path / "best.json").read_text()))
    assert f"gain={best.gain:g}" == found["best"]
    assert (tmp_path / "tuning.png").stat().st_size > 5_000
    told = (tmp_path / "table.md").read_text()
    assert told.index("tuning: 12 questions") < told.index("held out: 12 other questions")
    right = [one["score"] for one in samples(tmp_path / "held_out") if one["arm"] == "off"]
    assert found["held_out"]["off"]["accuracy"][0] == pytest.approx(np.mean(right))
    again = run(*arguments, "--resume")
    assert again.exit_code == 0 and json.loads((tmp_path / "results.json").read_text()) == found


def test_a_failed_answer_counts_as_wrong():
    some = [{"score": 1.0, "looks": {"rrar": 0.5}}, {"score": None, "looks": None}]
    assert accuracy(some)[0] == 0.5
    assert mean_look(some, "rrar")[0] == 0.5
    assert math.isnan(look(some, "hit")[0])


def test_drawn_questions_know_their_boxes():
    (sample,) = make_samples(1, seed=8)
    (item,) = drawn_items([sample])
    assert item.box == sample.box and item.answer == sample.color
    assert all(item.question in text for text in item.texts.values())
    assert experiment.PROMPTS == tuple(item.texts)


def test_the_arms_that_are_uncertain_take_their_threshold_and_others_none():
    base = VRGAConfig.sparing(when="uncertain", uncertainty=0.3)  # as a checkpoint may bring it
    found = {arm.steering: arm.config for arm in arms(base, ["cot"], list(STEERINGS))}
    told = {name: config and (config.when, config.relocate) for name, config in found.items()}
    assert told == {
        "off": None, "always": ("always", "question"), "back": ("back", "question"),
        "back+relocate": ("back", "back"), "uncertain": ("uncertain", "question"),
        "uncertain+relocate": ("uncertain", "uncertain"), "zoom": ("always", "question"),
        "back+zoom": ("back", "back"), "back+zoom-by-question": ("back", "back"),
    }  # fmt: skip
    assert found["uncertain"].uncertainty == found["uncertain+relocate"].uncertainty == 0.3
    (other,) = arms(base, ["cot"], ["uncertain"], 0.7)
    assert other.config == VRGAConfig.sparing(when="uncertain", uncertainty=0.7)
