"""`vrga train data`: the model's own right chains, some with a look at the image put into them."""

from __future__ import annotations

import contextlib
import json
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from vrga.evaluation.items import Item
from vrga.evaluation.store import SAMPLES, Store, fingerprint, write_json
from vrga.evaluation.wording import Table
from vrga.training import filters
from vrga.training.filters import ANSWER_GATES, TEACHER_GATES, Chain, Questions
from vrga.training.page import rows_page
from vrga.training.rollouts import read_rollouts
from vrga.training.teachers import Reply, check_teacher, replies

ROWS, SUMMARY, PAGE = "rows.jsonl", "data.json", "rows.html"
SHOWN = 20  # random rows on the page
ROW = ("key", "id", "kind", "completion")  # what a row holds
_NONE = type(None)
FIELDS = {"id": (str,), "text": (str, _NONE), "fell": (str, _NONE), "error": (str, _NONE)}


def make(
    folder: Path,
    *,
    style: str = "semantic",
    reflection: float = 0.4,
    difficulty: tuple[float, float] = (0.05, 0.95),
    chains: int = 1,
    size: int | None = None,
    teacher: str = "grid",
    teacher_model: str | None = None,
    timeout: float = 120.0,
    parallel: int = 8,
    seed: int = 0,
    resume: bool = False,
    console: Console,
) -> dict:
    """Choose chains, have spans put into them, and write the rows of both kinds.

    What the teacher returned is kept: with `resume` it is not asked again, also for another
    `reflection` or `size`.

    Args:
        folder: of the whole training, with rollouts in it.
        reflection: share of the rows with a span.
        difficulty: least and greatest share of right answers of a question.
        chains: of a question, at most.
        size: rows, at most.

    Returns:
        What data.json holds.

    Raises:
        ValueError: no rollouts, or not all of them, numbers that cannot be, no question of mixed
            success, or too few chains for the rate.
    """
    if chains < 1:
        raise ValueError(f"--chains {chains}: at least 1")
    filters.mixture(1000, 1000, reflection)  # refuses what is no share
    check_teacher(teacher, style, teacher_model, timeout)
    questions, items, answers = _rollouts(folder / "rollouts")
    kept = filters.mixed(answers, difficulty)
    found, fell = filters.select(questions, answers, kept, chains, seed)
    if not found:
        told = _counted(fell)
        raise ValueError(f"no right answer has the form <think> ... </think> and a box: {told}")
    store = _store(
        folder, resume, style=style, difficulty=list(difficulty), chains=chains, teacher=teacher,
        teacher_model=teacher_model, seed=seed,
    )  # fmt: skip
    options = dict(model=teacher_model, timeout=timeout, parallel=parallel)
    with contextlib.closing(store):
        fell_there = _taught(
            store, questions, items, found, (teacher, style), reflection, size, options
        )
        passed = [c for c in found if store.done.get(c.key, {"fell": ""})["fell"] is None]
        if store.done and reflection and not passed:  # else too few chains to ask for any
            _refuse(teacher, fell_there, store)
        rows = _mixed(store, found, passed, reflection, size, seed)
    kinds = Counter(one["kind"] for one in rows)
    summary = {
        "questions": len(items), "answers": len(answers), "kept": kept, "chains": len(found),
        "fell": {"answers": dict(fell), "teacher": dict(fell_there)}, "passed": len(passed),
        "asked": len(store.done), "back": kinds["back"], "plain": kinds["plain"], "style": style,
        "reflection": reflection,
    }  # fmt: skip
    shown = random.Random(seed).sample(rows, min(SHOWN, len(rows)))
    _write(folder / "data", rows, summary, rows_page(questions, items, shown), console)
    return summary


def _rollouts(folder: Path) -> tuple[Questions, dict[str, Item], list[dict]]:
    """The questions, by their ids, and all answers.

    Raises:
        ValueError: rollouts that were interrupted, or lost an answer since.
    """
    questions, held, answers = read_rollouts(folder)
    items = {item.id: item for item in questions.items()}
    wanted = len(items) * held["samples"]
    if len(answers) < wanted:
        raise ValueError(
            f"{folder} is not whole, {len(answers)} of {wanted} answers: go on with vrga train "
            "rollouts --resume"
        )
    return questions, items, answers


def _store(folder: Path, resume: bool, **settings) -> Store:
    """Of what the teacher returned, for these settings; raises as `Store` does."""
    path = folder / "rollouts" / SAMPLES
    settings |= {"command": "train data", "rollouts": fingerprint(path)}
    return Store(folder / "data", settings, resume=resume, fields=FIELDS)


def _refuse(teacher: str, fell: Mapping[str, int], store: Store) -> NoReturn:
    """Say what fell at which gate, and the last error."""
    errors = [one["error"] for one in store.done.values() if one["error"] is not None]
    told = _counted(fell) + (f"; the last error: {errors[-1]}" if errors else "")
    raise ValueError(f"nothing that the teacher {teacher} returned can be trained on: {told}")


def _write(folder: Path, rows: list[dict], summary: dict, page: str, console: Console) -> None:
    new = folder / f"{ROWS}.new"
    new.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    new.replace(folder / ROWS)
    write_json(folder / SUMMARY, summary)
    console.print(_table(summary))
    (folder / PAGE).write_bytes(page.encode("utf-8", "replace"))
    console.print(f"random rows: {folder / PAGE}", style="dim", soft_wrap=True)


def read_data(folder: Path) -> tuple[list[dict], dict]:
    """The rows and the summary of a training's folder.

    Raises:
        ValueError: none there, or damaged ones.
    """
    try:
        summary = json.loads((folder / "data" / SUMMARY).read_text("utf-8"))
        lines = (folder / "data" / ROWS).read_text("utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line]
        rows = [{name: row[name] for name in ROW} for row in rows]
        summary |= {"kept": list(summary["kept"])}
    except FileNotFoundError as error:
        raise ValueError(f"{folder} has no rows: run vrga train data {folder} first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"the rows in {folder / 'data'} are damaged ({error!r}): make them again with "
            f"vrga train data {folder} --resume"
        ) from error
    return rows, summary


def _taught(
    store: Store,
    questions: Questions,
    items: Mapping[str, Item],
    found: list[Chain],
    how: tuple[str, str],
    reflection: float,
    size: int | None,
    options: dict,
) -> Counter:
    """Ask the teacher until enough chains have a span; what fell at which gate."""
    teacher, style = how
    by_key = {chain.key: chain for chain in found}
    wanted = 0
    if reflection:
        with contextlib.suppress(ValueError):  # told when the rows are made
            wanted, _ = filters.mixture(len(found), len(found), reflection, size)
    left = {
        key: (items[chain.id], chain.text) for key, chain in by_key.items() if key not in store.done
    }
    passed = sum(store.done[key]["fell"] is None for key in by_key if key in store.done)
    if passed < wanted:
        asked = replies(left, teacher, style, questions.tag, **options)
        with contextlib.closing(asked):
            for reply in asked:
                chain = by_key[reply.key]
                fell = _fell(questions, items[chain.id], chain, reply, style)
                store.add([
                    {"key": reply.key, "id": chain.id, "chain": chain.text, "text": reply.text,
                     "fell": fell, "error": reply.error}
                ])  # fmt: skip
                passed += fell is None
                if passed >= wanted:
                    break
    store.gather()  # what failed before counts too
    store.finish(by_key)
    gates = [store.done[key]["fell"] for key in by_key if key in store.done]
    return Counter(gate for gate in gates if gate is not None)


def _fell(questions: Questions, item: Item, chain: Chain, reply: Reply, style: str) -> str | None:
    if reply.text is None:
        return "teacher"
    return filters.verdict(questions, item, chain.text, reply.text, style)


def _mixed(
    store: Store,
    found: list[Chain],
    passed: list[Chain],
    reflection: float,
    size: int | None,
    seed: int,
) -> list[dict]:
    """Rows of both kinds at the exact rate, no chain in two of them, shuffled."""
    with_span, plain = filters.mixture(len(passed), len(found), reflection, size)
    chosen = passed[:with_span]
    taken = {chain.key for chain in chosen}
    rest = [chain for chain in found if chain.key not in taken][:plain]
    rows = [
        {"key": c.key, "id": c.id, "kind": "back", "completion": store.done[c.key]["text"]}
        for c in chosen
    ]
    rows += [{"key": c.key, "id": c.id, "kind": "plain", "completion": c.text} for c in rest]
    random.Random(seed).shuffle(rows)
    return rows


def _counted(fell: Mapping[str, int]) -> str:
    told = ANSWER_GATES | TEACHER_GATES
    return ", ".join(f"{count} x {told[gate]}" for gate, count in fell.items() if count)


def _table(summary: dict) -> Table:
    """How many fell at each gate, and why."""
    table = Table(title=f"{summary['back']} rows with a span, {summary['plain']} plain")
    table.add_column("gate")
    table.add_column("fell", justify="right")
    table.add_column("left", justify="right")
    for what, given, by, gates in (
        ("answers of the model", "answers", "answers", ANSWER_GATES),
        ("chains given to the teacher", "asked", "teacher", TEACHER_GATES),
    ):
        left = summary[given]
        table.add_row(what, "", str(left))
        for gate, told in gates.items():
            fell = summary["fell"][by].get(gate, 0)
            left -= fell
            table.add_row(told, str(fell), str(left))
    return table
