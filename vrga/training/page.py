"""The pages of a training: rows for the eye, and the report (Jinja2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from vrga.evaluation.items import Item
from vrga.images import data_uri, read_image
from vrga.lookback import spans_of
from vrga.training.questions import Questions

LONGEST_SIDE = 480  # pixels of an image on a page


def rendered(template: str, **content) -> str:
    """One of this package's templates, filled.

    Raises:
        ImportError: Jinja2 is missing.
    """
    try:
        from jinja2 import Environment, PackageLoader
    except ImportError as error:
        raise ImportError("a page needs Jinja2: pip install 'vrga[train]'") from error
    environment = Environment(loader=PackageLoader("vrga.training", ""), autoescape=True)
    return environment.get_template(template).render(**content)


def rows_page(questions: Questions, items: Mapping[str, Item], rows: Sequence[dict]) -> str:
    """Rows of training data beside their images, spans marked."""
    shown = [
        {
            **asked(items[row["id"]]),
            "kind": "a look back" if row["kind"] == "back" else "plain",
            "text": marked(row["completion"], questions.tag),
        }
        for row in rows
    ]
    return rendered("rows.html.jinja", title="Rows to train on", rows=shown)


def asked(item: Item) -> dict:
    """What a page shows of a question."""
    return {
        "id": item.id,
        "question": item.question,
        "answer": item.answer,
        "images": [
            data_uri(read_image(image), longest=LONGEST_SIDE, largest=0) for image in item.images
        ],
    }


def marked(text: str, tag: str) -> object:
    """A text as safe HTML whose spans are marked."""
    from markupsafe import Markup

    parts, end = [], 0
    for found in spans_of(tag).finditer(text):
        parts += [escape(text[end : found.start()]), f"<mark>{escape(found[0])}</mark>"]
        end = found.end()
    return Markup("".join([*parts, escape(text[end:])]))
