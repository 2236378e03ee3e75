"""How a text names an option, and says, denies or supposes that it is the answer."""

from __future__ import annotations

import re

KIND = r"(?:(?:option|choice|letter|alternative|answer|选项)\s*)"
# An option's name: in brackets, or a letter that is no word's first and no article.
NAME = re.compile(
    rf"{KIND}?[\"'“”‘’]?(?:[(\[]\s*([A-Za-z])\s*[)\]]|([A-Z])(?!\w|['’]\w)|([a-z])(?=[.):\]\"”’]*\s*(?:\Z|\n)))",
    re.IGNORECASE,
)
MAYBE = (
    r"\b(?:if|were|had|unless|whether|might|may|could|maybe|perhaps|suppose|assume|assuming|doubt|"
    r"tempting|seems at first|instead of|rather than)\b"
)
DENIED = r"(?:\b(?:not|never|neither|nor|cannot)\b|n['’]t\b)"
IS = (
    r"(?:\s+[-–—]+\s+|\s*(?:is|was|are|must be|has to be|should be|will be|would be|seems to be|"
    r"appears to be|"
    r"turns out to be|equals|=|→|->|=>)\b|\s*[:：]|\s*[=→]|\s*[-=]>)"
)
SURELY = (
    r"(?:\s*(?:therefore|thus|hence|then|clearly|definitely|obviously|indeed|likely|most likely|"
    r"probably|surely|simply|just|still|actually|really|certainly|now|in fact)\b,?)*\s*[:：]?\s*"
)
ANSWER = re.compile(
    r"(?:\b(?:answers?|(?:correct|right|best|final|matching|true|proper|chosen)\s+"
    r"(?:option|choice|letter|one|response|alternative|statement)|(?:my|final|selected)\s+"
    rf"(?:choice|pick|selection|option))(?:\s+(?:to|for|of|here|among)\b[^.:;!?\n]{{0,60}}?)?{IS}{SURELY}"
    r"|(?:正确)?(?:答案|选项)\s*(?:应该?|应当)?\s*(?:是|为|选|[:：])\s*[:：]?\s*)",
    re.IGNORECASE,
)
CHOSEN = re.compile(
    r"(?:\b(?:choose|chose|pick|picked|select|selected|go with|going with|settle on|settle for|"
    rf"opt for|vote for|answer with)\s+|(?<!不)选择?\s*|\b(?:it|this|that)(?:['’]s|{IS}){SURELY}"
    r"|\b(?:must|has to) be\s+|\b(?:so|therefore|thus|hence|finally|conclusion)\b[\s,:]+|"
    r"(?:^|\n)\s*(?:#{2,}|=>|->|→)\s*|\b(?:is|are|matches|(?:corresponds|corresponding|equal|"
    r"equivalent)\s+to)\s+(?=(?:the\s+)?(?:option|choice)\s*[(\[]?[A-Z]\b)|\banswer\s+(?=[(\[]?[A-Z][)\].]*\s*(?:\Z|\n)))",
    re.IGNORECASE,
)
RIGHT = re.compile(
    rf"({NAME.pattern})[)\].]?\s*(?:is|seems|must be|would be|looks|[:：-])\s*(?:clearly|"
    r"therefore|thus|indeed|definitely|obviously|actually|in fact|surely|then)?"
    r"\s*(?:the\s+)?(?:only\s+)?(?:correct|right|my answer|answer|"
    r"best answer|best option|best choice|best match)\b",
    re.IGNORECASE,
)
BEFORE_WRONG = re.compile(
    r"\b(?:incorrect|wrong|false|worst|other|another|first|second|third|previous|initial|"
    r"not(?:\s+(?:the|an|my))?)\s+\Z",
    re.IGNORECASE,
)
WITHDRAWN = re.compile(
    r"\b(?:wait|scratch that|correction|on second thought|i was wrong|my mistake|"
    r"that(?:['’]s| is) (?:wrong|incorrect|not right|not correct))\b",
    re.IGNORECASE,
)
TURNED = re.compile(
    r"\b(?:no|wait|actually|hmm+|but|instead|rather|correction|sorry|mistake|however)\b", re.I
)
RULED_OUT = re.compile(
    r"\A[)\].:,'\"”\s(–—-]*(?:which\s+|that\s+)?(?:"
    r"(?:is|are|was|would be|seems|looks)\s+(?:\w+\s+)?(?:wrong|incorrect|false|not|never|"
    r"out|impossible|unlikely|excluded|eliminated|ruled)\b|(?:is|was|does|do|can|could|would)n['’]t\b|"
    r"cannot\b|can (?:be )?(?:not|ruled|excluded|eliminated)\b|does not\b|doesn['’]t\b|do not\b|"
    r"(?:wrong|incorrect|false|no)\b|not\b(?!\s*[(\[\"']?\s*(?:option\s+)?[A-Z]\b)|[?？])",
    re.IGNORECASE,
)
ALSO = re.compile(
    r"\A[\s.,)\]'\"”(]*(?:and|or|nor|[&/,;|+、和或]|[-–—]+>?|→)\s*"
    r"(?:(?:both|either|also|maybe|perhaps|possibly)\s+)?",
    re.IGNORECASE,
)
# What follows an option's name at the beginning of a text that answers with it.
GOES_ON = re.compile(r"\A[)\]\"'”]*\s*(?:\Z|[.:,;\n–—-]|(?:because|since|as)\b)", re.IGNORECASE)
VERB = re.compile(
    r"\A\s*(?:is|was|are|looks?|seems?|says?|shows?|has|does|do|would|could|can|may|might|must|"
    r"should|will)\b",
    re.IGNORECASE,
)
ELSEWHERE = re.compile(
    r"\b(?:fig|figure|table|question|image|panel|part|step|eq|equation|line|item|point)\.?\s*\Z",
    re.IGNORECASE,
)
DISMISSED = re.compile(
    r"\b(?:wrong|incorrect|false|not|out|excluded|eliminated|impossible)\b|n['’]t\b", re.IGNORECASE
)
CUT = re.compile(
    r"[;!?\n。；！？]|\.(?!\d)|\b(?:because|since|as|whereas|while|although|for|so|given)\b|"
    r",?\s*(?:and |but )?\b(?:not|rather than|instead of)\b",
    re.IGNORECASE,
)
MARK = r"[(\[]?\s*{}\s*[)\].:、]*\s*"
