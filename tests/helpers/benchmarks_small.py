"""Benchmarks of a few rows in their original formats, answers to them, and what these score."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

NAN = math.nan
YES, NO = "<think> no? </think> <back> no </back> \\boxed{Yes.}", "No, there isn't."


@dataclass(frozen=True)
class Small:
    """One benchmark.

    Args:
        name: as in the papers; its file is DATA/NAME.*.
        write: writes the file and its images into a folder.
        answers: the model's texts, in the order of the rows that are asked.
        metrics: the task's metrics, computed by hand.
        judge: "module:function", or None.
    """

    name: str
    write: Callable[[Path], None]
    answers: list[str]
    metrics: dict[str, float | str]
    judge: str | None = None


def picture(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (56, 56), colour).save(path)


def rate(question: str, target: str, prediction: str) -> float:
    """A judge: as many points as the prediction says."""
    return float(prediction)


def pope(folder: Path) -> None:
    """As the hub exports it: parquet with the images in it."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    picture(folder / "small.png")
    targets = ["yes", "no", "yes", "no", "yes", "no"]
    categories = ["adversarial"] * 2 + ["popular"] * 2 + ["random"] * 2
    rows = {
        "id": [str(i) for i in range(6)],
        "question_id": [str(i + 1) for i in range(6)],
        "question": ["Is there a dog in the image?"] * 6,
        "answer": targets,
        "image_source": ["COCO_val2014_000000000001"] * 6,
        "image": [{"bytes": (folder / "small.png").read_bytes(), "path": None}] * 6,
        "category": categories,
    }
    kinds = {name: ImageFeature() if name == "image" else Value("string") for name in rows}
    Dataset.from_dict(rows, features=Features(kinds)).to_parquet(folder / "POPE.parquet")
    (folder / "small.png").unlink()


def mme(folder: Path) -> None:
    rows = []
    for subtask, image in (("existence", "1"), ("existence", "2"), ("code_reasoning", "7")):
        for asked, expected in (("a dog", "Yes"), ("a cat", "No")):
            rows.append(
                {
                    "question_id": f"{subtask}/{image}.png",
                    "image": f"{subtask}/{image}.png",
                    "question": f"Is there {asked}? Please answer yes or no.",
                    "answer": expected,
                    "category": subtask,
                }
            )
        picture(folder / "MME" / subtask / f"{image}.png")
    (folder / "MME.jsonl").write_text("\n".join(map(json.dumps, rows)))


def hallusionbench(folder: Path) -> None:
    def row(figure: str, question: str, expected: str, category: str = "VD") -> dict:
        return {
            "category": category,
            "subcategory": "illusion",
            "visual_input": "0" if category == "VS" else "1",
            "set_id": "0",
            "figure_id": figure,
            "sample_note": "a circle",
            "question_id": question,
            "question": f"Is circle {question} larger in figure {figure}?",
            "gt_answer_details": "It is.",
            "gt_answer": expected,
            "filename": None if category == "VS" else f"./VD/illusion/0_{figure}.png",
        }

    rows = [
        row("0", "0", "1"),
        row("0", "1", "0"),
        row("0", "0", "1", category="VS"),  # without a figure: not asked
        row("1", "0", "0"),
        row("1", "1", "1"),
        row("2", "1", "1"),
    ]
    (folder / "HallusionBench.json").write_text(json.dumps(rows))
    for figure in "012":
        picture(folder / "hallusion_bench" / "VD" / "illusion" / f"0_{figure}.png")


def tallyqa(folder: Path) -> None:
    rows = [
        {
            "answer": expected,
            "data_source": "imported_genome",
            "image": "VG_100K_2/2410408.jpg",
            "image_id": 92410408,
            "issimple": simple,
            "question": "How many headlights does the black bus have?",
            "question_id": 30095774 + i,
        }
        for i, (expected, simple) in enumerate(
            [(4, False), (2, True), (0, True), (3, False), (1, True)]
        )
    ]
    (folder / "TallyQA.json").write_text(json.dumps(rows))
    picture(folder / "VG_100K_2" / "2410408.jpg")


def mathvista(folder: Path) -> None:
    def row(pid: str, question: str, expected: str, choices: list[str] | None) -> dict:
        return {
            "pid": pid,
            "question": question,
            "image": f"images/{pid}.png",
            "choices": choices,
            "unit": None,
            "precision": None if choices else 1.0,
            "answer": expected,
            "question_type": "multi_choice" if choices else "free_form",
            "answer_type": "text" if choices else "float",
            "metadata": {"split": "testmini", "skills": ["geometry reasoning"], "grade": 3},
            "query": f"Hint: ...\nQuestion: {question}",
        }

    rows = {
        "1": row("1", "Find x.", "1.2", None),
        "2": row("2", "Which angle?", "145°", ["135°", "140°", "145°"]),
        "3": row("3", "Which angle?", "140°", ["135°", "140°", "145°"]),
        "4": row("4", "Which one is heavier?", "Apple", ["Apple", "Banana"]),
    }
    (folder / "MathVista.json").write_text(json.dumps(rows))
    for pid in rows:
        picture(folder / "MathVista" / "images" / f"{pid}.png")


def mathverse(folder: Path) -> None:
    def row(index: str, kind: str, question: str, expected: str) -> dict:
        return {
            "sample_index": index,
            "problem_index": index,
            "problem_version": "Text Lite",
            "question": question,
            "image": f"images_version_4/image_{index}.png",
            "answer": expected,
            "question_type": kind,
            "metadata": {"split": "testmini", "source": "geoqa", "subject": "Plane Geometry"},
            "query_wo": f"Please directly answer the question.\nQuestion: {question}",
            "query_cot": f"Please first conduct reasoning.\nQuestion: {question}",
        }

    asked = "In the figure, find angle 1.\nChoices:\nA:35°\nB:45°\nC:55°\nD:125°"
    rows = [
        row("1", "multi-choice", asked, "B"),
        row("2", "multi-choice", asked, "C"),
        row("3", "free-form", "Find the radius.", "\\sqrt{8}"),
    ]
    (folder / "MathVerse.json").write_text(json.dumps(rows))
    for i in "123":
        picture(folder / "images" / "images_version_4" / f"image_{i}.png")


def mathvision(folder: Path) -> None:
    def row(i: str, options: list[str], expected: str) -> dict:
        return {
            "id": i,
            "question": "Which piece fits?\n<image1>",
            "options": options,
            "image": f"images/{i}.jpg",
            "answer": expected,
            "solution": None,
            "level": 1,
            "subject": "combinatorics",
        }

    rows = [
        row("1", ["A", "B", "C", "D", "E"], "D"),
        row("2", ["10", "12"], "B"),
        row("3", [], "\\frac{3}{4}"),
        row("4", [], "C"),
    ]
    (folder / "MathVision.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    for i in "1234":
        picture(folder / "images" / f"{i}.jpg")


def wemath(folder: Path) -> None:
    rows = [
        {
            "ID": "3steps_1",
            "split": "testmini",
            "knowledge concept": "Area",
            "question": "What is the area of the sector in cm²? (   )",
            "option": "A. 4; B. 8; C. 12; D. No correct answer",
            "answer": expected,
            "image_path": "img/1.png",
            "key": "3steps_1",
        }
        for expected in ("B", "D")
    ]
    (folder / "We-Math.json").write_text(json.dumps(rows))
    picture(folder / "WeMath" / "img" / "1.png")


def geomath(folder: Path) -> None:
    rows = [
        {"problem": "<image>Find AB.", "answer": "<answer> 12 </answer>", "image": "1.png"},
        {"problem": "<image>Find BC.", "answer": "So \\boxed{\\frac{1}{2}}.", "image": "1.png"},
    ]
    (folder / "GeoMath.jsonl").write_text("\n".join(map(json.dumps, rows)))
    picture(folder / "1.png")


def any_math(folder: Path) -> None:
    rows = [
        {"question": "How much is both?", "answer": 3, "images": ["1.png", "2.png"]},
        {"question": "Which one?", "answer": "B", "images": ["2.png"], "choices": ["x", "y"]},
    ]
    (folder / "math.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for i in "12":
        picture(folder / f"{i}.png")


def haloquest(folder: Path) -> None:
    fields = ["", "image_name", "url", "image type", "hallucination type", "question"]
    with (folder / "HaloQuest.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow([*fields, "groundtruth responses", "split"])
        for i, asked in enumerate(["What is the cat's name,\nif any?", "Which hat?"]):
            url = f"https://example.org/{i}.png"
            kind = ["generated", "false premises"]
            out.writerow([i, f"{i}.png", url, *kind, asked, "There is no cat; no cat", "eval"])
            picture(folder / "HaloQuest" / f"{i}.png")


def mmhal(folder: Path) -> None:
    rows = [
        {
            "question_type": "attribute",
            "question_topic": "outdoor",
            "image_id": f"{i:016x}",
            "image_src": f"https://example.org/3/{i}_o.jpg",
            "image_content": ["Flower"],
            "question": "What color is the fire hydrant cap in the picture?",
            "gt_answer": "There is no fire hydrant in the picture.",
            "model_answer": "",
        }
        for i in range(4)
    ]
    (folder / "MMHal.json").write_text(json.dumps(rows))
    for i in range(4):
        picture(folder / "images" / f"{i}_o.jpg")


def rhbench(folder: Path) -> None:
    def row(i: int, task: str, kind: str, expected: str, **more) -> dict:
        start = {"id": i, "task": task, "question_type": kind, "image": "1.png"}
        return {**start, "question": f"Question {i}?", "answer": expected, **more}

    rows = [
        row(0, "reasoning", "free_form", "0.75"),
        row(1, "reasoning", "multi_choice", "B", question="Which?\nChoices:\n(A) 1\n(B) 2"),
        row(2, "perception", "multi_choice", "A", options=["a dog", "a cat"]),
        row(3, "perception", "free_form", "There is no dog."),
        row(4, "perception", "free_form", "There is no cat."),
    ]
    (folder / "RH-Bench.json").write_text(json.dumps(rows))
    picture(folder / "1.png")


POPE_ANSWERS = [YES, YES, NO, NO, "I cannot tell.", YES]
BENCHMARKS = [
    Small(
        "POPE",
        pope,
        POPE_ANSWERS,
        {
            "accuracy": 2 / 6,
            "precision": 1 / 3,
            "recall": 1 / 3,
            "f1": 1 / 3,
            "yes_ratio": 3 / 6,
            "accuracy_adversarial": 1 / 2,
            "precision_adversarial": 1 / 2,
            "recall_adversarial": 1.0,
            "f1_adversarial": 2 / 3,
            "yes_ratio_adversarial": 1.0,  # of the ground truth it would be 1/2
            "accuracy_popular": 1 / 2,
            "precision_popular": NAN,
            "recall_popular": 0.0,
            "f1_popular": 0.0,
            "yes_ratio_popular": 0.0,
            "accuracy_random": 0.0,
            "precision_random": 0.0,
            "recall_random": 0.0,
            "f1_random": 0.0,
            "yes_ratio_random": 1 / 2,
        },
    ),
    Small(
        "MME",
        mme,
        [YES, NO, YES, YES, "yes", "\\text{No}"],
        {
            "perception": 100 * 3 / 4 + 100 * 1 / 2,
            "cognition": 200.0,
            "acc_existence": 3 / 4,
            "acc_plus_existence": 1 / 2,
            "acc_code_reasoning": 1.0,
            "acc_plus_code_reasoning": 1.0,
        },
    ),
    Small(
        "HallusionBench",
        hallusionbench,
        [YES, NO, YES, YES, "**Yes**"],
        {"aAcc": 4 / 5, "fAcc": 2 / 3, "qAcc": 1 / 2},
    ),
    Small(
        "TallyQA",
        tallyqa,
        ["\\boxed{4}", "Two.", "None", "4 or 3", "one"],
        {"accuracy": 3 / 5, "accuracy_simple": 2 / 3, "accuracy_complex": 1 / 2},
    ),
    Small(
        "MathVista",
        mathvista,
        ["\\boxed{\\frac{6}{5}}", "\\boxed{145}", "140°", "\\boxed{Answer}"],
        {"accuracy": 2 / 4},
    ),
    Small(
        "MathVerse",
        mathverse,
        ["\\boxed{B}", "\\boxed{B: 45°}", "\\boxed{2\\sqrt{2}}"],
        {"accuracy": 2 / 3},
    ),
    Small(
        "MathVision",
        mathvision,
        ["\\boxed{D}", "\\boxed{12}", "The answer is 0.75", "\\boxed{(C) as drawn}"],
        {"accuracy": 3 / 4},
    ),
    Small("WeMath", wemath, ["\\boxed{8}", "<think> D </think> D"], {"accuracy": 1 / 2}),
    Small("GeoMath", geomath, ["\\boxed{12 cm}", "\\boxed{0.5}"], {"accuracy": 1.0}),
    Small("math", any_math, ["\\boxed{3.0}", "\\boxed{A}"], {"accuracy": 1 / 2}),
    Small("HaloQuest", haloquest, ["It is red.", ""], {"judge": "no judge: predictions only"}),
    Small(
        "HaloQuest",
        haloquest,
        ["<think> 0 </think> 1", "\\boxed{0.5} 0"],
        {"judge": "benchmarks_small:rate: 2 of 2 judged", "score": 0.75},
        judge="benchmarks_small:rate",
    ),
    Small("MMHal", mmhal, ["6", "3", "2", ""], {"judge": "no judge: predictions only"}),
    Small(
        "MMHal",
        mmhal,
        ["6", "3", "2", "not a number"],
        {
            "judge": "benchmarks_small:rate: 3 of 4 judged",
            "score": 11 / 3,
            "hallucination_rate": 1 / 3,
        },
        judge="benchmarks_small:rate",
    ),
    Small(
        "RH-Bench",
        rhbench,
        ["\\frac{3}{4}", "(A)", "a dog", "3", "2"],
        {
            "accuracy": 2 / 3,
            "accuracy_reasoning": 1 / 2,
            "accuracy_perception": 1.0,
            "judge": "no judge: predictions only",
        },
    ),
    Small(
        "RH-Bench",
        rhbench,
        ["\\frac{3}{4}", "(A)", "a dog", "3", "2"],
        {
            "accuracy": 3 / 5,
            "accuracy_reasoning": 1 / 2,
            "accuracy_perception": 2 / 3,
            "judge": "benchmarks_small:rate: 2 of 2 judged",
        },
        judge="benchmarks_small:rate",
    ),
]
