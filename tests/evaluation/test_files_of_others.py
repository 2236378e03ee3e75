"""Question files as others write them, and the folders of runs that others edited."""

import json
import os
import sys

import numpy as np
import pytest
from command import status
from encoded import stored
from PIL import Image

from vrga.evaluation import store as stores
from vrga.evaluation.compare import compare
from vrga.evaluation.items import read_items
from vrga.evaluation.options import letter_of_key, read_options
from vrga.evaluation.samples import accuracy, compared
from vrga.evaluation.store import ANSWERED, SAMPLES, SETTINGS, Store
from vrga.evaluation.tasks import documents, judged
from vrga.intervals import mcnemar, wilson

ROW = {"question": "Which?", "answer": "B"}
RED_BLUE = {"A": "red", "B": "blue"}
OPTIONS = {
    "list": ["red", "blue"],
    "object": {"A": "red", "B": "blue"},
    "lower case": {"a": "red", "b": "blue"},
    "bracketed": {"(A)": "red", "(B)": "blue"},
    "numbers": {"1": "red", "2": "blue"},
    "words": {"option_one": "red", "option_two": "blue"},
    "columns": {"A": "red", "B": "blue", "C": None},
    "labels": {"label": ["A", "B"], "text": ["red", "blue"]},
    "objects": [{"label": "A", "text": "red"}, {"label": "B", "text": "blue"}],
    "lettered": ["A. red", "B. blue"],
    "bracketed list": ["(A) red", "(B) blue"],
    "json": '["red", "blue"]',
    "json object": '{"A": "red", "B": "blue"}',
    "python": "['red', 'blue']",
    "lines": "red\nblue\n",
    "lettered lines": "A. red\nB. blue",
    "windows": "(A) red\r\n(B) blue",
    "semicolons": "red; blue",
    "lettered semicolons": "A. red; B. blue",
    "in a line": "(A) red (B) blue",
    "in a line, dots": "A. red B. blue",
}


@pytest.mark.parametrize("given", OPTIONS.values(), ids=OPTIONS)
def test_options_in_every_form(tmp_path, given):
    assert read_options(given) == RED_BLUE
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(ROW | {"choices": given}))
    (item,) = read_items(path)
    assert item.texts["direct"].startswith("Which?\nA. red\nB. blue\n")
    assert item.is_right("B", "direct") and item.is_right("blue", "direct")
    assert not item.is_right("A", "direct")
    for name in ("choices", "options", "option"):
        doc = ROW | {name: given}
        assert documents.text(doc) == "Which?\nA. red\nB. blue"
        assert documents.options(doc) == RED_BLUE


@pytest.mark.parametrize(
    "given", [None, [], {}, "", " ", "[]", "None", "nan", float("nan"), np.array([])]
)
def test_no_options_in_every_form(given):
    assert read_options(given) == {} and documents.text(ROW | {"choices": given}) == "Which?"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("red", "'red' is one text: give a list"),
        ("ABCD", "is one text"),
        (3, "choices 3: give a list"),
        (["red", None], "None is no text"),
        (["red", ""], "'' is no text"),
        (["red", ["blue"]], "is no text of an option"),
        ({"A": ["red"]}, "is no text of an option"),
        ({"A": "red", "(a)": "blue"}, "a letter stands twice"),
        ([str(i) for i in range(27)], "27 choices; at most 26"),
        ({"label": ["A"], "text": ["red", "blue"]}, "1 labels of 2 texts"),
    ],
)
def test_options_of_no_known_form_are_refused(tmp_path, given, told):
    with pytest.raises(ValueError, match=told):
        read_options(given)
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(ROW | {"choices": given}))
    with pytest.raises(ValueError, match=f"line 1: .*{told}"):
        read_items(path)


def test_an_answer_that_is_an_options_key_is_its_letter(tmp_path):
    given = {"1": "red", "2": "blue"}
    assert letter_of_key(given, "2") == "B" and letter_of_key(RED_BLUE, "B") == "B"
    assert documents.target({"answer": 2, "options": json.dumps(given)}) == "B"
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(ROW | {"answer": 2, "choices": given}))
    assert read_items(path)[0].is_right("B", "direct")


TEXTS = {
    "lines": "{0}\n\n{1}\n",
    "list": "[{0}, {1}]",
    "list over lines": "[\n{0},\n{1}\n]\n",
    "mark": "\ufeff{0}\n{1}",
    "marked list": "\ufeff[{0}, {1}]",
    "windows": "{0}\r\n{1}\r\n",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_questions_in_every_form(tmp_path, text, encoding):
    rows = [json.dumps(ROW | {"id": name}, ensure_ascii=False) for name in ("é", "b")]
    path = tmp_path / "q.jsonl"
    text = text.format(*rows)
    path.write_bytes((text.lstrip("\ufeff") if encoding != "utf-8" else text).encode(encoding))
    assert [item.id for item in read_items(path)] == ["é", "b"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1]", "question 1: 1 is no object"),
        ('[{"question": "x"', "is no JSON list"),
        ("[" * 100_000, "nested too deeply"),
        ("3", "line 1: 3 is no object"),
        (b"\xff\xff{", "is no text in UTF-8"),
        ("[]", "holds no question"),
        ('{"question": "x", "answer": "y", "answer": "z"}', "'answer' stands in it twice"),
    ],
)
def test_files_of_no_questions_are_named(tmp_path, text, told):
    path = tmp_path / "q.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=told) as error:
        read_items(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"question": None}, "no 'question'"),
        ({"question": " "}, "question is empty"),
        ({"question": ["x"]}, "is no text"),
        ({"answer": ""}, "answer is empty"),
        ({"answer": ["a", "b"]}, "answer .'a', 'b'. is no text"),
        ({"answer": float("nan")}, "answer is nan"),
        ({"images": [None]}, "images a list of paths"),
        ({"image": 3}, "image is one path"),
        ({"image": ""}, "image is one path"),
        ({"image": False}, "image is one path"),
        ({"image": []}, "image is one path"),
        ({"image": "a.png", "images": ["b.png"]}, "give one of them"),
        ({"question": True}, "question True is no text"),
        ({"answer": False}, "answer False is no text"),
        ({"id": [1]}, "id .1. is no text"),
        ({"box": [0, 0, float("inf"), 1]}, "is not .left, top"),
        ({"box": [0, 0, "1", 1]}, "is not .left, top"),
        ({"box": [5, 0, 1, 1]}, "is empty"),
        ({"box": [0, 0, 10**400, 1]}, "is not .left, top"),
    ],
)
def test_fields_that_say_nothing_are_refused(tmp_path, changed, told):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(ROW | changed))
    with pytest.raises(ValueError, match=told):
        read_items(path)


def test_other_fields_that_are_null_are_absent(tmp_path):
    path = tmp_path / "q.jsonl"
    absent = dict.fromkeys(("id", "image", "images", "choices", "box"))
    path.write_text(json.dumps(ROW | absent))
    (item,) = read_items(path)
    assert (item.id, item.images, item.choices, item.box) == ("1", (), {}, None)
    assert documents.question({"question": None, "problem": "x"}) == "x"
    with pytest.raises(KeyError, match="none of answer"):
        documents.target({"answer": None, "label": float("nan")})


def test_a_question_whose_answer_is_null_is_asked_and_not_scored(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(ROW | {"answer": None}))
    (item,) = read_items(path)
    assert item.answer is None and item.is_right("None", "direct") is None
    some = [
        {"target": "B", "score": 1.0, "looks": None, "error": None},
        {"target": None, "score": None, "looks": None, "error": None},
        {"target": "B", "score": None, "looks": None, "error": "no image"},
    ]
    assert accuracy(some)[0] == 0.5  # a failed one is wrong, an unknown one is neither
    assert compared(some, some)["p"] == 1.0
    assert wilson([1, np.nan]) == wilson([1]) and mcnemar([1, np.nan], [0, 1]) == 1.0


@pytest.mark.parametrize("hits", [[1], [1] * 7, [0] * 7, [1] * 1000, [0] * 1000, [1, 0]])
def test_an_interval_of_shares_stays_in_0_to_1(hits):
    value, low, high = wilson(np.array(hits))
    assert 0 <= low <= value <= high <= 1


def test_images_in_the_file_and_addresses(tmp_path):
    import base64

    encoded = base64.b64encode(stored(Image.new("RGB", (90, 70), "red"))).decode()
    rows = [{"image": encoded}, {"image": f"data:image/png;base64,{encoded}"}]
    rows += [{"image": "https://example.org/a.png"}, {"image": "a.png"}]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps(ROW | row) for row in rows))
    found = [item.images[0] for item in read_items(path)]
    assert found == [encoded, rows[1]["image"], "https://example.org/a.png", tmp_path / "a.png"]


def test_half_a_surrogate_pair_is_replaced_where_it_is_read(tmp_path):
    path = tmp_path / "q.jsonl"
    row = {"id": "x\ud800", "question": "a\ud800 \ud83d\ude00", "answer": "\udfff"}
    path.write_text(json.dumps(row))
    (item,) = read_items(path)
    assert (item.id, item.question, item.answer) == ("x\ufffd", "a\ufffd 😀", "\ufffd")
    from vrga.evaluation.files import read_rows, to_table

    assert to_table(read_rows(path)).to_pylist()[0]["question"] == item.question


def test_half_a_surrogate_pair_in_an_answer_ends_no_run_and_no_resumed_one(tmp_path):
    store = Store(tmp_path, {"a": 1})
    store.add([{"key": "1", "text": "x\ud800"}, {"key": "2"}])
    store.close()
    again = Store(tmp_path, {"a": 1}, resume=True)
    assert again.damaged == 0 and again.done["1"]["text"] == "x\ufffd"
    assert [one["key"] for one in again.finish()] == ["1", "2"]


# ---- folders of runs ----


def test_a_torn_last_line_does_not_swallow_the_next_sample(tmp_path):
    store = Store(tmp_path, {"a": 1})
    store.add([{"key": "1"}, {"key": "2"}])
    store.close()
    path = tmp_path / SAMPLES
    path.write_bytes(path.read_bytes()[:-7])
    again = Store(tmp_path, {"a": 1}, resume=True)
    again.add([{"key": "3"}])
    again.close()  # stopped once more, before it is put in order
    third = Store(tmp_path, {"a": 1}, resume=True)
    assert set(third.done) == {"1", "3"} and third.damaged == 1


def test_a_users_own_file_beside_the_samples_is_left_alone(tmp_path):
    Store(tmp_path, {"a": 1}).add([{"key": "1"}])
    for name in ("samples.backup.jsonl", "samples-mine.jsonl"):
        (tmp_path / name).write_bytes((tmp_path / SAMPLES).read_bytes().replace(b'"1"', b'"2"'))
    again = Store(tmp_path, {"a": 1}, resume=True)
    assert [one["key"] for one in again.finish()] == ["1"]
    assert (tmp_path / "samples.backup.jsonl").exists()
    assert (tmp_path / "samples-mine.jsonl").exists()


def test_a_sample_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    store, synced = Store(tmp_path, {"a": 1}), []

    def sync(number):
        assert (tmp_path / SAMPLES).read_bytes().count(b"\n") == 1 and not store.done
        synced.append(number)

    monkeypatch.setattr(os, "fsync", sync)
    store.add([{"key": "1"}])
    assert synced == [store._file.fileno()] and set(store.done) == {"1"}


WHOLE = {
    "key": "off/1", "id": "1", "arm": "off", "prompt": "cot", "text": "x", "tokens": 3,
    "seconds": 0.5, "steered": False, "region": None, "score": 1.0, "error": None,
}  # fmt: skip


@pytest.mark.parametrize(
    "edited",
    [
        {"key": "off/1"},
        *({k: v for k, v in WHOLE.items() if k != name} for name in ANSWERED),
        WHOLE | {"text": 3},
        WHOLE | {"score": "1"},
        WHOLE | {"score": True},
        WHOLE | {"score": float("nan")},
        WHOLE | {"tokens": None},
        WHOLE | {"region": []},
    ],
    ids=lambda one: " ".join(f"{k}" for k in one)[:40],
)
def test_a_line_that_is_no_finished_sample_is_asked_again(tmp_path, edited):
    Store(tmp_path, {"a": 1}, fields=ANSWERED).add([WHOLE | {"key": "off/2"}])
    store = Store(tmp_path, {"a": 1}, resume=True, fields=ANSWERED)
    with open(tmp_path / SAMPLES, "a") as file:
        file.write(json.dumps(edited | {"config": store.hash}) + "\n")
    store.close()
    again = Store(tmp_path, {"a": 1}, resume=True, fields=ANSWERED)
    assert set(again.done) == {"off/2"} and again.damaged == 1


SETTINGS_OF_OTHERS = ["{", "[1]", "{}", '{"settings": 3, "hash": "x"}', '{"settings": {}}', "\xff"]


@pytest.mark.parametrize("text", [*SETTINGS_OF_OTHERS, "[" * 100_000], ids=lambda x: x[:9])
def test_damaged_settings_are_told(tmp_path, text):
    store = Store(tmp_path, {"a": 1})
    store.add([{"key": "1"}])
    store.close()
    (tmp_path / SETTINGS).write_text(text, "latin-1")
    for resume in (True,):
        with pytest.raises(ValueError, match=r"run.json is damaged .*another --output"):
            Store(tmp_path, {"a": 1}, resume=resume)
    with pytest.raises(ValueError, match="run.json is damaged"):
        compare(tmp_path, tmp_path, None)


def test_nan_is_no_json_in_what_the_demo_saves(tmp_path):
    stores.write_json(tmp_path / "x.json", {"a": float("nan"), "b": (1.0, np.float32("inf"))})

    def refuse(name):
        raise AssertionError(name)

    found = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert found == {"a": None, "b": [1.0, None]}


def test_a_judge_in_the_working_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "judges_of_mine.py").write_text("def mine(q, t, p):\n    return 1.0\n")
    (tmp_path / "broken_judge.py").write_text("1/0\n")
    monkeypatch.chdir(tmp_path)
    kept = [path for path in sys.path if path not in ("", str(tmp_path))]
    monkeypatch.setattr(sys, "path", kept)  # as the command `vrga` starts
    assert judged.load_judge("judges_of_mine:mine")("", "", "") == 1.0
    for name in ("no_such_judge:mine", "judges_of_mine:yours", "broken_judge:x", "judges_of_mine"):
        with pytest.raises(ValueError, match=f"VRGA_JUDGE is '{name}'"):
            judged.load_judge(name)


@pytest.mark.parametrize("text", ["{", "[1]", '{"gain": -1}', '{"fain": 1}', "[" * 100_000, "3"])
def test_a_config_file_that_is_none_is_named(tmp_path, text):
    path = tmp_path / "best.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="best.json is no configuration: ."):
        status("eval", "--tasks", "grid", "--vrga", "--output", tmp_path, "--config", path)


def test_data_that_cannot_be_had_is_one_sentence(tmp_path, monkeypatch):
    lmms = pytest.importorskip("lmms_eval.tasks")
    from tenacity import Retrying, stop_after_attempt

    def offline(*args, **options):
        for attempt in Retrying(stop=stop_after_attempt(2)):
            with attempt:
                raise ConnectionError("Couldn't reach 'lmms-lab/POPE' on the Hub\nmore\nlines")

    monkeypatch.setattr(lmms, "get_task_dict", offline)
    with pytest.raises(ValueError) as error:
        status("eval", "--tasks", "vrga_pope", "--no-vrga", "--output", tmp_path / "run")
    told = str(error.value)
    assert "data of task vrga_pope cannot be loaded (ConnectionError: Couldn't reach" in told
    assert "--data" in told and "token" in told and "\n" not in told
