"""Rows: which answers are chosen, what a teacher may do to them, and at which rate."""

import errno
import json
import subprocess
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from command import run
from talking import talking

from vrga.training import filters
from vrga.training.data import read_data
from vrga.training.filters import keeps_words, mixture, select, verdict
from vrga.training.questions import Questions
from vrga.training.rollouts import FIELDS, Store, keys_of
from vrga.training.teachers import grid, replies

ROOT = Path(__file__).parents[2]
QUESTIONS = Questions(limit=12)
ITEMS = QUESTIONS.items()
ITEM = ITEMS[0]


def chain_of(item, think="see A blue."):
    letter = item.question[18]
    return f"<think> {think} </think> answer {letter} {item.answer}. \\boxed{{{item.answer}}}"


CHAIN = chain_of(ITEM)
TAUGHT = {style: grid(ITEM, CHAIN, style, "back") for style in ("semantic", "solution")}


@pytest.fixture
def folder(tmp_path):
    """Rollouts: question 0 always right, 1 never, the others in 2 of 4 answers."""
    settings = {**QUESTIONS.settings(), "model": None, "samples": 4, "temperature": 1.0}
    store = Store(tmp_path / "rollouts", settings, fields=FIELDS)
    for number, item in enumerate(ITEMS):
        right = {0: 4, 1: 0}.get(number, 2)
        for i, key in enumerate(keys_of(item, 4)):
            text = chain_of(item) if i < right else "<think> a </think> \\boxed{grey}"
            store.add([{
                "key": key, "id": item.id, "sample": i, "text": text, "tokens": 9,
                "score": float(i < right), "reward": 0.667, "error": None,
            }])  # fmt: skip
    store.finish([key for item in ITEMS for key in keys_of(item, 4)])
    return tmp_path


def data(folder, *more):
    return run("train", "data", folder, *more)


# --- choosing ---


def test_questions_of_mixed_success_are_kept_and_every_answer_falls_at_one_gate(folder):
    answers = [json.loads(x) for x in (folder / "rollouts/samples.jsonl").read_text().splitlines()]
    answers[8]["text"] = "\\boxed{right in another form}"
    answers[8]["reward"] = 0.0
    answers[15] |= {"error": "late", "score": None}
    kept = filters.mixed(answers, (0.05, 0.95))
    assert kept == [item.id for item in ITEMS[2:]]
    chains, fell = select(QUESTIONS, answers, kept, 1, seed=0)
    assert sum(fell.values()) + len(chains) == len(answers) == 48
    # Of 10 mixed questions 20 right answers; one in another form; question 2 so has one.
    assert fell == Counter(difficulty=8, failed=1, wrong=19, form=1, more=9)
    assert len({chain.id for chain in chains}) == len(chains) == 10
    both, _ = select(QUESTIONS, answers, kept, 2, seed=0)
    assert len(both) == 19 and select(QUESTIONS, answers, kept, 1, seed=0)[0] == chains


def test_no_question_of_mixed_success_is_told(folder):
    done = data(folder, "--difficulty", ".6,.9")
    assert "no question of mixed success" in str(done.exception)
    assert "widen --difficulty" in str(done.exception)
    for wrong in (".9,.1", "-1,.5", ".5"):
        assert "--difficulty" in str(data(folder, "--difficulty", wrong).exception)


# --- the quality filter ---


@pytest.mark.parametrize("style", ["semantic", "solution"])
@pytest.mark.parametrize("tag", ["back", "recheck"])
def test_the_grids_teacher_passes_its_own_filter(style, tag):
    taught = grid(ITEM, CHAIN, style, tag)
    assert f"<{tag}> see" in taught
    questions = Questions(limit=12, tag=tag)
    assert verdict(questions, ITEM, CHAIN, taught, style) is None


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        (lambda text: "I cannot do that.", "form"),
        (lambda text: CHAIN, "form"),  # without a span
        (lambda text: text.replace("</back>", ""), "form"),
        (lambda text: text.replace("<back>", "<back></back> <back>"), "empty"),
        (lambda text: text[: text.index("<back>")] + "<back> \n </back>"
         + text[text.index("</back>") + 7 :], "empty"),
        (lambda text: text[: text.rindex("\\boxed")] + "\\boxed{grey}", "answer"),
        (lambda text: text.replace("see A blue.", "see A red."), "words"),
        (lambda text: text.replace("see A blue.", "see A blue. So:"), "words"),
        (lambda text: text.replace("see A blue.", "see A."), "words"),
    ],
    ids=["nonsense", "no span", "open", "empty and one", "blank", "answer", "changed", "added",
         "left out"],
)  # fmt: skip
@pytest.mark.parametrize("style", ["semantic", "solution"])
def test_what_a_teacher_spoils_falls_at_its_gate(style, change, gate):
    assert verdict(QUESTIONS, ITEM, CHAIN, change(TAUGHT[style]), style) == gate


def test_a_chains_words_are_kept_whatever_tags_and_spaces_do():
    chain = "<think> a b c </think> so \\boxed{x}"
    inside = "<think> a b </think>\n<back> look </back> <think>c </think> so  \\boxed{x}"
    behind = chain + " <back> look </back> <think> yes </think> \\boxed{x}"
    assert keeps_words(chain, inside, "semantic", "back")
    assert keeps_words(chain, behind, "solution", "back")
    assert not keeps_words(chain, behind, "semantic", "back")
    assert not keeps_words(chain, inside, "solution", "back")
    assert not keeps_words(chain, inside.replace("a b", "b a"), "semantic", "back")


# --- the mixture ---


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.3, 0.4, 0.5, 0.7, 0.9, 0.96, 1.0])
def test_the_rate_is_exact_and_no_more_rows_would_do(rate):
    share = Fraction(str(rate))
    for spans, chains, size in ((100, 100, None), (37, 211, None), (80, 100, 61), (1000, 1001, 7)):
        able = [
            n for n in range(1, min(chains, size or chains) + 1)
            if (share * n).denominator == 1 and share * n <= spans
        ]  # fmt: skip
        if not able:
            with pytest.raises(ValueError, match="no number of rows has exactly this share"):
                mixture(spans, chains, rate, size)
            continue
        back, plain = mixture(spans, chains, rate, size)
        assert back + plain == max(able) and Fraction(back, back + plain) == share


def test_rows_are_written_at_the_rate_with_a_table_and_a_page(folder):
    done = data(folder, "--reflection", 0.3)
    assert done.exit_code == 0, done.output
    rows, summary = read_data(folder)
    assert Counter(row["kind"] for row in rows) == {"back": 3, "plain": 7}
    assert len({row["key"] for row in rows}) == 10 and summary["kept"] == [i.id for i in ITEMS[2:]]
    assert all(("<back>" in row["completion"]) == (row["kind"] == "back") for row in rows)
    assert "its question is too hard or too easy" in done.output
    assert "the chain's own words were changed" in done.output
    page = (folder / "data" / "rows.html").read_text()
    assert page.count("<section") == 10 and page.count("<mark>&lt;back&gt;") == 3
    assert page.count("data:image/jpeg;base64,") == 10


# --- teachers ---


def test_a_teacher_of_ones_own_that_fails_is_counted_and_never_trained_on(
    folder, tmp_path, monkeypatch
):
    (tmp_path / "own_teacher.py").write_text(
        "import threading\n"
        "from vrga.training.teachers import grid\n"
        "ASKED = []\n"
        "def teach(item, chain, style, tag):\n"
        "    ASKED.append(chain)\n"
        "    number = len(ASKED)\n"
        "    if number == 1: threading.Event().wait()\n"
        "    if number == 6: raise RuntimeError('no quota')\n"
        "    if number == 2: return None\n"
        "    if number == 3: return 'nonsense'\n"
        "    good = grid(item, chain, style, tag)\n"
        "    if number == 4: return good[:good.rindex('{')] + '{grey}'\n"
        "    return good\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    how = ("--teacher", "own_teacher:teach", "--timeout", 0.5)
    done = data(folder, *how, "--reflection", 0.5)
    assert done.exit_code == 0, done.output
    rows, summary = read_data(folder)
    assert summary["fell"]["teacher"] == {"teacher": 3, "form": 1, "answer": 1}
    assert Counter(row["kind"] for row in rows) == {"back": 5, "plain": 5}
    import own_teacher

    # Five were wanted of ten chains, and five fell.
    assert len(own_teacher.ASKED) == summary["asked"] == 10
    again = data(folder, *how, "--reflection", 0.2, "--resume")
    assert again.exit_code == 0 and len(own_teacher.ASKED) == 10
    rows, summary = read_data(folder)
    assert Counter(row["kind"] for row in rows) == {"back": 2, "plain": 8}
    # What failed is no less counted for being asked again should it be needed.
    assert summary["fell"]["teacher"] == {"teacher": 3, "form": 1, "answer": 1}
    assert summary["asked"] == 10
    other = data(folder, *how, "--style", "solution", "--resume")
    assert "other settings (style: 'semantic', now 'solution')" in str(other.exception)


def test_a_teacher_none_of_whose_work_can_be_used_is_told(folder, tmp_path, monkeypatch):
    (tmp_path / "bad_teacher.py").write_text(
        "def teach(item, chain, style, tag): raise RuntimeError('no quota')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    done = data(folder, "--teacher", "bad_teacher:teach")
    assert "10 x the teacher failed" in str(done.exception) and "no quota" in str(done.exception)
    assert not (folder / "data" / "rows.jsonl").exists()


def test_a_model_on_a_server_is_told_what_to_do_and_its_timeouts_are_counted(folder):
    def reply(request):
        text = request["messages"][0]["content"][1]["text"]
        chain = text.rpartition("Solution:\n")[2]
        item = next(item for item in ITEMS if item.question in text and item.answer in chain)
        assert "word for word" in text and "<back> and </back>" in text
        return 0.9 if item is ITEMS[2] else grid(item, chain, "semantic", "back")

    with talking(reply) as (address, asked):
        how = ("--teacher", address, "--teacher-model", "m", "--timeout", 0.4)
        done = data(folder, *how, "--reflection", 0.9, "--parallel", 3)
    assert done.exit_code == 0, done.output
    assert read_data(folder)[1]["back"] == 9
    assert asked[0]["temperature"] == 0


@pytest.mark.parametrize(
    ("teacher", "model", "told"),
    [
        ("gird", None, "grid, a server's address (http://...), or module:function"),
        ("no_such_module:f", None, "found in PYTHONPATH"),
        ("vrga.training.teachers:nothing", None, "found in PYTHONPATH"),
        ("vrga.training.teachers:STYLES", None, "is a tuple, not a function"),
        ("http://localhost:1/v1", None, "needs --teacher-model"),
        ("grid", "m", "is for a teacher on a server"),
    ],
)
def test_a_teacher_that_is_none_is_refused(teacher, model, told):
    with pytest.raises(ValueError) as refused:
        list(replies({"1": (ITEM, CHAIN)}, teacher, "semantic", "back", model=model))
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--style", "x"), "--style x: known are"),
        (("--teacher", "gird"), "--teacher gird: grid"),
        (("--teacher-model", "m"), "is for a teacher on a server"),
        (("--teacher", "os:getcwd", "--timeout", "inf"), "--timeout inf: seconds above 0"),
        (("--teacher", "os:getcwd", "--timeout", "nan"), "--timeout nan: seconds above 0"),
    ],
    ids=["style", "teacher", "model", "endless", "nan"],
)
def test_how_spans_are_made_is_checked_also_where_none_are(folder, options, told):
    assert told in str(data(folder, "--reflection", 0, *options).exception)
    assert not (folder / "data").exists()


def test_rollouts_that_were_interrupted_or_lost_a_line_are_not_all_there_is(folder):
    path = folder / "rollouts" / "samples.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    for left in (lines[:20], [*lines[:20], "{}\n", *lines[21:]]):
        path.write_text("".join(left))
        told = str(data(folder, "--reflection", 0).exception)
        assert f"is not whole, {20 if len(left) == 20 else 47} of 48 answers: go on with" in told
    assert not (folder / "data").exists()


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "the disk is full"), 3)],
    ids=["interrupted", "full"],
)
def test_what_was_stopped_says_how_it_goes_on(folder, monkeypatch, error, status):
    def stopped(*args, **more):
        raise error

    monkeypatch.setattr("vrga.training.data.make", stopped)
    done = data(folder)
    assert done.exit_code == status and "go on with --resume" in done.output
    monkeypatch.setattr("vrga.training.ablate.ablate", stopped)
    done = run("train", "ablate", "sft", "--output", folder)
    assert done.exit_code == status and "go on with the same command" in done.output


def test_too_few_chains_for_the_rate_are_told_as_that(folder):
    done = data(folder, "--reflection", 0.03)  # takes 100 rows, of which there are 10
    assert "no number of rows has exactly this share" in str(done.exception)


def test_make_train_demo_goes_on_with_the_steps_that_had_begun(folder):
    how = ["make", "-n", "train-demo", "RESUME=--resume", f"TRAINED={folder}"]
    told = subprocess.run(how, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line.split("bin/vrga")[1] for line in told.splitlines() if "vrga train" in line]
    found = subprocess.check_output(["sh", "-c", "\n".join(f"echo{x}" for x in lines)], text=True)
    resumed = {line.split()[1] for line in found.splitlines() if "--resume" in line}
    assert resumed == {"rollouts", "evaluate"}  # which finds out itself what is there


def test_rows_that_are_not_there_or_damaged_are_told(folder):
    with pytest.raises(ValueError, match="run vrga train data"):
        read_data(folder)
    assert data(folder).exit_code == 0
    path = folder / "data" / "rows.jsonl"
    path.write_text(path.read_text()[:-30] + "\n")
    with pytest.raises(ValueError, match="are damaged"):
        read_data(folder)
