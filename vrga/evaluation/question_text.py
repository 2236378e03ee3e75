"""Where in a prompt the question is: steering starts at its end, not at the instruction's."""

from __future__ import annotations

import re

from vrga.evaluation.tasks import documents

# Tasks of lmms-eval whose question stands in a field of another name.
FIELDS = {"vstar_bench": ("text",)}
# What its tasks put behind the question.
INSTRUCTIONS = (
    "\nAnswer the question using a single word or phrase.",
    "\nAnswer the question with Yes or No.",
    "\nAnswer with the option's letter from the given choices directly.",
    "\nAnswer with the option's letter from the given choices directly",
    "Answer with the option letter only.",
    "\nAnswer the question with a number directly.",
    "\nProvide a short and direct response.",
    " Please answer yes or no.",
    " Answer:",
)


def question_in(task_name: str, doc: dict, text: str) -> str:
    """The part of a prompt that is the question.

    Args:
        task_name: the task, one of this package's or of lmms-eval's.
        doc: the row; images are not needed.
        text: the prompt as the task builds it from the row.

    Returns:
        A substring of `text`: the row's question where it occurs in the prompt, up to upper and
        lower case; else the prompt without the instruction at its end; else the whole prompt.
    """
    named = next((FIELDS[task] for task in FIELDS if task_name.startswith(task)), ())
    for name in (*named, *documents.QUESTION):
        for wanted in _forms(doc.get(name)):
            found = list(re.finditer(re.escape(wanted), text, re.IGNORECASE))
            if found:
                return found[-1][0]
    for instruction in INSTRUCTIONS:
        if text.endswith(instruction) and text != instruction:
            return text.removesuffix(instruction).rstrip()
    return text


def _forms(value: object) -> list[str]:
    """A question as prompts may contain it, the most complete form first."""
    if not isinstance(value, str):
        return []
    text = value.strip()
    forms = [text, documents.question({"question": text})] if text else []
    forms.append(text.split("(A)")[0].strip())  # V* writes the options anew
    return [form for form in forms if form]
