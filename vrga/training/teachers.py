"""Who inserts a look at the image into a chain: a rule for the grid, a model on a server, or code.

Every teacher is given the model's own right chain and returns it with a span in it, in one of two
styles: "semantic", amid the reasoning at the detail that matters; "solution", after the first
answer, to check all of it. What comes back is not trusted: see `vrga.training.filters`.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

from vrga.demo.chain.data import checked_again, first_color, looked_back
from vrga.demo.data import asked_letter
from vrga.evaluation.items import Item
from vrga.training.server import Server, check_timeout

STYLES = ("semantic", "solution")
ONE_LOOK = "vrga.training.teachers:one_look"
# item, chain, style, tag -> the chain with a span
Teacher = Callable[[Item, str, str, str], str]

_INSTRUCTIONS = {
    "semantic": (
        "Below are a question about the image and a solution that is right. Copy the solution word "
        "for word, and put one look at the image into it: at the place in the reasoning where a "
        "detail of the image matters most, close the reasoning with </think>, write between "
        "<{tag}> and </{tag}> what is to be seen there in the image, and open the reasoning again "
        "with <think>. Change, add and leave out nothing else; the answer in \\boxed{} stays as it "
        "is. Reply with the solution alone."
    ),
    "solution": (
        "Below are a question about the image and a solution that is right. Copy the solution word "
        "for word. Behind it, check it against the image: write between <{tag}> and </{tag}> what "
        "is to be seen there, then between <think> and </think> in a sentence or two whether the "
        "answer stands, and at the end the same answer in \\boxed{}. Reply with the solution alone."
    ),
}


def grid(item: Item, chain: str, style: str, tag: str) -> str:
    """The teacher of the embedded model's questions, who knows what stands where.

    semantic: "<think> see A blue. </think> <back> see K red. </back> <think> answer K red. </think>
    \\boxed{red}"; solution: the whole chain, then span, conclusion and box. A chain that finds two
    cards gets a look at each.

    Raises:
        ValueError: a question that was not drawn.
    """
    if first_color(item.question) is not None:
        return (checked_again if style == "solution" else looked_back)(chain, tag)
    letter = asked_letter(item.question)
    if letter is None or not isinstance(item.answer, str):
        raise ValueError(
            f"the teacher grid knows drawn questions alone, and this is {item.question!r}: give "
            "--teacher a server's address or module:function"
        )
    look = f"<{tag}> see {letter} {item.answer}. </{tag}>"
    box = f"\\boxed{{{item.answer}}}"
    if style == "solution":
        return f"{chain} {look} <think> answer {letter} {item.answer}. </think> {box}"
    thought, _, rest = chain.partition("</think>")
    return f"{thought}</think> {look} <think> {rest.replace(box, '').strip()} </think> {box}"


def one_look(item: Item, chain: str, style: str, tag: str) -> str:
    """As `grid`, but a chain that finds two cards gets one look, at that with the answer."""
    if style == "semantic" and first_color(item.question) is not None:
        return looked_back(chain, tag, last=True)
    return grid(item, chain, style, tag)


def instruction(item: Item, chain: str, style: str, tag: str) -> str:
    """What a model on a server is told."""
    told = _INSTRUCTIONS[style].replace("{tag}", tag)
    return f"{told}\n\nQuestion: {item.question}\n\nSolution:\n{chain}"


@dataclass(frozen=True)
class Reply:
    """What a teacher returned for a chain, or why it did not."""

    key: str
    text: str | None = None
    error: str | None = None


def replies(
    chains: Mapping[str, tuple[Item, str]],
    teacher: str,
    style: str,
    tag: str,
    *,
    model: str | None = None,
    timeout: float = 120.0,
    parallel: int = 8,
) -> Generator[Reply]:
    """Ask a teacher about chains by their keys; one that fails is a reply with an error.

    Args:
        teacher, style, model, timeout: as of `check_teacher`.
        parallel: of a server's replies under way at a time.

    Raises:
        ValueError: as of `check_teacher`.
        ConnectionError: nobody answers at the address.
    """
    function = check_teacher(teacher, style, model, timeout)
    if function is None:
        asked = {
            key: (instruction(item, chain, style, tag), item.images)
            for key, (item, chain) in chains.items()
        }
        found = Server(teacher, timeout, parallel).ask(asked, str(model), temperature=0.0)
        with contextlib.closing(found):
            for key, (answer,) in found:
                yield Reply(key, answer.text, answer.error)
        return
    if function is grid:
        for key, (item, chain) in chains.items():
            yield Reply(key, grid(item, chain, style, tag))
        return
    for key, (item, chain) in chains.items():
        yield _called(key, function, (item, chain, style, tag), timeout)


def check_teacher(teacher: str, style: str, model: str | None, timeout: float) -> Teacher | None:
    """The function that a teacher is; None is one on a server.

    Args:
        teacher: "grid", a server's address, or module:function.
        model: the name that the server knows its model by.
        timeout: seconds that a reply may take.

    Raises:
        ValueError: an unknown style or teacher, a server without a model's name, a name without a
            server, or a time that nobody can wait.
    """
    if style not in STYLES:
        raise ValueError(f"--style {style}: known are {', '.join(STYLES)}")
    check_timeout(timeout)
    if is_address(teacher):
        if not model:
            raise ValueError("a teacher on a server needs --teacher-model, its model's name there")
        return None
    if model:
        raise ValueError("--teacher-model is for a teacher on a server")
    return grid if teacher == "grid" else imported(teacher)


def is_address(teacher: str) -> bool:
    """Whether a teacher is on a server."""
    return teacher.startswith(("http://", "https://"))


def imported(name: str) -> Teacher:
    """The function of "module:function".

    Raises:
        ValueError: another form, or nothing callable of that name.
    """
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise ValueError(
            f"--teacher {name}: grid, a server's address (http://...), or module:function"
        )
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"--teacher {name}: {error}; a module of your own is found in PYTHONPATH"
        ) from error
    if not callable(found):
        raise ValueError(f"--teacher {name} is a {type(found).__name__}, not a function")
    return found


def _called(key: str, teacher: Teacher, asked: tuple[Item, str, str, str], timeout: float) -> Reply:
    """What code of a user's own returns, raises, or does not return in time."""
    found: list[object] = []

    def call() -> None:
        try:
            found.append(teacher(*asked))
        except Exception as error:  # whatever it raises is one chain less
            found.append(error)

    # A daemon: what never returns must not keep the process.
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(timeout)
    if not found:
        return Reply(key, error=f"no reply within {timeout:g} seconds")
    (text,) = found
    if isinstance(text, Exception):
        return Reply(key, error=f"{type(text).__name__}: {text}")
    if not isinstance(text, str):
        return Reply(key, error=f"it returned {text!r:.80}, no text")
    return Reply(key, text)
