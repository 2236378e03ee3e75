"""Texts without what dresses them, to be compared."""

from __future__ import annotations

import re

# Full-width forms as ASCII; no more of Unicode, in which "x²" would become "x2".
WIDE: dict[int, int | str] = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
WIDE |= {0x3000: " ", 0x3002: ". ", 0x3010: "[", 0x3011: "]", 0x3014: "[", 0x3015: "]"}
WRAP = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|boxed)\s*\{([^{}]*)\}")


def plain(text: str) -> str:
    """Without what dresses a text: \\text{}, $, **, full-width forms, outer spaces."""
    text, before = re.sub(r"\\[()\[\]]|\$|\*\*|__|`", "", text.translate(WIDE)), None
    while text != before:
        text, before = WRAP.sub(r"\1", text), text
    return text.strip()


def bare(text: str) -> str:
    """`plain`, and without quotes around it and a full stop behind it."""
    text = plain(text).strip("\"'*_“”").strip()
    return text[:-1].rstrip() if text.endswith(".") else text


def same(a: str, b: str) -> bool:
    """Whether two texts are one, up to what `bare` takes off, case and spaces."""
    a, b = (" ".join(bare(text).casefold().split()) for text in (a, b))
    return a == b
