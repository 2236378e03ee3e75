"""Rollouts: every question several times, scored, resumable, from a model or a server."""

import json
import socket

import pytest
from command import run
from PIL import Image
from talking import talking

from vrga.training.model import loaded
from vrga.training.questions import Questions
from vrga.training.rollouts import read_rollouts, summary

pytestmark = pytest.mark.slow

RIGHT = "<think> I see red </think> \\boxed{red}"


def lines(folder):
    text = (folder / "rollouts" / "samples.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def file(tmp_path):
    Image.new("RGB", (56, 56), "red").save(tmp_path / "a.png")
    rows = [
        {"id": "a", "image": "a.png", "question": "what color?", "answer": "red"},
        {"id": "b", "image": "a.png", "question": "what shade?", "answer": "dark"},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_answers_are_scored_and_the_same_whenever_they_are_asked(tmp_path):
    ask = ("train", "rollouts", "--limit", 3, "--samples", 4, "--max-new-tokens", 96)
    done = run(*ask, "--output", tmp_path / "whole")
    assert done.exit_code == 0, done.output
    whole = lines(tmp_path / "whole")
    assert [one["key"] for one in whole] == [f"{id}/{i}" for id in range(3) for i in range(4)]
    assert len({one["text"] for one in whole}) > 3  # sampled, not repeated
    items = {item.id: item for item in Questions(limit=3).items()}
    for one in whole:
        box = f"\\boxed{{{items[one['id']].answer}}}"
        assert one["score"] == float(box in one["text"]) and one["tokens"] > 0
        assert one["reward"] in (0.0, 0.667, 1.0)

    cut = tmp_path / "cut" / "rollouts"
    cut.mkdir(parents=True)
    for name in ("run.json", "samples.jsonl"):
        text = (tmp_path / "whole" / "rollouts" / name).read_text()
        (cut / name).write_text(text if name == "run.json" else text[: len(text) // 2])
    assert "holds a run already" in str(run(*ask, "--output", tmp_path / "cut").exception)
    assert run(*ask, "--output", tmp_path / "cut", "--resume").exit_code == 0
    assert lines(tmp_path / "cut") == whole
    other = run(*ask, "--temperature", 0.5, "--output", tmp_path / "cut", "--resume")
    assert "other settings (temperature: 1.0, now 0.5)" in str(other.exception)


def test_how_hard_questions_are_is_counted_from_answers_that_did_not_fail():
    scores = {"a": [0, 0], "b": [0, 1], "c": [1, 1], "d": [1, None]}
    answers = [
        {"id": id, "score": score, "error": None if score is not None else "late"}
        for id, own in scores.items()
        for score in own
    ]
    found = summary(answers, 2)
    assert (found["never"], found["sometimes"], found["always"]) == (1, 1, 2)
    assert found["failed"] == 1 and found["right"] == 4 / 7


def test_a_file_without_answers_is_refused_and_questions_without_one_are_left_out(file):
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row | {"answer": None}) + "\n" for row in rows))
    with pytest.raises(ValueError, match="no question has an answer"):
        Questions(str(file)).items()
    file.write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[1] | {"answer": None}) + "\n")
    assert [item.id for item in Questions(str(file)).items()] == ["a"]
    assert Questions(str(file)).without_answer() == 1


def test_a_file_that_changed_is_not_the_one_that_was_asked(file):
    held = Questions.of(Questions(str(file)).settings())
    assert len(held.items()) == 2
    file.write_text(file.read_text() + "\n")
    with pytest.raises(ValueError, match="it has changed since"):
        held.items()


def test_training_and_test_questions_never_meet():
    train, test = (Questions(part=part, limit=20).items() for part in ("train", "test"))
    pictures = {item.images[0].tobytes() for item in train}
    assert not pictures & {item.images[0].tobytes() for item in test}
    other = Questions(seed=1, limit=20).items()
    assert not pictures & {item.images[0].tobytes() for item in other}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"prompt": "why?"}, "cot, or a text with {question}"),
        ({"prompt": "{question} \\boxed{}"}, "drawn questions have their own"),
        ({"split": "murky"}, "known are"),
        ({"seed": 40}, "0 to 39"),
        ({"limit": 10_001}, "at most 10000"),
        ({"tag": "<back>"}, "without brackets"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_asked_is_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        Questions(**wrong)


@pytest.mark.parametrize("heeds_n", [True, False], ids=["n", "one at a time"])
def test_a_server_answers_in_the_models_place(file, tmp_path, heeds_n):
    with talking(lambda request: RIGHT, heeds_n=heeds_n) as (address, asked):
        done = run(
            "train", "rollouts", file, "--model", "m", "--server", address, "--samples", 3,
            "--temperature", 0.7, "--output", tmp_path / "out", "--parallel", 1,
            "--prompt", "{question} Think, then \\boxed{}.",
        )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert len(asked) == (2 if heeds_n else 6)
    part, text = asked[0]["messages"][0]["content"]
    assert part["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert text["text"] == "what color? Think, then \\boxed{}."
    assert (asked[0]["model"], asked[0]["temperature"]) == ("m", 0.7)
    assert [(one["id"], one["score"]) for one in lines(tmp_path / "out")] == [
        *[("a", 1.0)] * 3, *[("b", 0.0)] * 3
    ]  # fmt: skip
    questions, settings, answers = read_rollouts(tmp_path / "out" / "rollouts")
    assert settings["model"] == "m" and len(answers) == 6
    assert questions.text(questions.items()[0]) == "what color? Think, then \\boxed{}."


def test_a_late_or_empty_reply_is_a_failed_question_that_resuming_asks_again(file, tmp_path):
    def reply(request):
        return None if "shade" in request["messages"][0]["content"][1]["text"] else 0.8

    ask = ("train", "rollouts", file, "--model", "m", "--samples", 2, "--output", tmp_path / "out")
    with talking(reply) as (address, _):
        done = run(*ask, "--server", address, "--timeout", 0.2)
    assert done.exit_code == 4, done.output
    assert {one["id"]: one["error"] for one in lines(tmp_path / "out")} == {
        "a": "no reply within 0.2 seconds", "b": "the server replied without an answer"
    }  # fmt: skip
    port = int(address.split(":")[2].removesuffix("/v1"))
    with talking(lambda request: RIGHT, port=port):
        assert run(*ask, "--server", address, "--resume").exit_code == 0
    assert [one["error"] for one in lines(tmp_path / "out")] == [None] * 4


def test_nobody_at_the_address_is_told_at_once(file, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = run(
        "train", "rollouts", file, "--model", "m", "--server", f"http://127.0.0.1:{port}/v1",
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert isinstance(done.exception, ConnectionError)
    assert "start the server, or mend the address" in str(done.exception)


def test_options_that_do_not_fit_are_refused_before_anything_is_loaded(file, tmp_path):
    for more, told in (
        (("--server", "http://x/v1"), "--server needs --model"),
        (("--server", "http://x/v1", "--model", "m", "--seed", 1), "--seed 1: read by drawn"),
        (("--server", "localhost:8000", "--model", "m"), "give an address"),
        (("--server", "http://x/v1", "--model", "m", "--timeout", "inf"), "--timeout inf: seconds"),
        (("--samples", 0), "at least 1"),
        (("--temperature", 0), "above 0"),
    ):
        done = run("train", "rollouts", file, "--output", tmp_path / "out", *more)
        assert told in str(done.exception), done.output
    assert not (tmp_path / "out").exists()


def test_a_processor_without_a_chat_template_is_refused(monkeypatch):
    model, processor = loaded(None, "back")
    processor.chat_template = None
    monkeypatch.setattr("vrga.training.model.load", lambda *args, **more: (model, processor))
    with pytest.raises(ValueError, match="has no chat template"):
        loaded("m", "back")


def test_a_tag_that_is_left_out_of_texts_is_refused(monkeypatch):
    model, processor = loaded(None, "back")
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<recheck>"]})
    monkeypatch.setattr("vrga.training.model.load", lambda *args, **more: (model, processor))
    loaded("m", "back")
    with pytest.raises(ValueError, match="<recheck> is a special token of m"):
        loaded("m", "recheck")


def test_no_rollouts_is_told(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        read_rollouts(tmp_path)
