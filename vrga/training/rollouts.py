"""`vrga train rollouts`: every question answered several times, each answer with its score."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

from rich.console import Console

from vrga.evaluation.asker import Asker
from vrga.evaluation.items import Item
from vrga.evaluation.progress import progress
from vrga.evaluation.request import Answer
from vrga.evaluation.store import Store, parts, read_samples, read_settings
from vrga.evaluation.wording import Table
from vrga.training.model import loaded
from vrga.training.questions import Questions
from vrga.training.server import Server

_NONE = type(None)
# What a finished answer holds at least, and of which types.
FIELDS = {
    "id": (str,),
    "sample": (int,),
    "text": (str, _NONE),
    "tokens": (int, _NONE),
    "score": (int, float, _NONE),
    "reward": (int, float, _NONE),
    "error": (str, _NONE),
}


def ask(
    questions: Questions,
    model: str | None,
    output: Path,
    *,
    samples: int = 12,
    temperature: float = 1.0,
    max_new_tokens: int | None = None,
    server: Server | None = None,
    trained: str | None = None,
    resume: bool = False,
    console: Console,
) -> dict:
    """Ask, score and keep answers, one line each; an interrupted run goes on with `resume`.

    The samples of a question are drawn from its own random numbers, so that they are the same
    whenever it is asked; a server's are its own.

    Args:
        model: checkpoint, see `vrga.load`; with a server, the name it knows the model by.
        samples: answers to each question.
        max_new_tokens: longest answer; None is 128 of drawn questions, else 2048.
        server: asks it in place of loading the model.
        trained: of a model of this package's training, `fingerprint` of its record of steps: a run
            does not go on with another model in the same place.

    Returns:
        What was found: counts, and "failed".

    Raises:
        ValueError: numbers out of their range, no question with an answer, or a folder that holds
            another run.
    """
    check_sampling(samples, temperature)
    longest = max_new_tokens or (128 if questions.data is None else 2048)
    items = questions.items()
    settings = {
        **questions.settings(), "command": "train rollouts", "model": model, "samples": samples,
        "temperature": temperature, "max_new_tokens": longest,
        "server": None if server is None else server.url,
    } | ({} if trained is None else {"trained": trained})  # fmt: skip
    store = Store(output, settings, resume=resume, fields=FIELDS)
    with contextlib.closing(store):
        _say(console, questions, store)
        left = [i for i in items if any(key not in store.done for key in keys_of(i, samples))]
        by_id = {item.id: item for item in items}
        asked = _asked(questions, left, model, samples, temperature, longest, server)
        with progress(console) as bar, contextlib.closing(asked):
            task = bar.add_task("answering", total=len(items), completed=len(items) - len(left))
            for id, answers in asked:
                store.add(_lines(questions, by_id[id], answers, samples))
                bar.advance(task)
        order = [key for item in items for key in keys_of(item, samples)]
        found = summary(store.finish(order), samples)
    console.print(_table(found))
    return found


def check_sampling(samples: int, temperature: float) -> None:
    """Raise ValueError for numbers with which nothing can be sampled."""
    if samples < 1:
        raise ValueError(f"--samples {samples}: at least 1")
    if not 0 < temperature <= 10:
        raise ValueError(f"--temperature {temperature}: above 0, at most 10")


def keys_of(item: Item, samples: int) -> list[str]:
    """The keys of a question's answers."""
    return [f"{item.id}/{i}" for i in range(samples)]


def read_rollouts(folder: Path) -> tuple[Questions, dict, list[dict]]:
    """The questions, settings and answers of a finished or interrupted run.

    Raises:
        ValueError: no run there, a damaged one, or one without an answer.
    """
    held = read_settings(folder)
    samples: list[dict] = []
    for path in parts(folder):
        samples += read_samples(path, held["hash"], FIELDS)[0]
    if not samples:
        raise ValueError(f"{folder} holds no answers: run vrga train rollouts first")
    by_key = {one["key"]: one for one in samples}
    return Questions.of(held["settings"]), held["settings"], list(by_key.values())


def summary(answers: Sequence[dict], samples: int) -> dict:
    """How many questions are never, sometimes and always answered rightly."""
    right: dict[str, list[float]] = {}
    for one in answers:
        if one["error"] is None:
            right.setdefault(one["id"], []).append(one["score"])
    shares = [sum(own) / len(own) for own in right.values()]
    answered = [one for one in answers if one["error"] is None]
    return {
        "questions": len({one["id"] for one in answers}),
        "samples": samples,
        "answers": len(answered),
        "right": sum(one["score"] for one in answered) / max(len(answered), 1),
        "never": sum(share == 0 for share in shares),
        "sometimes": sum(0 < share < 1 for share in shares),
        "always": sum(share == 1 for share in shares),
        "failed": len(answers) - len(answered),
    }


def _say(console: Console, questions: Questions, store: Store) -> None:
    unknown = questions.without_answer()
    if unknown:
        told = f"{unknown} questions have no answer: they are left out"
        console.print(told, style="yellow", soft_wrap=True)
    if store.damaged:
        told = f"{store.damaged} damaged lines in {store.folder}: their questions are asked again"
        console.print(told, style="yellow", soft_wrap=True)


def _asked(
    questions: Questions,
    items: Sequence[Item],
    model: str | None,
    samples: int,
    temperature: float,
    longest: int,
    server: Server | None,
) -> Generator[tuple[str, list[Answer]]]:
    """Each question's id with its answers; one answer with an error where it failed."""
    if not items:
        return
    if server is not None:
        yield from server.ask(
            {item.id: (questions.text(item), item.images) for item in items}, str(model),
            samples=samples, temperature=temperature, max_new_tokens=longest,
        )  # fmt: skip
        return
    asker = Asker(*loaded(model, questions.tag), None, batch=1, seed=questions.seed)
    # Some checkpoints bring a generation config that leaves sampling no choice.
    options = dict(
        do_sample=True, temperature=temperature, top_k=0, top_p=1.0, repetition_penalty=1.0,
        num_return_sequences=samples, max_new_tokens=longest,
    )  # fmt: skip
    requests = [item.request(questions.style, item.id, **options) for item in items]
    group: list[Answer] = []
    for answer in asker.ask(requests):
        group.append(answer)
        if answer.error is not None or len(group) == samples:
            yield answer.id, group
            group = []


def _lines(questions: Questions, item: Item, answers: Iterable[Answer], samples: int) -> list[dict]:
    """What is kept of a question's answers; all of them failed where one did."""
    answers = list(answers)
    error = next((one.error for one in answers if one.error is not None), None)
    lines = []
    for number, key in enumerate(keys_of(item, samples)):
        one = None if error is not None else answers[number]
        text = None if one is None else one.text
        lines.append({
            "key": key, "id": item.id, "sample": number, "text": text,
            "tokens": one and one.tokens,
            "score": None if text is None else float(questions.is_right(item, text)),
            "reward": None if text is None else questions.reward(text), "error": error,
        })  # fmt: skip
    return lines


def _table(found: dict) -> Table:
    title = f"{found['questions']} questions, {found['samples']} answers each"
    table = Table("right", "never right", "sometimes", "always", "failed answers", title=title)
    table.add_row(
        f"{100 * found['right']:.1f} %",
        *(str(found[name]) for name in ("never", "sometimes", "always", "failed")),
    )
    return table
