"""Which option of a multiple-choice question a text commits itself to.

A text may restate the options, rule some out, change its mind or name several. A wrong pick is
worse than none, so that what is not said plainly is no answer:

1. An option's name or its exact text alone is the answer.
2. Otherwise the last statement decides: "the answer is B", "I choose (B)", "B is correct", "so it
   is B", a line that is a letter alone. One that is denied, asked or supposed does not count, and
   one that names two options, or none, leaves no answer.
3. Without a statement, an option's name at the beginning, or the only one in brackets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal

from vrga.evaluation.letter_patterns import (
    ALSO,
    ANSWER,
    BEFORE_WRONG,
    CHOSEN,
    CUT,
    DENIED,
    DISMISSED,
    ELSEWHERE,
    GOES_ON,
    KIND,
    MARK,
    MAYBE,
    NAME,
    RIGHT,
    RULED_OUT,
    TURNED,
    VERB,
    WITHDRAWN,
)
from vrga.evaluation.plain_text import plain, same
from vrga.evaluation.sentences import after_but, behind, clause, sentence_end, supposed

LONGEST = 4000  # characters at the end of a text in which statements are sought


def picked(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that a text names; None for none and for several.

    Args:
        text: the answer.
        options: uppercase letter to text; a text may be empty.
    """
    tagged = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL | re.IGNORECASE)
    text = plain(tagged[-1] if tagged else text)
    options = {letter: plain(option) for letter, option in options.items()}
    whole, text = text, _without_list(text, options)
    alone = _alone(whole, options) or _alone(text, options)
    if alone is not None:
        return alone
    end = text if len(text) <= LONGEST else re.sub(r"\A\S*\s", "", text[-LONGEST:])
    said = list(_statements(end, options))
    if said:
        last = max(place for place, _ in said)
        letters = {letter for place, letter in said if place == last}
        if WITHDRAWN.search(end, last) or len(letters) > 1:
            return None
        return letters.pop()
    return _first(text[:LONGEST], options) or _bracketed(end, options)


def _alone(text: str, options: Mapping[str, str]) -> str | None:
    """The option that is all that a text says, by its name, its text, or both."""
    text = text.strip().strip("\"'“”").strip(" \n*_")
    found = re.fullmatch(rf"{KIND}?[(\[]?\s*([A-Za-z])\s*[)\].:,]*", text, re.IGNORECASE)
    if found:
        letter = found[1].upper()
        return letter if letter in options else None
    named = [key for key, option in options.items() if option and same(text, option)]
    if named:
        return named[0] if len(named) == 1 else None
    for letter, option in options.items():
        mark = rf"{KIND}?[(\[]?{letter}[)\].:]*\s+|{KIND}?[(\[]?{letter}[)\].:]+\s*"
        found = re.match(mark, text, re.IGNORECASE)
        if found and option and same(text[found.end() :], option):
            return letter
    return None


def _without_list(text: str, options: Mapping[str, str]) -> str:
    """Without the options restated: all of them in order, each with its letter and its text."""
    if len(options) < 2 or not all(options.values()):
        return text
    parts = []
    for letter, option in options.items():
        words = r"\s+".join(map(re.escape, option.split()))
        parts.append(MARK.format(letter) + words)
    listed = r"[\s,;.|/]*(?:and\s+|or\s+)?[-*•]?\s*".join(parts) + r"[\s,;.]*"
    before = r"(?:\b(?:options|choices)(?:\s+are)?\s*:?\s*)?[-*•]?\s*"
    return re.sub(before + listed, "\n", text, count=3, flags=re.IGNORECASE).strip(" \n,;:-–—>")


def _statements(text: str, options: Mapping[str, str]) -> Iterator[tuple[int, str | None]]:
    """Where a text says which option it is, and which; None where that is none or several."""
    for cue in ANSWER.finditer(text):
        if BEFORE_WRONG.search(text[max(0, cue.start() - 20) : cue.start()]) or supposed(text, cue):
            continue
        tail = behind(text, cue.end())
        if re.match(DENIED, tail, re.IGNORECASE):
            instead = after_but(tail)
            if instead is None:
                continue
            tail = instead
        yield cue.end(), _named(tail, options) or None
    for cue in CHOSEN.finditer(text):
        if supposed(text, cue) or re.search(DENIED, clause(text, cue.start()), re.IGNORECASE):
            continue
        tail = behind(text, cue.end())
        found = _named(tail, options)
        dismissed = found is None and DISMISSED.search(re.split(r"[.;!?\n]", tail)[0])
        if found is not False and not dismissed:
            yield cue.end(), found
    for cue in RIGHT.finditer(text):
        name = NAME.match(cue[1])
        letter, before = _letter_of(name), clause(text, cue.start())
        if name is None or letter not in options or _is_article(text, cue, name):
            continue
        if re.search(MAYBE, before, re.I) or re.search(DENIED, before, re.I):
            continue
        if sentence_end(text, cue.end()) == "?":
            continue
        near = text[max(0, cue.start() - 20) : cue.start()]
        both = re.search(r"\b[A-Z]\b[)\]]?\s*(?:and|or|[/&,])\s*\Z", near)
        yield cue.end(), None if both else letter
    alone = list(re.finditer(r"(?m)^[ \t>*_-]*[(\[]?([A-Z])[)\]]?[ \t.*_]*$", text))
    if alone and {line[1] for line in alone} <= set(options):
        letters = {line[1] for line in alone}
        yield alone[-1].end(), letters.pop() if len(letters) == 1 else None
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1:  # the last line is an option, and no other line names one
        last = _alone(lines[-1], options)
        others = {letter for line in lines[:-1] for letter in _names(line, options)}
        if last is not None and others <= {last}:
            yield len(text), last


def _named(tail: str, options: Mapping[str, str]) -> str | Literal[False] | None:
    """The option that the words behind a cue name; None for none and several, False where they do
    not begin with an option's name: "it is a car"."""
    by_text = [
        (len(option), letter)
        for letter, option in options.items()
        if option and _begins_with(tail, option)
    ]
    found = re.match(r"[\s\"'“”(]*(?:(?:both|either|the|be|with)\s+)*", tail, re.IGNORECASE)
    start = found.end() if found and tail[found.end() - 1 : found.end()] != "(" else 0
    if tail[:1] in "([":
        start = 0
    exact = [letter for length, letter in by_text if length > 1]
    if len(exact) == 1 and " " in options[exact[0]].strip():
        return exact[0]  # "Both A and B" is an option
    option = _option_at(tail, start, options)
    if option is not None:
        name, letter = option
        rest = tail[name.end() :]
        other = ALSO.match(rest)
        if other and _letter_of(NAME.match(rest, other.end())) in set(options) - {letter}:
            return None
        if RULED_OUT.match(rest):
            return False
        said = rest.lstrip(" .):]\"'-–")
        others = [k for k, o in options.items() if o and k != letter and _begins_with(said, o)]
        if options[letter] and _begins_with(said, options[letter]):
            return letter
        if others:
            return None  # "A. green" where green is B
        cut = CUT.search(rest.lstrip(" ."))
        near = rest.lstrip(" .")[: cut.start()] if cut else rest
        bare = set(re.findall(r"\b([B-HJ-Z])\b(?!['’])", near)) & set(options)
        if (_names(near, options) | bare) - {letter}:
            return None
        return letter
    if by_text:
        longest = max(length for length, _ in by_text)
        letters = [letter for length, letter in by_text if length == longest]
        return letters[0] if len(letters) == 1 else None
    return False


def _option_at(
    text: str, start: int, options: Mapping[str, str]
) -> tuple[re.Match[str], str] | None:
    """The name of an option that stands at a place, and its letter; None where there is none."""
    name = NAME.match(text, start)
    letter = _letter_of(name)
    if name is None or letter is None or letter not in options or _runs_on(text, name, options):
        return None
    return name, letter


def _begins_with(tail: str, option: str) -> bool:
    """Whether a text begins with an option's text, and goes on with nothing that belongs to it."""
    words = r"\s+".join(map(re.escape, option.split()))
    if not words:
        return False
    ends = r"(?=\s*(?:\Z|\n|[;!)\]\"'”]|\.(?!\d)|,?\s+(?:because|since|as|not|so|for)\b))"
    return bool(re.match(rf"[\s\"'“”(]*{words}{ends}", tail, re.IGNORECASE))


def _runs_on(tail: str, name: re.Match, options: Mapping[str, str]) -> bool:
    """Whether a bare "A" or "I" is the first word of what follows: "A red car"."""
    bare = name[2] or name[3]
    if not bare:
        return False
    if re.match(KIND, name[0], re.IGNORECASE):
        return False
    if bare.islower():
        return not re.match(r"[.):\]\"”’]*\s*(?:\Z|\n)", tail[name.end() :])
    rest = tail[name.end() :]
    if re.match(r"[)\].:,;!?/\"'”’\s&、-]*(?:\Z|\n)|[)\].:,;!/&、(\[]|\s*[-–—(\[/&]", rest):
        return False
    if re.match(r"\s+(?:because|since|as|and|or|not|rather|but|over|instead)\b", rest, re.I):
        return False
    if re.match(r"[^\x00-\x7f]", rest.lstrip()):
        return False
    return not _begins_with(rest.lstrip(), options.get(bare.upper(), ""))


def _first(text: str, options: Mapping[str, str]) -> str | None:
    """The option whose name a text begins with, unless it goes on to another."""
    option = _option_at(text, 0, options)
    if option is None:
        return None
    name, letter = option
    found, rest = _named(text, options), text[name.end() :]
    if found != letter or RULED_OUT.match(rest) or sentence_end(text, name.end()) == "?":
        return None
    bracketed = name[1] and not VERB.match(rest)
    if not (bracketed or GOES_ON.match(rest) or _begins_with(rest.lstrip(), options[letter])):
        return None
    for other in options:
        if other == letter:
            continue
        # Each option in turn, or a change of mind.
        if re.search(rf"(?:^|[\s;,]){KIND}?[(\[]?{other}[)\].:]\s*\S", rest):
            return None
        turned = TURNED.search(rest)
        if turned and re.search(rf"\b{other}\b(?!['’])", rest[turned.end() :]):
            return None
    return letter


def _bracketed(text: str, options: Mapping[str, str]) -> str | None:
    """The option in brackets that a text ends with, where it is the only one not ruled out."""
    found: set[str] = set()
    denied: set[str] = set()
    ends = None
    for name in re.finditer(r"[(\[]([A-Z])[)\]]", text):
        if name[1] not in options or ELSEWHERE.search(
            text[max(0, name.start() - 20) : name.start()]
        ):
            continue
        before, rest = clause(text, name.start()), text[name.end() :]
        ruled = RULED_OUT.match(rest) or re.search(DENIED, before, re.IGNORECASE)
        maybe = re.search(MAYBE, before, re.IGNORECASE)
        (denied if ruled or maybe else found).add(name[1])
        option = options[name[1]]
        ends = name[1] if not rest.strip(" .!\n") or (option and same(rest, option)) else None
    found -= denied
    return ends if found == {ends} else None


def _names(text: str, options: Mapping[str, str]) -> set[str]:
    """Options that a text names: in brackets, or by a capital that is no article."""
    found = set(re.findall(r"[(\[]([A-Z])[)\]]", text))
    found |= set(re.findall(r"\b([A-Z])(?=[.):,;]|\s*\Z)", text))
    found |= {x.upper() for x in re.findall(rf"\b{KIND}([A-Za-z])\b", text, re.IGNORECASE)}
    return found & set(options)


def _letter_of(name: re.Match | None) -> str | None:
    if name is None:
        return None
    return next((group.upper() for group in name.groups() if group), None)


def _is_article(text: str, cue: re.Match, name: re.Match) -> bool:
    """Whether the letter of "a is right" is in lower case, and so may be a word."""
    bare = name[2] or name[3]
    word = cue.start() and (text[cue.start() - 1].isalnum() or text[cue.start() - 1] in "'’")
    return bool(word) or bool(bare and bare.islower() and not re.match(KIND, cue[1], re.IGNORECASE))
