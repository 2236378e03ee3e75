"""Two answers side by side: which words go together, which differ, and where they part most."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import numpy as np

from vrga.recording.trace import Trace

NONE = -1  # the partner of a token that the other answer does not have
# What a chat template leaves of its roles, once special tokens are gone.
TURNS = re.compile(
    r"\A.*(?:^|\n)(?:user\n|USER:)\s*(?P<said>.*?)\s*(?:\n?assistant|ASSISTANT:)?\s*\Z", re.DOTALL
)
Pairs = list[tuple[list[int], list[int]]]


def side_by_side(answers: Sequence[Sequence[str]]) -> Pairs:
    """For each of one or two answers: each token's partner in the other one, and which differ.

    Tokens that stand in place of others go together one by one; what is only in one answer has no
    partner. A token differs where the other answer has not the same there.

    Args:
        answers: tokens as text.
    """
    partners = [[NONE] * len(tokens) for tokens in answers]
    differs: list[list[int]] = [[] for _ in answers]
    if len(answers) == 2:
        first, second = answers
        matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
        for kind, i, i_end, j, j_end in matcher.get_opcodes():
            for own, other in zip(range(i, i_end), range(j, j_end), strict=False):
                partners[0][own], partners[1][other] = other, own
            if kind != "equal":
                differs[0] += range(i, i_end)
                differs[1] += range(j, j_end)
    return list(zip(partners, differs, strict=True))


def opening(traces: Sequence[Trace], row: int, pairs: Pairs) -> int:
    """The token of the last answer that tells most: where attention on the region changes most
    from the first answer to the last; of one answer, where it is highest."""
    shares = [region_shares(trace, row) for trace in traces]
    change = shares[-1]
    if len(traces) == 2:
        partners = pairs[1][0]
        change = {
            token: abs(share - shares[0][partners[token]])
            for token, share in shares[1].items()
            if token < len(partners) and partners[token] in shares[0]
        }
    return max(change, key=change.__getitem__) if change else min(shares[-1])


def region_shares(trace: Trace, row: int) -> dict[int, float]:
    """Token -> attention on the region, mean over the row's visual heads, or all without any."""
    steps, heads = trace.steps_of(row), trace.regions[row].visual[trace.layers]
    values = trace.filled().region[: len(steps), :, row]  # [steps, L, H]
    values = values[:, heads].mean(1) if heads.any() else values.mean((1, 2))
    return dict(zip(steps, values.tolist(), strict=True))


def verdict(
    traces: Sequence[Trace], row: int, pairs: Pairs, names: Sequence[str], token: int
) -> list[str]:
    """What a page of these traces shows, in sentences.

    Args:
        names: of the runs; token: where the page opens.
    """
    told = []
    if len(traces) == 2:
        same = not any(differs for _, differs in pairs)
        told.append("Both answers are the same." if same else "The answers differ, where marked.")
    region = traces[-1].regions[row]
    if not region.grids:
        return [*told, "There is no image, and so no region to steer to."]
    shares = [region_shares(trace, row) for trace in traces]
    heads = "visual heads give" if region.visual[traces[-1].layers].any() else "heads give"
    means = " and ".join(
        f"{percent(float(np.mean(list(own.values()))))} ({name})"
        for own, name in zip(shares, names, strict=True)
    )
    told.append(f"The {heads} the region {means} of their attention, on average over the answer.")
    here = shares[-1].get(token)
    before = shares[0].get(pairs[-1][0][token]) if len(traces) == 2 else None
    if before is not None and here is not None:
        told.append(
            f"The page opens at token {token + 1}, where that changes most: {percent(before)} "
            f"to {percent(here)}."
        )
    elif here is not None:
        told.append(f"The page opens at token {token + 1}, where it is most, {percent(here)}.")
    covered = int(region.mask.sum()) / max(int(region.image.sum()), 1)
    told.append(f"The region is {percent(covered)} of the image.")
    return told


def question_of(traces: Sequence[Trace], row: int, asked: str) -> str:
    """The question alone: what steering took for it, or the prompt without its roles."""
    for trace in traces:
        question = trace.regions[row].question
        if question and question.strip():
            return question.strip()
    found = TURNS.match(asked)
    return found["said"] if found and found["said"] else asked


def percent(share: float) -> str:
    """ "6.1 %", which no line end parts."""
    return f"{100 * share:.1f}\u00a0%"
