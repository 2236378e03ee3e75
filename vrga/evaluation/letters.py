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

LONGEST = 4000  # characters at the end of a text in which statements are sought
_NEAR = 300  # characters before a statement that decide whether it is one
# Full-width forms as ASCII; no more of Unicode, in which "x²" would become "x2".
_WIDE: dict[int, int | str] = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_WIDE |= {0x3000: " ", 0x3002: ". ", 0x3010: "[", 0x3011: "]", 0x3014: "[", 0x3015: "]"}
_WRAP = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|boxed)\s*\{([^{}]*)\}")
_KIND = r"(?:(?:option|choice|letter|alternative|answer|选项)\s*)"
# An option's name: in brackets, or a letter that is no word's first and no article.
_NAME = re.compile(
    rf"{_KIND}?[\"'“”‘’]?(?:[(\[]\s*([A-Za-z])\s*[)\]]|([A-Z])(?!\w|['’]\w)|([a-z])(?=[.):\]\"”’]*\s*(?:\Z|\n)))",
    re.IGNORECASE,
)
_MAYBE = (
    r"\b(?:if|were|had|unless|whether|might|may|could|maybe|perhaps|suppose|assume|assuming|doubt|"
    r"tempting|seems at first|instead of|rather than)\b"
)
_DENIED = r"(?:\b(?:not|never|neither|nor|cannot)\b|n['’]t\b)"
_IS = (
    r"(?:\s+[-–—]+\s+|\s*(?:is|was|are|must be|has to be|should be|will be|would be|seems to be|"
    r"appears to be|"
    r"turns out to be|equals|=|→|->|=>)\b|\s*[:：]|\s*[=→]|\s*[-=]>)"
)
_SURELY = (
    r"(?:\s*(?:therefore|thus|hence|then|clearly|definitely|obviously|indeed|likely|most likely|"
    r"probably|surely|simply|just|still|actually|really|certainly|now|in fact)\b,?)*\s*[:：]?\s*"
)
_ANSWER = re.compile(
    r"(?:\b(?:answers?|(?:correct|right|best|final|matching|true|proper|chosen)\s+"
    r"(?:option|choice|letter|one|response|alternative|statement)|(?:my|final|selected)\s+"
    rf"(?:choice|pick|selection|option))(?:\s+(?:to|for|of|here|among)\b[^.:;!?\n]{{0,60}}?)?{_IS}{_SURELY}"
    r"|(?:正确)?(?:答案|选项)\s*(?:应该?|应当)?\s*(?:是|为|选|[:：])\s*[:：]?\s*)",
    re.IGNORECASE,
)
_CHOSEN = re.compile(
    r"(?:\b(?:choose|chose|pick|picked|select|selected|go with|going with|settle on|settle for|"
    rf"opt for|vote for|answer with)\s+|(?<!不)选择?\s*|\b(?:it|this|that)(?:['’]s|{_IS}){_SURELY}"
    r"|\b(?:must|has to) be\s+|\b(?:so|therefore|thus|hence|finally|conclusion)\b[\s,:]+|"
    r"(?:^|\n)\s*(?:#{2,}|=>|->|→)\s*|\b(?:is|are|matches|(?:corresponds|corresponding|equal|"
    r"equivalent)\s+to)\s+(?=(?:the\s+)?(?:option|choice)\s*[(\[]?[A-Z]\b)|\banswer\s+(?=[(\[]?[A-Z][)\].]*\s*(?:\Z|\n)))",
    re.IGNORECASE,
)
_RIGHT = re.compile(
    rf"({_NAME.pattern})[)\].]?\s*(?:is|seems|must be|would be|looks|[:：-])\s*(?:clearly|"
    r"therefore|thus|indeed|definitely|obviously|actually|in fact|surely|then)?"
    r"\s*(?:the\s+)?(?:only\s+)?(?:correct|right|my answer|answer|"
    r"best answer|best option|best choice|best match)\b",
    re.IGNORECASE,
)
_BEFORE_WRONG = re.compile(
    r"\b(?:incorrect|wrong|false|worst|other|another|first|second|third|previous|initial|"
    r"not(?:\s+(?:the|an|my))?)\s+\Z",
    re.IGNORECASE,
)
_WITHDRAWN = re.compile(
    r"\b(?:wait|scratch that|correction|on second thought|i was wrong|my mistake|"
    r"that(?:['’]s| is) (?:wrong|incorrect|not right|not correct))\b",
    re.IGNORECASE,
)
_TURNED = re.compile(
    r"\b(?:no|wait|actually|hmm+|but|instead|rather|correction|sorry|mistake|however)\b", re.I
)
_RULED_OUT = re.compile(
    r"\A[)\].:,'\"”\s(–—-]*(?:which\s+|that\s+)?(?:"
    r"(?:is|are|was|would be|seems|looks)\s+(?:\w+\s+)?(?:wrong|incorrect|false|not|never|"
    r"out|impossible|unlikely|excluded|eliminated|ruled)\b|(?:is|was|does|do|can|could|would)n['’]t\b|"
    r"cannot\b|can (?:be )?(?:not|ruled|excluded|eliminated)\b|does not\b|doesn['’]t\b|do not\b|"
    r"(?:wrong|incorrect|false|no)\b|not\b(?!\s*[(\[\"']?\s*(?:option\s+)?[A-Z]\b)|[?？])",
    re.IGNORECASE,
)
_ALSO = re.compile(
    r"\A[\s.,)\]'\"”(]*(?:and|or|nor|[&/,;|+、和或]|[-–—]+>?|→)\s*"
    r"(?:(?:both|either|also|maybe|perhaps|possibly)\s+)?",
    re.IGNORECASE,
)
# What follows an option's name at the beginning of a text that answers with it.
_GOES_ON = re.compile(r"\A[)\]\"'”]*\s*(?:\Z|[.:,;\n–—-]|(?:because|since|as)\b)", re.IGNORECASE)
_VERB = re.compile(
    r"\A\s*(?:is|was|are|looks?|seems?|says?|shows?|has|does|do|would|could|can|may|might|must|"
    r"should|will)\b",
    re.IGNORECASE,
)
_ELSEWHERE = re.compile(
    r"\b(?:fig|figure|table|question|image|panel|part|step|eq|equation|line|item|point)\.?\s*\Z",
    re.IGNORECASE,
)
_DISMISSED = re.compile(
    r"\b(?:wrong|incorrect|false|not|out|excluded|eliminated|impossible)\b|n['’]t\b", re.IGNORECASE
)
_CUT = re.compile(
    r"[;!?\n。；！？]|\.(?!\d)|\b(?:because|since|as|whereas|while|although|for|so|given)\b|"
    r",?\s*(?:and |but )?\b(?:not|rather than|instead of)\b",
    re.IGNORECASE,
)
_MARK = r"[(\[]?\s*{}\s*[)\].:、]*\s*"


def picked(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that a text names; None for none and for several.

    Args:
        text: the answer.
        options: uppercase letter to text; a text may be empty.
    """
    tagged = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL | re.IGNORECASE)
    text = plain(tagged[-1] if tagged else text)
    options = {letter: plain(option) for letter, option in options.items()}
    alone = _alone(text, options)
    if alone is not None:
        return alone
    text = _without_list(text, options)
    alone = _alone(text, options)
    if alone is not None:
        return alone
    end = text if len(text) <= LONGEST else re.sub(r"\A\S*\s", "", text[-LONGEST:])
    said = list(_statements(end, options))
    if said:
        last = max(place for place, _ in said)
        letters = {letter for place, letter in said if place == last}
        if _WITHDRAWN.search(end, last) or len(letters) > 1:
            return None
        return letters.pop()
    return _first(text[:LONGEST], options) or _bracketed(end, options)


def plain(text: str) -> str:
    """Without what dresses a text: \\text{}, $, **, full-width forms, outer spaces."""
    text, before = re.sub(r"\\[()\[\]]|\$|\*\*|__|`", "", text.translate(_WIDE)), None
    while text != before:
        text, before = _WRAP.sub(r"\1", text), text
    return text.strip()


def same(a: str, b: str) -> bool:
    """Whether two texts are one, up to case, spaces, quotes and a full stop."""
    return _folded(a) == _folded(b)


def _folded(text: str) -> str:
    text = text.strip().strip("\"'*_“”").strip()
    text = text[:-1].rstrip() if text.endswith(".") else text
    return " ".join(text.casefold().split())


def _alone(text: str, options: Mapping[str, str]) -> str | None:
    """The option that is all that a text says, by its name, its text, or both."""
    text = text.strip().strip("\"'“”").strip(" \n*_")
    found = re.fullmatch(rf"{_KIND}?[(\[]?\s*([A-Za-z])\s*[)\].:,]*", text, re.IGNORECASE)
    if found:
        letter = found[1].upper()
        return letter if letter in options else None
    named = [key for key, option in options.items() if option and same(text, option)]
    if named:
        return named[0] if len(named) == 1 else None
    for letter, option in options.items():
        mark = rf"{_KIND}?[(\[]?{letter}[)\].:]*\s+|{_KIND}?[(\[]?{letter}[)\].:]+\s*"
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
        parts.append(_MARK.format(letter) + words)
    listed = r"[\s,;.|/]*(?:and\s+|or\s+)?[-*•]?\s*".join(parts) + r"[\s,;.]*"
    before = r"(?:\b(?:options|choices)(?:\s+are)?\s*:?\s*)?[-*•]?\s*"
    return re.sub(before + listed, "\n", text, count=3, flags=re.IGNORECASE).strip(" \n,;:-–—>")


def _statements(text: str, options: Mapping[str, str]) -> Iterator[tuple[int, str | None]]:
    """Where a text says which option it is, and which; None where that is none or several."""
    for cue in _ANSWER.finditer(text):
        if _BEFORE_WRONG.search(text[max(0, cue.start() - 20) : cue.start()]) or _supposed(
            text, cue
        ):
            continue
        tail = _tail(text, cue.end())
        if re.match(_DENIED, tail, re.IGNORECASE):
            instead = _after_but(tail)
            if instead is None:
                continue
            tail = instead
        yield cue.end(), _resolved(tail, options)
    for cue in _CHOSEN.finditer(text):
        if _supposed(text, cue) or re.search(_DENIED, _clause(text, cue.start()), re.IGNORECASE):
            continue
        tail = _tail(text, cue.end())
        found = _named(tail, options)
        dismissed = found is None and _DISMISSED.search(re.split(r"[.;!?\n]", tail)[0])
        if found is not False and not dismissed:
            yield cue.end(), found
    for cue in _RIGHT.finditer(text):
        name = _NAME.match(cue[1])
        letter, before = _letter_of(name), _clause(text, cue.start())
        if name is None or letter not in options or _is_article(text, cue, name):
            continue
        if re.search(_MAYBE, before, re.I) or re.search(_DENIED, before, re.I):
            continue
        if _sentence_end(text, cue.end()) == "?":
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


def _resolved(tail: str, options: Mapping[str, str]) -> str | None:
    """The option that the words behind a cue name; None for none and several."""
    return _named(tail, options) or None


def _named(tail: str, options: Mapping[str, str]) -> str | Literal[False] | None:
    """As `_resolved`; False where the words do not begin with an option's name: "it is a car"."""
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
        other = _ALSO.match(rest)
        if other and _letter_of(_NAME.match(rest, other.end())) in set(options) - {letter}:
            return None
        if _RULED_OUT.match(rest):
            return False
        said = rest.lstrip(" .):]\"'-–")
        others = [k for k, o in options.items() if o and k != letter and _begins_with(said, o)]
        if options[letter] and _begins_with(said, options[letter]):
            return letter
        if others:
            return None  # "A. green" where green is B
        cut = _CUT.search(rest.lstrip(" ."))
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
    name = _NAME.match(text, start)
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
    if re.match(_KIND, name[0], re.IGNORECASE):
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
    found, rest = _resolved(text, options), text[name.end() :]
    if found != letter or _RULED_OUT.match(rest) or _sentence_end(text, name.end()) == "?":
        return None
    bracketed = name[1] and not _VERB.match(rest)
    if not (bracketed or _GOES_ON.match(rest) or _begins_with(rest.lstrip(), options[letter])):
        return None
    for other in options:
        if other == letter:
            continue
        # Each option in turn, or a change of mind.
        if re.search(rf"(?:^|[\s;,]){_KIND}?[(\[]?{other}[)\].:]\s*\S", rest):
            return None
        turned = _TURNED.search(rest)
        if turned and re.search(rf"\b{other}\b(?!['’])", rest[turned.end() :]):
            return None
    return letter


def _bracketed(text: str, options: Mapping[str, str]) -> str | None:
    """The option in brackets that a text ends with, where it is the only one not ruled out."""
    found: set[str] = set()
    denied: set[str] = set()
    ends = None
    for name in re.finditer(r"[(\[]([A-Z])[)\]]", text):
        if name[1] not in options or _ELSEWHERE.search(
            text[max(0, name.start() - 20) : name.start()]
        ):
            continue
        before, rest = _clause(text, name.start()), text[name.end() :]
        ruled = _RULED_OUT.match(rest) or re.search(_DENIED, before, re.IGNORECASE)
        maybe = re.search(_MAYBE, before, re.IGNORECASE)
        (denied if ruled or maybe else found).add(name[1])
        option = options[name[1]]
        ends = name[1] if not rest.strip(" .!\n") or (option and same(rest, option)) else None
    found -= denied
    return ends if found == {ends} else None


def _names(text: str, options: Mapping[str, str]) -> set[str]:
    """Options that a text names: in brackets, or by a capital that is no article."""
    found = set(re.findall(r"[(\[]([A-Z])[)\]]", text))
    found |= set(re.findall(r"\b([A-Z])(?=[.):,;]|\s*\Z)", text))
    found |= {x.upper() for x in re.findall(rf"\b{_KIND}([A-Za-z])\b", text, re.IGNORECASE)}
    return found & set(options)


def _letter_of(name: re.Match | None) -> str | None:
    if name is None:
        return None
    return next((group.upper() for group in name.groups() if group), None)


def _is_article(text: str, cue: re.Match, name: re.Match) -> bool:
    """Whether the letter of "a is right" is in lower case, and so may be a word."""
    bare = name[2] or name[3]
    word = cue.start() and (text[cue.start() - 1].isalnum() or text[cue.start() - 1] in "'’")
    return bool(word) or bool(
        bare and bare.islower() and not re.match(_KIND, cue[1], re.IGNORECASE)
    )


def _tail(text: str, start: int) -> str:
    """What is said from a place on: the rest of its line, or the next one where that is empty."""
    rest = text[start:].lstrip(" \t*_\"'“”:")
    return rest.lstrip() if rest.startswith("\n") else rest


def _clause(text: str, end: int) -> str:
    """The words before a place, back to a comma or the sentence's beginning."""
    return re.split(
        r"[.,;:!?\n。，；]|\b(?:but|so|therefore|thus|hence)\b", text[max(0, end - _NEAR) : end]
    )[-1]


def _supposed(text: str, cue: re.Match) -> bool:
    """Whether a statement is a supposition or a question."""
    sentence = re.split(r"[.;!?\n]", text[max(0, cue.start() - _NEAR) : cue.start()])[-1]
    said = f"{sentence} {cue[0]}"
    if re.search(_MAYBE, said, re.IGNORECASE) or (
        re.search(r"\bthink|\bsay\b|\bsays\b|\bclaim", sentence, re.IGNORECASE)
        and re.search(r"\b(?:one|some|people|someone|many|you)\b", sentence, re.IGNORECASE)
    ):
        return True
    rest = re.split(r"[.;!\n]", text[cue.end() :])[0]
    return _sentence_end(text, cue.end()) == "?" or bool(re.search(r"\bif\b", rest, re.IGNORECASE))


def _sentence_end(text: str, start: int) -> str:
    found = re.search(r"[.;!?\n]", text[start:])
    return found[0] if found else ""


def _after_but(tail: str) -> str | None:
    """ "not A but B": B."""
    found = re.match(r"[^.!?\n]*?\b(?:but(?:\s+rather)?|rather|instead)\b[\s,:]*", tail, re.I)
    return tail[found.end() :] if found and not re.search("than", found[0]) else None
