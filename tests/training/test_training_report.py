"""What is told of answers, when a reward is hacked, figures before and after, and the page."""

import json
import re

import numpy as np
import pytest
from command import run

from vrga import lookback
from vrga.evaluation.request import Answer
from vrga.evaluation.store import Store
from vrga.training.evaluate import evaluate, summary
from vrga.training.hacking import hacking
from vrga.training.questions import Questions
from vrga.training.report import curve, write_report
from vrga.training.rewards import any_span, rewards, told
from vrga.training.rollouts import FIELDS, keys_of

GOOD = "<think> a b c </think> <back> d </back> <think> e </think> \\boxed{red}"
EMPTY = GOOD.replace("<back> d ", "<back> ")
COPIED = GOOD.replace("<back> d ", "<back> b c ")
PLAIN = "<think> a </think> \\boxed{red}"


def steps(reward, empty=0.0, copied=0.0, count=20):
    """Steps whose reward goes evenly from the first to the last of a pair, with noise."""
    noise = np.random.default_rng(0).normal(0, 0.01, count)
    values = np.linspace(*reward, count) + noise
    return [
        {"step": i + 1, "reward": value, "empty": empty, "copied": copied}
        for i, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("text", "trigger", "valid", "empty", "copied"),
    [
        (GOOD, True, True, False, False),
        (EMPTY, True, False, True, False),
        (COPIED, True, True, False, True),
        (COPIED.replace("> ", ">").replace(" <", "<"), True, True, False, True),
        (GOOD.replace("<back> d ", "<back> b  c a "), True, True, False, False),
        (GOOD.replace("<back> d ", "<back> e "), True, True, False, False),  # it stands behind
        ("<back> open", True, False, False, False),
        (PLAIN, False, False, False, False),
    ],
    ids=[
        "good",
        "empty",
        "copied",
        "copied without spaces",
        "other order",
        "behind",
        "open",
        "plain",
    ],
)
def test_what_is_told_of_an_answer(text, trigger, valid, empty, copied):
    said = told(text)
    assert (said.trigger, said.valid, said.empty, said.copied) == (trigger, valid, empty, copied)
    assert told(text.replace("back>", "look>"), "look") == said
    assert not told(text, "look").trigger


def test_rewards_pay_for_the_right_answer_and_for_the_form():
    questions = Questions(limit=3)
    items = {item.id: item for item in questions.items()}
    answer = items["0"].answer
    texts = [GOOD.replace("red", answer), PLAIN.replace("red", "grey"), EMPTY, "\\boxed{}"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    ids, kept, logged = ["0", "1", "2", "0"], [], {}
    for form, paid in (("strict", [1.0, 0.667, 0.0, 0.0]), ("any", [1.0, 0.667, 1.0, 0.0])):
        accuracy, format = rewards(questions, items, form, kept.append)
        right = accuracy(completions, id=ids, trainer_state=None)
        assert right[0] == 1.0 and right[1] == right[3] == 0.0
        assert format(completions, id=ids, log_metric=logged.__setitem__) == paid
        assert [one["form"] for one in kept[-1]] == paid and kept[-1][0]["right"] == 1.0
    assert logged == {"trigger": 0.5, "valid": 0.25, "empty": 0.25, "copied": 0.0}
    assert (any_span(EMPTY), lookback.reward(EMPTY)) == (1.0, 0.0)


def test_a_rising_reward_with_empty_or_copied_spans_is_flagged():
    assert "80 % empty spans" in hacking(steps((0.3, 0.9), empty=0.8))
    assert "30 % copied spans" in hacking(steps((0.3, 0.9), copied=0.3))
    both = hacking(steps((0.3, 0.9), empty=0.2, copied=0.3))
    assert both.startswith("reward hacking: the reward rose by 0.4") and "20 % empty and" in both


@pytest.mark.parametrize(
    "fine",
    [
        steps((0.3, 0.9)),
        steps((0.3, 0.9), empty=0.05),
        steps((0.5, 0.5), empty=0.8),
        steps((0.9, 0.3), empty=0.8),
        steps((0.3, 0.9), empty=0.8, count=9),
    ],
    ids=["earned", "few", "level", "falling", "too short"],
)
def test_what_is_not_hacked_is_not_flagged(fine):
    assert hacking(fine) is None


def test_figures_are_over_questions_and_failed_answers_are_wrong():
    texts = {"a": [GOOD, EMPTY], "b": [PLAIN, None]}
    answers = [
        {"id": id, "text": text, "score": None if text is None else 1.0, "tokens": 5,
         "reward": None if text is None else lookback.reward(text),
         "error": None if text is not None else "late"}
        for id, own in texts.items() for text in own
    ]  # fmt: skip
    found = summary(Questions(), answers)
    assert found["accuracy"][0] == 0.75 and found["failed"] == 1
    assert (found["trigger"][0], found["valid"][0], found["empty"][0]) == (0.5, 0.25, 0.25)


@pytest.fixture
def folder(tmp_path):
    """A finished training that was never run: its record alone, of a hacked reward."""
    questions = Questions(limit=4)
    settings = {**questions.settings(), "model": None, "samples": 2, "max_new_tokens": 40}
    store = Store(tmp_path / "rollouts", settings, fields=FIELDS)
    keys = [key for item in questions.items() for key in keys_of(item, 2)]
    store.add(
        {"key": key, "id": key[0], "sample": int(key[-1]), "text": PLAIN, "tokens": 5,
         "score": float(key[-1]), "reward": 0.667, "error": None}
        for key in keys
    )  # fmt: skip
    store.finish(keys)
    done = run("train", "data", tmp_path, "--reflection", 0)
    assert done.exit_code == 0, done.exception
    answers = [{"id": "1", "text": "<b>" + EMPTY, "right": 1.0, "form": 1.0}]
    for name, record in (
        ("sft", [{"step": i, "loss": 2 / i} for i in (1, 2, 3)]),
        ("rl", [one | {"rewards/x": 1, "answers": answers} for one in steps((0.3, 0.9), 0.8)]),
    ):
        store = Store(tmp_path / name, {"weight": 0.25})
        store.add([one | {"key": f"step-{one['step']}"} for one in record])
        store.finish()
    return tmp_path


def test_the_page_shows_curves_and_what_was_paid_and_flags_hacking(folder):
    path, hacked = write_report(folder)
    page = path.read_text()
    assert 'class="warn">reward hacking: the reward rose by' in page and "80 % empty" in hacked
    assert page.count("<polyline") == 4  # loss, reward, empty, copied
    assert "&lt;b&gt;&lt;think&gt;" in page and "<mark>&lt;back&gt;" in page
    assert "right, form 1.0: 1.250" in page
    assert not re.search(r"https?://(?!www\.w3\.org)", page) and "<script" not in page
    done = run("train", "report", folder, "-o", folder / "other.html")
    assert done.exit_code == 0 and "reward hacking" in done.output
    assert (folder / "other.html").read_text() == page


def test_a_page_of_nothing_is_refused(folder, tmp_path):
    for name in ("sft", "rl"):
        (folder / name / "samples.jsonl").unlink()
    assert "has no steps of training" in str(run("train", "report", folder).exception)


def test_a_curve_fills_its_frame_whatever_its_values():
    for values in ((1.0, 3.0, 2.0), (5.0, 5.0), (7.0,)):
        drawn = curve(list(enumerate(values, 1)))
        places = [tuple(map(float, point.split(","))) for point in drawn["points"].split()]
        assert len(places) == len(values)
        assert all(44 <= x <= 316 and 4 <= y <= 112.01 for x, y in places)
    high, low = curve([(1, 0.0), (2, 1.0)])["points"].split()[::-1]
    assert float(high.split(",")[1]) < float(low.split(",")[1])


def test_the_same_questions_are_asked_before_and_after(folder, monkeypatch):
    from rich.console import Console

    asked = []

    def once(questions, model, output, **more):
        asked.append((model, questions.part))
        # A model is told apart by its name alone: the second is right everywhere.
        right = float(model is not None)
        settings = {**questions.settings(), "model": model}
        store = Store(output, settings, fields=FIELDS)
        keys = [key for item in questions.items() for key in keys_of(item, 1)]
        store.add(
            {"key": key, "id": key.split("/")[0], "sample": 0, "tokens": 5, "error": None,
             "text": GOOD if right else PLAIN, "score": right, "reward": 0.667}
            for key in keys
        )  # fmt: skip
        store.finish(keys)

    monkeypatch.setattr("vrga.training.evaluate.ask", once)
    model = folder / "sft" / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    found = evaluate(folder, limit=8, samples=1, console=Console(quiet=True))
    assert asked == [(None, "test"), (str(model), "test")]
    assert found["models"]["base"]["accuracy"][0] == 0
    assert found["models"]["sft"]["against_base"][0] == 1
    page = write_report(folder)[0].read_text()
    assert page.count("sft: right") == page.count("base: wrong") == 8
    (folder / "evaluation" / "base" / "run.json").unlink()
    assert "sft: right" not in write_report(folder)[0].read_text()  # beside nothing
    (folder / "evaluation" / "results.json").write_text('{"models"')
    told = str(run("train", "report", folder).exception)
    assert "results.json is damaged" in told and "vrga train evaluate" in told


def test_answers_of_a_model_that_was_trained_anew_are_not_those_of_the_new_one(folder, monkeypatch):
    from rich.console import Console

    class Answers:
        def ask(self, requests):
            for one in requests:
                yield Answer(one.id, text=PLAIN, tokens=5)

    monkeypatch.setattr("vrga.training.rollouts.loaded", lambda *args: (None, None))
    monkeypatch.setattr("vrga.training.rollouts.Asker", lambda *args, **more: Answers())
    (folder / "sft" / "model").mkdir()
    (folder / "sft" / "model" / "config.json").write_text("{}")
    how = {"limit": 2, "samples": 1, "console": Console(quiet=True)}
    evaluate(folder, **how)
    evaluate(folder, **how, resume=True)
    record = folder / "sft" / "samples.jsonl"
    record.write_text(record.read_text().replace("1.0", "1.5"))
    with pytest.raises(ValueError, match="evaluation/sft has other settings .trained: "):
        evaluate(folder, **how, resume=True)


def test_questions_of_training_are_not_held_out(tmp_path, folder):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "a", "answer": "b"}) + "\n")
    told = str(run("train", "evaluate", folder, path).exception)
    assert "drawn questions: leave out the file" in told
    held = json.loads((folder / "rollouts" / "run.json").read_text())
    from_file = Questions(str(path)).settings()
    settings = held["settings"] | from_file
    again = tmp_path / "again"
    store = Store(again / "rollouts", settings, fields=FIELDS)
    store.add([{"key": "1/0", "id": "1", "sample": 0, "text": PLAIN, "tokens": 5, "score": 1.0,
                "reward": 0.667, "error": None}])  # fmt: skip
    store.finish()
    path.with_name("more.jsonl").write_text('{"question": "c", "answer": "d"}\n' + path.read_text())
    for same in (path, path.with_name("more.jsonl")):
        told = str(run("train", "evaluate", again, same).exception)
        assert "1 of its questions are those of training: give held-out" in told
    assert "give a file of held-out ones" in str(run("train", "evaluate", again).exception)
