"""The benchmarks, run by lmms-eval offline on small files in their original formats."""

import json
import math
from types import SimpleNamespace

import pytest
from benchmarks_small import BENCHMARKS, mathvista, mme, picture, pope, tallyqa

pytest.importorskip("lmms_eval")

from PIL import Image

from vrga.demo.data import SPLITS, TEST_SEEDS, make_samples, split_options
from vrga.evaluation import files, local
from vrga.evaluation.question_text import question_in
from vrga.evaluation.tasks import documents, grid, judged
from vrga.evaluation.tasks import mme as mme_task

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _own_caches(monkeypatch, tmp_path_factory):
    """Rows are cached apart from the user's, and no variable of theirs changes the scores."""
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
    from lmms_eval.api import task

    task._resolve_hf_datasets_cache_dir.cache_clear()
    monkeypatch.delenv("VRGA_BOX", raising=False)
    monkeypatch.delenv("VRGA_JUDGE", raising=False)


@pytest.fixture(scope="module")
def scripted():
    """A model for lmms-eval that answers row i by text i, and keeps what it was asked."""
    from lmms_eval.api.model import lmms

    class Scripted(lmms):
        is_simple = False

        def __init__(self, texts):
            super().__init__()
            self.texts, self.asked = texts, []

        def generate_until(self, requests):
            answers = []
            for request in requests:
                _, doc_to_messages, _, doc_id, task, split = request.args
                self.asked.append(doc_to_messages(self.task_dict[task][split][doc_id]))
                answers.append(self.texts[doc_id])
            return answers

        def loglikelihood(self, requests):
            raise AssertionError("nothing here asks for likelihoods")

        generate_until_multi_round = loglikelihood

    return Scripted


def evaluate(model, name, folder, **options):
    """Every metric of a task over the rows that are written in a folder."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(
        model=model, tasks=[name], task_manager=manager, bootstrap_iters=0, **options
    )
    metrics = {key.removesuffix(",none"): value for key, value in found["results"][name].items()}
    return {key: v for key, v in metrics.items() if "_stderr" not in key and key != "alias"}


def load(name, folder, model_name=None):
    from lmms_eval.tasks import TaskManager, get_task_dict

    manager = TaskManager(include_path=str(folder), include_defaults=False, model_name=model_name)
    return get_task_dict([name], manager, "chat")[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "small", BENCHMARKS, ids=[s.name + ("-judged" if s.judge else "") for s in BENCHMARKS]
)
def test_a_benchmark_from_its_file_to_its_metrics(small, tmp_path, scripted, monkeypatch):
    if small.judge:
        monkeypatch.setenv("VRGA_JUDGE", small.judge)
    (tmp_path / "data").mkdir()
    small.write(tmp_path / "data")
    (name,) = local.write_tasks([small.name], tmp_path / "data", tmp_path / "out")
    model = scripted(small.answers)
    found = evaluate(model, name, tmp_path / "out")
    assert found.keys() - {"sample_len"} == small.metrics.keys()
    for metric, value in small.metrics.items():
        assert found[metric] == pytest.approx(value, nan_ok=True), metric
    assert len(model.asked) == len(small.answers)
    for messages in model.asked:
        *shown, asked = messages[0]["content"]
        assert shown and all(isinstance(part["url"], Image.Image) for part in shown)
        assert asked["type"] == "text" and "<image" not in asked["text"]


def test_the_grid_needs_no_files_and_asks_about_held_out_samples(tmp_path, scripted):
    settings = grid.Grid(samples=4, noise=20.0, objects=(2, 3), fade=0.2)
    (name,) = local.write_tasks(["vrga_grid"], tmp_path / "none", tmp_path, settings)
    samples = make_samples(4, seed=TEST_SEEDS.start, noise=20.0, objects=(2, 3), fade=0.2)
    colours = [sample.color for sample in samples]
    answers = [
        f"<think> answer {samples[0].letter} {colours[0]}. </think> \\boxed{{{colours[0]}}}",
        f"answer {samples[1].letter} {colours[1]}.",  # no box
        f"<back> \\boxed{{{colours[2]}}} </back> \\boxed{{ white }}",
        f"\\boxed{{ {colours[3].title()} }}",
    ]
    model = scripted(answers)
    assert evaluate(model, name, tmp_path)["accuracy"] == 2 / 4
    for messages, sample in zip(model.asked, samples, strict=True):
        image, text = messages[0]["content"]
        assert text["text"] == sample.question
        assert image["url"].tobytes() == sample.image.tobytes()


@pytest.mark.parametrize("split", SPLITS)
def test_the_grid_draws_every_split(split):
    settings = grid.Grid(samples=2, **split_options(split))
    wanted = make_samples(2, seed=TEST_SEEDS.start, **split_options(split))
    for row, sample in zip(grid.rows(settings), wanted, strict=True):
        (image,) = grid.images(json.loads(json.dumps(row)))
        assert image.tobytes() == sample.image.tobytes() and row["question"] == sample.question


def test_the_grid_has_a_thousand_samples_by_default():
    rows = grid.rows(grid.Grid())
    assert [row["seed"] for row in rows] == list(TEST_SEEDS[:1000])


def test_every_packaged_file_names_functions_that_exist():
    from lmms_eval.utils import load_yaml_config

    found = sorted(local.PACKAGED.glob("*.yaml"))
    assert {path.name for path in found} == {*local.TASKS.values(), "common.yaml"}
    for path in found:
        config = load_yaml_config(str(path), mode="full")
        assert all(callable(metric["aggregation"]) for metric in config.get("metric_list", []))
        assert config["generation_kwargs"]["until"] == [] and config["reasoning_tags"] == "none"


def test_tasks_of_the_hub_can_be_named_without_files():
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(local.PACKAGED), include_defaults=False)
    assert manager.all_tasks == ["vrga_hallusionbench", "vrga_mme", "vrga_pope"]


def test_all_tasks_of_a_folder_in_one_run(tmp_path, scripted):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    for write in (mme, tallyqa):
        write(tmp_path)
    names = local.write_tasks(["MME", "TallyQA"], tmp_path, tmp_path / "out")
    manager = TaskManager(include_path=str(tmp_path / "out"), include_defaults=False)
    model = scripted(["Yes", "2", "0", "No", "Yes", "No"])
    found = simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=0)
    assert names == ["vrga_mme", "vrga_tallyqa"]
    assert found["results"]["vrga_mme"]["cognition,none"] == 200.0
    assert found["results"]["vrga_tallyqa"]["accuracy,none"] == 2 / 5


@pytest.mark.parametrize(
    ("name", "task"),
    [("MathVista", "vrga_mathvista"), ("RH-Bench", "vrga_rhbench"), ("vrga_mme", "vrga_mme")],
)
def test_names_of_benchmarks_and_of_tasks(name, task):
    assert local.task_name(name) == task


def test_an_unknown_name_lists_the_tasks():
    with pytest.raises(ValueError, match="no task for 'GQA'; there are vrga_geo.*, vrga_we"):
        local.task_name("GQA")


def test_a_missing_file_says_what_was_looked_for_and_what_is_there(tmp_path):
    (tmp_path / "MME.jsonl").write_text("{}")
    wanted = "vrga_pope: looked for pope.jsonl, pope.json, .*in .*; found MME.jsonl"
    with pytest.raises(FileNotFoundError, match=wanted):
        local.write_tasks(["POPE"], tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="found no such folder"):
        local.write_tasks(["POPE"], tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("GeoMath.jsonl", "{", r"GeoMath.jsonl cannot be read as .jsonl: "),
        ("GeoMath.json", "[1, 2]", r"GeoMath.json cannot be read as .json: its rows are not"),
        ("GeoMath.parquet", "no parquet", r"GeoMath.parquet cannot be read as .parquet"),
        ("GeoMath.json", "[]", r"GeoMath.json: no rows"),
        ("GeoMath.jsonl", '{"problem": "x"}', r"row 1: none of answer, .* the fields problem"),
        ("GeoMath.csv", "answer,image\n3,a.png\n", r"row 1: none of question, .*fields answer, im"),
        ("TallyQA.json", '[{"question": "x", "answer": 3}]', r"row 1: no field issimple"),
        (
            "TallyQA.json",
            '[{"question": "x", "answer": "many", "issimple": true}]',
            r"row 1: could not convert string to float: 'many'",
        ),
        (
            "MME.jsonl",
            '{"question": "x", "answer": "Yes", "question_id": "1", "category": "taste"}',
            r"row 1: category is 'taste'; MME has existence, ",
        ),
    ],
)
def test_an_unreadable_file_is_named_with_its_fault(tmp_path, file, content, error):
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=error):
        local.write_tasks([file.split(".")[0]], tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("a.jsonl", '{"x": 1}\n\n{"x": 2}\n'),
        ("a.json", '[{"x": 1}, {"x": 2}]'),
        ("a.json", '{"1": {"x": 1}, "2": {"x": 2}}'),
        ("a.json", '{"rows": [{"x": 1}, {"x": 2}]}'),
        ("a.json", '{"x": 1}\n{"x": 2}\n'),
        ("a.csv", "\ufeffx\n1\n2\n"),
    ],
)
def test_rows_in_every_form(tmp_path, file, text):
    (tmp_path / file).write_text(text, "utf-8")
    assert [int(row["x"]) for row in files.read_rows(tmp_path / file)] == [1, 2]


def test_columns_of_several_types_become_text():
    rows = [{"a": 1, "b": {"c": 1}, "d": ["x"]}, {"a": "two", "d": None, "e": 0.5}]
    assert files.to_table(rows).to_pylist() == [
        {"a": "1", "b": '{"c": 1}', "d": ["x"], "e": None},
        {"a": "two", "b": None, "d": None, "e": 0.5},
    ]


@pytest.mark.parametrize("content", [None, b"no image", b"\x89PNG\r\n\x1a\n"])
def test_an_unreadable_image_is_an_error_of_its_row_that_names_the_file(tmp_path, content):
    tallyqa(tmp_path)
    image = tmp_path / "VG_100K_2" / "2410408.jpg"
    image.unlink()
    if content is not None:
        image.write_bytes(content)
    (name,) = local.write_tasks(["TallyQA"], tmp_path, tmp_path / "out")
    task = load(name, tmp_path / "out")
    with pytest.raises(OSError, match="image .*2410408.jpg (cannot be read|does not exist)"):
        task.doc_to_visual(task.test_docs()[0])


def test_a_linked_image_is_looked_for_by_its_name(tmp_path):
    next(small for small in BENCHMARKS if small.name == "HaloQuest").write(tmp_path)
    rows = files.read_rows(tmp_path / "HaloQuest.csv")
    rows = [{**row, "image_name": None} for row in rows]  # leaves the column with links
    (tmp_path / "HaloQuest.csv").unlink()
    (tmp_path / "HaloQuest.json").write_text(json.dumps(rows))
    (tmp_path / "HaloQuest" / "1.png").unlink()
    local.write_tasks(["HaloQuest"], tmp_path, tmp_path / "out")
    here, missing = files.read_rows(tmp_path / "out" / "vrga_haloquest.parquet")
    assert here["images"] == [str(tmp_path / "HaloQuest" / "0.png")]
    assert missing["images"] == [str(tmp_path / "1.png")]


@pytest.mark.parametrize(
    ("doc", "target"),
    [
        ({"answer": " 12 "}, "12"),
        ({"answer": 3}, "3"),
        ({"answer": 0}, "0"),
        ({"solution": "<think> 5 </think> <answer> 145° </answer>"}, "145°"),
        ({"solution": "So it is \\boxed{\\frac{1}{2}}."}, "\\frac{1}{2}"),
        ({"answer": "", "solution": "7"}, "7"),
        ({"gt_answer": "There is no dog.", "model_answer": ""}, "There is no dog."),
    ],
)
def test_targets_are_answers_not_solutions(doc, target):
    assert documents.target(doc) == target


def test_parquet_with_names_of_images_is_read_like_any_file(tmp_path):
    import pyarrow.parquet as pq

    picture(tmp_path / "GeoMath" / "1.png", "blue")
    rows = [{"question": "Find x.", "answer": "3", "image": "1.png"}]
    pq.write_table(files.to_table(rows), tmp_path / "GeoMath.parquet")
    local.write_tasks(["GeoMath"], tmp_path, tmp_path / "out")
    (image,) = documents.images(files.read_rows(tmp_path / "out" / "vrga_geomath.parquet")[0])
    assert image.getpixel((0, 0)) == (0, 0, 255)


def test_images_in_bytes_and_grey_ones_are_rgb(tmp_path):
    Image.new("L", (28, 28), 7).save(tmp_path / "grey.png")
    stored = (tmp_path / "grey.png").read_bytes()
    for value in ({"bytes": stored, "path": None}, str(tmp_path / "grey.png")):
        (image,) = documents.images({"image": value})
        assert image.mode == "RGB" and image.getpixel((3, 3)) == (7, 7, 7)


def test_the_model_vrga_gets_the_question_alone(tmp_path):
    mme(tmp_path)
    local.write_tasks(["MME"], tmp_path, tmp_path / "out")
    texts = []
    for model_name in ("vrga", "another"):
        task = load("vrga_mme", tmp_path / "out", model_name)
        texts.append(task.doc_to_text(task.test_docs()[0]))
    word = "\nAnswer the question using a single word or phrase."
    assert texts == ["Is there a dog?", "Is there a dog?" + word]


@pytest.mark.parametrize(
    ("doc", "lines"),
    [
        ({"question": "Which?", "choices": ["5", "6"]}, ["Which?", "A. 5", "B. 6"]),
        ({"question": "Which?", "options": "['5', \"6'\"]"}, ["Which?", "A. 5", "B. 6'"]),
        ({"question": "Which?", "option": "A. 5; B. 6; 7"}, ["Which?", "A. 5", "B. 6; 7"]),
        ({"problem": "<image 1>Find x.", "choices": None}, ["Find x."]),
        ({"question": "Which?", "choices": []}, ["Which?"]),
        (
            {"question": "Which?\nChoices:\nA:5°\nB:6°", "choices": None},
            ["Which?", "Choices:", "A:5°", "B:6°"],
        ),
    ],
)
def test_options_stand_on_lines_behind_the_question(doc, lines):
    assert documents.text(doc).split("\n") == lines
    assert list(documents.options(doc)) == (["A", "B"] if len(lines) > 2 else [])


@pytest.mark.parametrize(
    ("box", "task", "answer", "right"),
    [
        (None, "TallyQA", "4", True),
        ("1", "TallyQA", "4", False),
        ("1", "TallyQA", "\\boxed{4}", True),
        (None, "MathVista", "1.2", False),
        ("0", "MathVista", "1.2", True),
    ],
)
def test_whether_plain_text_counts_is_the_environments_word(
    tmp_path, monkeypatch, box, task, answer, right
):
    if box is not None:
        monkeypatch.setenv("VRGA_BOX", box)
    {"TallyQA": tallyqa, "MathVista": mathvista}[task](tmp_path)
    (name,) = local.write_tasks([task], tmp_path, tmp_path / "out")
    loaded = load(name, tmp_path / "out")
    found = loaded.process_results(loaded.test_docs()[0], [answer])["accuracy"]
    assert found["score"] == float(right)


def test_scores_are_of_the_whole_text_also_where_tags_are_stripped(tmp_path, scripted):
    """lmms-eval would drop what stands before a lonely </back>, and keep an open <back>."""
    tallyqa(tmp_path)
    (name,) = local.write_tasks(["TallyQA"], tmp_path, tmp_path / "out")
    texts = ["\\boxed{4} </back>", "<back> 2", "0", "3", "1"]
    cli = SimpleNamespace(
        reasoning_tags='[["<back>", "</back>"]]', process_with_media=True, baseline=None
    )
    found = evaluate(scripted(texts), name, tmp_path / "out", cli_args=cli)
    assert found["accuracy"] == 4 / 5


def test_a_wrong_judge_shows_when_the_task_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("VRGA_JUDGE", "benchmarks_small:nobody")
    next(small for small in BENCHMARKS if small.name == "MMHal").write(tmp_path)
    (name,) = local.write_tasks(["MMHal"], tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="VRGA_JUDGE is 'benchmarks_small:nobody', not module:"):
        load(name, tmp_path / "out")


@pytest.mark.parametrize("name", ["json", ":f", "no_module_of_that_name:f", "benchmarks_small:NAN"])
def test_no_judge_under_that_name(name):
    with pytest.raises(ValueError, match=f"VRGA_JUDGE is '{name}'"):
        judged.load_judge(name)


def test_a_single_question_of_an_image_is_no_pair():
    items = [
        {"image": "1", "score": 1.0},
        {"image": "2", "score": 1.0},
        {"image": "2", "score": 0.0},
    ]
    assert mme_task.acc_plus(items) == 0.0
    assert math.isnan(mme_task.acc_plus(items[:1]))


WORD = {"pre_prompt": "", "post_prompt": "\nAnswer the question using a single word or phrase."}
LETTER = {
    "pre_prompt": "",
    "post_prompt": "\nAnswer with the option's letter from the given choices directly.",
}
MATHVISTA = {"shot": 0, "use_caption": False, "use_ocr": False}
VISTA = {"question_type": "multi_choice", "answer_type": "text", "choices": ["1", "2"]}
VERSE = {"query_cot": "", "question_type": "multi-choice", "problem_version": "Text Lite"}
ASKED = "As shown in the figure, find AB.\nChoices:\nA:1\nB:2"
BENCH = {"hint": "nan", "A": "x", "B": "y", "C": "nan", "D": "nan", "index": 1, "source": "s"}
BENCH |= {"split": "dev", "category": "c", "L2-category": "l"}


@pytest.mark.parametrize(
    ("task", "function", "doc", "words", "question"),
    [
        ("pope", "pope.utils.pope", {"question": "Is it? "}, WORD, "Is it?"),
        ("mme", "mme.utils.mme", {"question": "Is it? Please answer yes or no."}, WORD, "Is it?"),
        (
            "mmstar",
            "mmstar.utils.mmstar",
            {"question": "Which one?\nOptions: A: x, B: y"},
            LETTER,
            "Which one?\nOptions: A: x, B: y",
        ),
        (
            "mmbench_en_dev",
            "mmbench.en_utils.mmbench",
            {"question": "Which one?", **BENCH},
            LETTER,
            "Which one?",
        ),
        (
            "mathvista_testmini_cot",
            "mathvista.utils.mathvista",
            {"question": "Find x.", **VISTA},
            {**MATHVISTA, "shot_type": "step-by-step"},
            "Find x.",
        ),
        (
            "mathvista_testmini_format",
            "mathvista.utils.mathvista",
            {"question": "Find x.", **VISTA},
            {**MATHVISTA, "shot_type": "format-prompt"},
            "Find x.",
        ),
        (
            "mathverse_testmini",
            "mathverse.utils.mathverse",
            {"question": ASKED, "query_wo": f"Please directly answer.\nQuestion: {ASKED}", **VERSE},
            {"shot_type": "format-prompt", "query_type": "query_wo"},
            ASKED,
        ),
        (
            "mathvision_test",
            "mathvision.utils.mathvision",
            {"question": "Which piece?\n<image1>", "options": ["1", "2"]},
            {"mc_prompt": "Answer with the letter."},
            "Which piece?\n<image1>",
        ),
        (
            "wemath_testmini_reasoning",
            "wemath.reasoning.utils.wemath",
            {"question": "What is it?", "option": "A. 1; B. 2"},
            None,
            "What is it?",
        ),
        (
            "textvqa_val",
            "textvqa.utils.textvqa",
            {"question": "what does the Sign say?"},
            {"pre_prompt": "", "post_prompt": "\nBe short."},
            "What does the sign say?",
        ),
        (
            "vstar_bench",
            "vstar_bench.utils.vstar",
            {"text": "What is the color of the dog?\n(A) red\n(B) blue", "question_id": "1"},
            LETTER,
            "What is the color of the dog?",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "_" in value else "",
)
def test_the_question_in_prompts_of_lmms_eval(monkeypatch, task, function, doc, words, question):
    from importlib import import_module

    monkeypatch.setenv("OPENAI_API_KEY", "none")  # two of the modules ask for one when imported
    module, name = f"lmms_eval.tasks.{function}_doc_to_text".rsplit(".", 1)
    name += "_cot" if task.startswith("wemath") else ""
    try:
        build = getattr(import_module(module), name)
    except ImportError as error:  # what single tasks need beyond lmms-eval's own imports
        pytest.skip(f"{module}: {error}")
    text = build(doc, words)
    found = question_in(task, doc, text)
    assert found == question and found in text


def test_the_question_of_tasks_of_this_package(tmp_path):
    pope(tmp_path)
    (name,) = local.write_tasks(["POPE"], tmp_path, tmp_path / "out")
    task = load(name, tmp_path / "out")
    doc = task.test_docs()[0]
    asked = "Is there a dog in the image?"
    assert question_in(name, doc, task.doc_to_text(doc)) == asked
    doc = {"question": "Which? <image1>", "choices": ["1", "2"]}
    assert question_in("vrga_math", doc, documents.text(doc)) == "Which?"


@pytest.mark.parametrize(
    ("doc", "text", "question"),
    [
        ({}, "Is it?\nAnswer the question using a single word or phrase.", "Is it?"),
        ({"question": "Other"}, "Is it?\nSay it.", "Is it?\nSay it."),
        ({"question": "Is it?"}, "Example: Is it? No.\nIs it? Now", "Is it?"),
        ({"question": ""}, "Is it?", "Is it?"),
    ],
)
def test_a_prompt_whose_row_does_not_hold_its_question(doc, text, question):
    assert question_in("unheard_of", doc, text) == question


def test_scores_are_json(tmp_path):
    """What a task says of a sample can be stored as it is."""
    mathvista(tmp_path)
    (name,) = local.write_tasks(["MathVista"], tmp_path, tmp_path / "out")
    task = load(name, tmp_path / "out")
    for doc in task.test_docs():
        found = task.process_results(doc, ["no box"])
        assert json.loads(json.dumps(found)) == found
        assert found["accuracy"]["prediction"] is None
