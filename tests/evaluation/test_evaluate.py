"""vrga eval: two arms on the same samples, and what stops and resumes them."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command import ended, status

pytest.importorskip("lmms_eval")

import vrga
from vrga.cli.status import FAILED, STOPPED
from vrga.demo.data import PROMPTS, SPLITS, TEST_SEEDS, make_samples, parse_answer
from vrga.evaluation import store as stores
from vrga.evaluation.compare import compare
from vrga.steering.patching import patch_of

ROOT = Path(__file__).parents[2]
GRID = ("--tasks", "grid", "--prompt", "cot", "--split", "similar", "--max-new-tokens", "64")


@pytest.fixture(autouse=True, scope="module")
def _own_caches(tmp_path_factory):
    """Rows are cached apart from the user's; processes inherit it."""
    from lmms_eval.api import task

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patched.delenv("VRGA_BOX", raising=False)
        patched.setenv("OMP_NUM_THREADS", "1")
        task._resolve_hf_datasets_cache_dir.cache_clear()
        yield
        task._resolve_hf_datasets_cache_dir.cache_clear()
        os.environ.pop("VRGA_BOX", None)


def evaluate(output, *more):
    return status("eval", *GRID, "--output", output, *more)


def results(folder):
    return json.loads((folder / "results.json").read_text())


def samples(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def answers(folder):
    """What decides the table: everything but times."""
    return {one["key"]: (one["text"], one["score"], one["tokens"]) for one in samples(folder)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of both arms from beginning to end."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert evaluate(folder, "--compare", "--limit", 24, "--batch-size", 8) == 0
    return folder


@pytest.mark.slow
def test_both_arms_answer_the_same_samples(whole):
    found = samples(whole)
    by_arm = {arm: [one for one in found if one["arm"] == arm] for arm in ("base", "vrga")}
    assert [one["id"] for one in by_arm["base"]] == [one["id"] for one in by_arm["vrga"]]
    assert len(by_arm["base"]) == 24
    for base, steered in zip(*by_arm.values(), strict=True):
        assert base["prompt"] == steered["prompt"] and not base["steered"] and steered["steered"]
        assert base["region"] is None and steered["region"]["image_tokens"] == 36
        assert base["seconds"] > 0 and base["error"] is None
        assert base["config"] == results_hash(whole)


def results_hash(folder):
    return json.loads((folder / "run.json").read_text())["hash"]


@pytest.mark.slow
def test_scores_are_those_of_the_texts(whole):
    drawn = make_samples(24, seed=TEST_SEEDS.start, **SPLITS["similar"])
    for one in samples(whole):
        assert one["score"] == (parse_answer(one["text"]) == drawn[one["id"]].color)
    found = results(whole)["tasks"]["vrga_grid"]
    for arm in ("base", "vrga"):
        own = [one["score"] for one in samples(whole) if one["arm"] == arm]
        assert found["arms"][arm]["score"][0] == pytest.approx(sum(own) / 24)
        assert found["arms"][arm]["metrics"]["accuracy"] == pytest.approx(sum(own) / 24)


@pytest.mark.slow
def test_the_table_can_go_into_a_paper(whole):
    text = (whole / "table.md").read_text()
    head, rule, base, steered = text.splitlines()[:4]
    assert head.startswith("| task | arm | samples | score |") and set(rule) <= set("| -")
    assert base.startswith("| vrga_grid | base | 24 |") and "(" in steered


@pytest.mark.slow
def test_results_say_what_they_depend_on(whole):
    found = results(whole)
    assert {"torch", "transformers", "lmms-eval", "python", "device"} <= set(found["versions"])
    assert found["settings"]["config"]["gain"] == 3.0 and found["settings"]["seed"] == 0
    assert found["settings"]["attn_implementation"] is None and found["processes"] == 1


@pytest.mark.parametrize(
    ("arms", "given"),
    [((), "none of them"), (("--vrga", "--no-vrga"), "--vrga, --no-vrga")],
    ids=["none", "two"],
)
def test_an_arm_must_be_named(tmp_path, arms, given, capsys):
    assert ended("eval", *GRID, "--output", tmp_path, *arms) == 2
    told = f"give one of --vrga, --no-vrga, --compare, which says what is evaluated; given: {given}"
    assert " ".join(capsys.readouterr().err.split()) == f"vrga: {told}"


def test_the_base_arm_takes_no_steering_options(tmp_path):
    with pytest.raises(ValueError, match="--gain: about steering, and --no-vrga does not steer"):
        evaluate(tmp_path, "--no-vrga", "--gain", 2)


@pytest.mark.slow
def test_one_arm_is_the_same_arm_of_both(whole, tmp_path):
    """Another batch size, each arm on its own: the same answers."""
    for arm, flag in (("base", "--no-vrga"), ("vrga", "--vrga")):
        folder = tmp_path / arm
        assert evaluate(folder, flag, "--limit", 24, "--batch-size", 5) == 0
        expected = {key: x for key, x in answers(whole).items() if key.startswith(arm)}
        assert answers(folder) == expected
    from rich.console import Console

    change = compare(tmp_path / "base", tmp_path / "vrga", Console(quiet=True))
    both = results(whole)["tasks"]["vrga_grid"]["difference"]
    assert change["vrga_grid base -> vrga"]["score"] == tuple(both["score"])
    assert change["vrga_grid base -> vrga"]["pairs"] == both["pairs"] == 24


def command(output, *more, processes=0):
    start = [sys.executable]
    if processes:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                  str(processes)]  # fmt: skip
    return [*start, str(ROOT / "benchmarks" / "evaluate.py"), *GRID, "--output", str(output),
            *map(str, more)]  # fmt: skip


@pytest.mark.slow
def test_killed_and_resumed_it_is_the_run_that_was_not(whole, tmp_path):
    folder = tmp_path / "run"
    arguments = ("--compare", "--limit", 24, "--batch-size", 2)
    killed = subprocess.Popen(command(folder, *arguments), cwd=tmp_path)
    path, lines = folder / "samples.jsonl", b""
    while killed.poll() is None and lines.count(b"\n") < 5:
        time.sleep(0.02)
        lines = path.read_bytes() if path.exists() else b""
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    held = path.read_bytes()
    assert 5 <= held.count(b"\n") < 48
    path.write_bytes(held[:-7])  # and the last line was cut off
    assert evaluate(folder, *arguments, "--resume") == 0
    assert answers(folder) == answers(whole)
    kept = [json.loads(line) for line in held[:-7].splitlines()[:-1]]
    seconds = {one["key"]: one["seconds"] for one in samples(folder)}
    assert all(seconds[one["key"]] == one["seconds"] for one in kept)  # not answered anew
    for name in ("score", "metrics", "samples", "failed"):
        first, again = (results(x)["tasks"]["vrga_grid"]["arms"] for x in (whole, folder))
        assert {arm: first[arm][name] for arm in first} == {arm: again[arm][name] for arm in again}
    assert (
        results(folder)["tasks"]["vrga_grid"]["difference"]
        == results(whole)["tasks"]["vrga_grid"]["difference"]
    )


@pytest.mark.slow
def test_two_processes_share_the_samples_and_miss_none(tmp_path):
    """Seven samples on two processes: shards of four and three."""
    arguments = ("--compare", "--limit", 7, "--batch-size", 3)
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    done = subprocess.run(
        command(shared, *arguments, processes=2), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert evaluate(alone, *arguments) == 0
    assert [one["key"] for one in samples(shared)] == [one["key"] for one in samples(alone)]
    assert answers(shared) == answers(alone)
    assert results(shared)["processes"] == 2
    for name in ("score", "metrics"):
        a, b = (results(x)["tasks"]["vrga_grid"]["arms"]["vrga"][name] for x in (shared, alone))
        assert a == b
    assert done.stdout.count("mean scores of the samples") == 1  # one process speaks
    assert not list(shared.glob("samples.*.jsonl"))


@pytest.mark.slow
def test_other_settings_do_not_resume(whole):
    with pytest.raises(ValueError, match="other settings .*limit: 24, now 23"):
        evaluate(whole, "--compare", "--limit", 23, "--resume")
    with pytest.raises(ValueError, match="holds a run already"):
        evaluate(whole, "--compare", "--limit", 24)


@pytest.mark.slow
def test_a_full_disk_stops_and_loses_nothing(whole, tmp_path, monkeypatch, capsys):
    arguments = ("--compare", "--limit", 24, "--batch-size", 8)
    own, written = stores.Store._write, []

    def write(self, content):
        written.append(content)
        if len(written) > 10:
            own(self, content[:9])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        own(self, content)

    monkeypatch.setattr(stores.Store, "_write", write)
    assert evaluate(tmp_path, *arguments) == STOPPED
    assert "--resume" in capsys.readouterr().out
    monkeypatch.setattr(stores.Store, "_write", own)
    assert evaluate(tmp_path, *arguments, "--resume") == 0
    assert answers(tmp_path) == answers(whole)


@pytest.mark.slow
def test_a_bad_image_fails_its_sample_alone(tmp_path):
    for i, sample in enumerate(make_samples(3, seed=9)):
        sample.image.save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"not an image")
    rows = [{"question": "what color is the K?", "answer": "red", "image": f"{i}.png"}
            for i in range(3)]  # fmt: skip
    (tmp_path / "GeoMath.json").write_text(json.dumps(rows))
    arguments = ["eval", "--tasks", "GeoMath", "--data", str(tmp_path), "--vrga", "--output",
                 str(tmp_path / "run"), "--max-new-tokens", "6"]  # fmt: skip
    assert status(*arguments) == FAILED
    found = samples(tmp_path / "run")
    assert [one["error"] is None for one in found] == [True, False, True]
    assert "1.png" in found[1]["error"]
    arm = results(tmp_path / "run")["tasks"]["vrga_geomath"]["arms"]["vrga"]
    assert arm["failed"] == 1 and arm["samples"] == 3
    # Mended, it is asked again; with other questions the run does not go on.
    make_samples(1, seed=9)[0].image.save(tmp_path / "1.png")
    assert status(*arguments, "--resume") == 0
    assert [one["error"] for one in samples(tmp_path / "run")] == [None] * 3
    (tmp_path / "GeoMath.json").write_text(json.dumps(rows[:2]))
    with pytest.raises(ValueError, match="data_hash"):
        status(*arguments, "--resume")


@pytest.mark.slow
def test_unknown_tasks_are_named(tmp_path):
    with pytest.raises(ValueError, match="no task nothing_such in lmms-eval"):
        status("eval", "--tasks", "nothing_such", "--vrga", "--output", tmp_path)
    # The folder is not taken by what never ran.
    assert evaluate(tmp_path, "--no-vrga", "--limit", 2) == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--tasks", " ,"), "--tasks names no task"),
        (("--tasks", "pope", "--split", "noise"), "--split is for the grid task"),
        (("--tasks", "grid", "--limit", 10_001), "the grid task has at most 10000"),
        (("--tasks", "grid", "--data", "."), "none of the tasks grid is read from files"),
    ],
    ids=["no task", "no grid", "too many", "no files"],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, told):
    with pytest.raises(ValueError, match=told):
        status("eval", *options, "--vrga", "--output", tmp_path / "x")
    assert not (tmp_path / "x").exists()


class Row:
    """A task's part that an instance holds: the prompt with an instruction behind it."""

    lmms_eval_specific_kwargs = {"post_prompt": "\nAnswer with one word."}

    def messages(self, doc):
        text = doc["question"] + self.lmms_eval_specific_kwargs["post_prompt"]
        parts = [{"type": "image", "url": doc["image"]}, {"type": "text", "text": text}]
        return [{"role": "user", "content": parts}]


def instance(doc_id=0, task="pope", **options):
    return SimpleNamespace(
        args=("", Row().messages, {"max_new_tokens": 4, **options}, doc_id, task, "test"),
        metadata={},
    )


@pytest.fixture
def rows():
    drawn = make_samples(3, seed=3)
    return {"pope": {"test": [{"question": s.question, "image": s.image} for s in drawn]}}


@pytest.mark.parametrize("prompt", ["task", "cot", "Look well. {question} Now say."])
def test_the_query_is_the_end_of_the_question(rows, prompt):
    from vrga.evaluation.lmms import VRGAModel

    loaded = vrga.load(dtype=torch.float32)
    model = VRGAModel(loaded, vrga=True, prompt=prompt)
    model.task_dict, seen = rows, []
    own = type(loaded[0]).generate

    def generate(self, *args, **kwargs):
        out = own(self, *args, **kwargs)
        seen.append((kwargs["input_ids"], int(patch_of(self).region[0].query)))
        return out

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(loaded[0]), "generate", generate)
        model.generate_until([instance(1)])
    ((ids, query),) = seen
    decode = loaded[1].tokenizer.decode
    question = rows["pope"]["test"][1]["question"]
    assert decode(ids[0, : query + 1]).endswith(question)
    assert ("Answer with one word." in decode(ids[0])) == (prompt == "task")
    if prompt == "cot":  # the embedded model is asked in the words of its training
        assert PROMPTS["cot"].format(question=question) in decode(ids[0])


def test_the_tasks_of_others_read_the_answer_alone():
    from vrga.evaluation.lmms import VRGAModel

    loaded = vrga.load(dtype=torch.float32)
    text = "<think>yes?</think><back>\\boxed{no}</back> so \\boxed{yes} then"
    boxed = VRGAModel(loaded, vrga=False, prompt="cot")
    assert boxed.scored("pope", text) == "yes" and boxed.scored("vrga_mme", text) == text
    assert boxed.scored("pope", "<think>yes</think> yes") == ""  # a missing box is no answer
    direct = VRGAModel(loaded, vrga=False, prompt="direct")
    assert direct.scored("pope", "<think>no</think> yes") == "yes"


@pytest.mark.parametrize(
    ("prompt", "given", "wanted"),
    [
        ("task", {}, {"max_new_tokens": 2048}),
        (
            "task",
            {"max_new_tokens": 16, "until": "\n\n"},
            {"max_new_tokens": 16, "until": ["\n\n"]},
        ),
        ("cot", {"max_new_tokens": 16, "until": ["\n\n"]}, {"max_new_tokens": 2048}),
        ("cot", {"max_new_tokens": 9000}, {"max_new_tokens": 9000}),
        ("task", {"temperature": 0, "top_p": 1.0}, {"max_new_tokens": 2048}),
        ("task", {"temperature": 0.7}, {"temperature": 0.7, "do_sample": True}),
        ("task", {"temperature": 0.7, "do_sample": False}, {"do_sample": False}),
    ],
    ids=["none", "own", "reasoning", "long", "greedy", "sampled", "not sampled"],
)
def test_a_reasoning_prompt_has_room_for_its_answer(prompt, given, wanted):
    from vrga.evaluation.lmms import VRGAModel

    options = VRGAModel(vrga.load(dtype=torch.float32), vrga=False, prompt=prompt)._options(given)
    expected = {"max_new_tokens": 2048, "do_sample": False} | wanted
    assert options == expected


def test_the_box_rule_does_not_outlive_its_prompt():
    from vrga.evaluation.lmms import VRGAModel

    loaded = vrga.load(dtype=torch.float32)
    VRGAModel(loaded, vrga=False, prompt="cot")
    assert os.environ["VRGA_BOX"] == "1"
    VRGAModel(loaded, vrga=False)
    assert "VRGA_BOX" not in os.environ


def test_texts_between_images_are_instructed_once(rows):
    from vrga.evaluation.lmms import VRGAModel

    class Between(Row):
        def messages(self, doc):
            parts = [{"type": "text", "text": "First:"}, {"type": "image", "url": doc["image"]},
                     {"type": "text", "text": doc["question"]}]  # fmt: skip
            return [{"role": "user", "content": parts}]

    model = VRGAModel(vrga.load(dtype=torch.float32), vrga=False, prompt="cot")
    model.task_dict, one = rows, instance(0)
    one.args = ("", Between().messages, *one.args[2:])
    messages, question = model._chat(one)
    texts = [part["text"] for part in messages[0]["content"] if part["type"] == "text"]
    asked = rows["pope"]["test"][0]["question"]
    assert texts == ["First:", PROMPTS["cot"].format(question=asked)] and question == asked


def test_the_plugin_must_be_told_its_arm():
    from vrga.evaluation.lmms import VRGAModel

    with pytest.raises(ValueError, match="say vrga=True or vrga=False"):
        VRGAModel(None)
    with pytest.raises(ValueError, match="leave them out with vrga=False"):
        VRGAModel(None, vrga=False, gain=2.0)


def test_lmms_eval_itself_finds_the_model():
    from lmms_eval import models

    assert models.get_model("vrga").__name__ == "VRGAModel"


def test_a_sample_asked_twice_is_answered_twice(rows, tmp_path):
    from vrga.evaluation.lmms import VRGAModel

    model = VRGAModel(vrga.load(dtype=torch.float32), vrga=False)
    model.task_dict = rows
    model.store = stores.Store(tmp_path, {"a": 1})
    padding = instance(2)
    padding.metadata = {"__padding_only__": True}
    found = model.generate_until([instance(0), instance(1), instance(0), padding])
    assert len(found) == 4 and found[0].text == found[2].text and found[3].text == ""
    assert set(model.store.done) == {"base/pope/0", "base/pope/1", "base/pope/0+"}
