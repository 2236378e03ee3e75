"""A page of the samples that turned from one run to another: images, question, both answers.

It needs nothing else and no connection (extra `report`: Jinja2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vrga.evaluation.asked_questions import AskedQuestion, AskedQuestions
from vrga.evaluation.compare import Turned
from vrga.evaluation.wording import percent
from vrga.images import data_uri
from vrga.report.page import TURNING
from vrga.text_diff import marked_words

LONGEST_SIDE = 640  # pixels of an image in the page
LONGEST_TEXT = 20_000  # characters of two answers whose words are compared
KINDS = {"gained": "became right", "lost": "became wrong"}


def write_page(
    turned: Sequence[Turned],
    runs: tuple[Path, Path],
    settings: Mapping[str, tuple[object, object]],
    output: Path,
) -> Path:
    """Write the page.

    Args:
        turned: what was compared.
        runs: folders of both runs. Questions and images come from the data of the second one, else
            of the first; where they are gone, the page says so.
        settings: those that differ: name -> (first, second).
        output: the HTML file.

    Raises:
        ImportError: Jinja2 is missing.
    """
    try:
        from jinja2 import Environment, PackageLoader
    except ImportError as error:
        raise ImportError("the page needs Jinja2: pip install 'vrga[report]'") from error
    sources = [AskedQuestions(run) for run in reversed(runs)]
    environment = Environment(loader=PackageLoader("vrga.evaluation", ""), autoescape=True)
    text = environment.get_template("flips.html.jinja").render(
        runs=[str(run) for run in runs],
        settings={name: list(map(repr, values)) for name, values in settings.items()},
        compared=[_shown(one, sources) for one in turned],
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    # Half a surrogate pair is no UTF-8; a sign that turns the direction of text is shown as one.
    output.write_bytes(text.translate(TURNING).encode("utf-8", "replace"))
    return output


def verdict(change: Mapping) -> str:
    """What the interval of a difference says, in a sentence."""
    _, low, high = change["score"]
    if math.isnan(low):
        return (
            f"Cannot tell: {change['pairs']} pairs are too few, or too much alike, for an interval."
        )
    if low > 0 or high < 0:
        better = "second" if low > 0 else "first"
        return f"The {better} run is better: 0 lies outside the interval."
    return "Not clear: 0 lies inside the interval."


def _shown(one: Turned, sources: Sequence[AskedQuestions]) -> dict:
    """One pair of arms, as the template reads it."""
    change = one.change
    counts = f"{change['gained']} gained and {change['lost']} lost of {change['pairs']} pairs"
    p = "" if change["p"] is None else f"; p = {change['p']:.2g}"
    return {
        "name": one.name,
        "figures": f"{percent(change['score'], '+')}; {counts}{p}",
        "verdict": verdict(change),
        "kinds": [
            (KINDS[kind], [_sample(old, new, sources) for old, new in pairs])
            for kind, pairs in one.kinds.items()
        ],
    }


def _sample(old: dict, new: dict, sources: Sequence[AskedQuestions]) -> dict:
    question = _question(new, sources)
    texts = [one["text"] or "" for one in (old, new)]
    short = len("".join(texts)) <= LONGEST_TEXT
    marked = marked_words(*texts) if all(texts) and short else None
    right = new.get("target") if new.get("target") is not None else question.right
    return {
        "id": new["id"],
        # Without its row there is still the chat that the model was given.
        "question": question.text or new["prompt"],
        "right": right,
        "images": [data_uri(image, longest=LONGEST_SIDE) for image in question.images],
        "missing": question.missing,
        "answers": [
            {
                "arm": one["arm"],
                "score": one["score"],
                "error": one["error"],
                "text": text,
                "marked": None if marked is None else marked[place],
            }
            for place, (one, text) in enumerate(zip((old, new), texts, strict=True))
        ],
    }


def _question(sample: dict, sources: Sequence[AskedQuestions]) -> AskedQuestion:
    """The question by the first source that has all of it, else what the best of them has."""
    found = []
    for source in sources:
        found.append(source.of(sample["task"], sample["id"]))
        if found[-1].missing is None:
            return found[-1]
    best = next((one for one in found if one.text is not None), found[0])
    return replace(best, missing=found[0].missing)
