"""What a forward pass is, as a table: what is known of its cache, and what comes of it."""

import pytest

from vrga.steering.passes import Pass, Progress, SteeringError, what_is

DONE, UNDER_WAY = Progress(reached=30, end=20), Progress(reached=12, end=20)
WHOLE = lambda past: 20  # noqa: E731 - the prompt that was announced, cached tokens included
NEW = lambda past: past + 20  # noqa: E731 - the same, without them


def what(tokens=1, held=None, progress=None, announced=None, *, turn=False, images=False,
         call=False, cut=False):  # fmt: skip
    return what_is(
        tokens, held=held, progress=progress, announced=announced, opens_turn=lambda: turn,
        brings_images=images, in_call=call, may_cut=cut,
    )  # fmt: skip


TABLE = {
    "without a cache": (dict(tokens=20), Pass("prompt", 0)),
    "on an empty cache": (dict(tokens=20, held=0), Pass("prompt", 0)),
    "announced": (dict(tokens=20, held=0, announced=WHOLE, call=True), Pass("prompt", 0)),
    "its first chunk": (dict(tokens=8, held=0, announced=WHOLE, call=True), Pass("prompt", 0)),
    "a further chunk": (dict(tokens=8, held=12, progress=UNDER_WAY, call=True), Pass("piece", 12)),
    "a last chunk of one": (dict(held=12, progress=UNDER_WAY), Pass("piece", 12)),
    "drafts beside the prompt": (
        dict(tokens=23, held=0, announced=WHOLE, call=True, cut=True),
        Pass("split", 0, length=20),
    ),
    "its beginning is cached, unseen": (
        dict(tokens=15, held=5, announced=WHOLE, call=True),
        Pass("prompt", 5),
    ),
    "a step": (dict(held=30, progress=DONE), Pass("step", 30)),
    "a step of generate": (dict(held=30, progress=DONE, call=True), Pass("step", 30)),
    "drafts": (dict(tokens=4, held=30, progress=DONE, call=True, cut=True), Pass("step", 30)),
    "drafts behind rejected ones": (
        dict(tokens=4, held=25, progress=DONE, call=True, cut=True),
        Pass("step", 25),
    ),
    "all drafts rejected": (dict(held=20, progress=DONE, call=True, cut=True), Pass("step", 20)),
    "several tokens by hand": (dict(tokens=4, held=30, progress=DONE), Pass("step", 30)),
    "a cache cut by hand": (dict(held=22, progress=DONE, cut=True), Pass("step", 22)),
    "a new question by hand": (
        dict(tokens=9, held=30, progress=DONE, turn=True),
        Pass("prompt", 30),
    ),
    "a new question in generate": (
        dict(tokens=20, held=30, progress=DONE, announced=NEW, turn=True, call=True),
        Pass("prompt", 30),
    ),
    "an answer goes on": (
        dict(held=30, progress=DONE, announced=lambda past: 31, call=True),
        Pass("step", 30),
    ),
    "a prompt's last token again": (
        dict(held=19, progress=DONE, announced=WHOLE, call=True),
        Pass("rest", 19),
    ),
    "its last token and the answer's first": (
        dict(tokens=4, held=19, progress=DONE, announced=lambda past: 23, call=True),
        Pass("split", 19, length=1),
    ),
    "the rest of a prompt that was begun by hand": (
        dict(tokens=2, held=18, progress=Progress(18, 18, 12, False), announced=WHOLE, call=True),
        Pass("rest", 18),
    ),
    "cut before the question's end": (
        dict(tokens=9, held=11, progress=Progress(30, 20, 12), announced=WHOLE, call=True),
        Pass("prompt", 11),
    ),
    "guidance without the image": (dict(tokens=1, held=None, call=True), Pass("prompt", 0)),
    "a cleared cache, a new image": (
        dict(tokens=20, held=0, progress=DONE, images=True),
        Pass("prompt", 0),
    ),
}


@pytest.mark.parametrize("name", list(TABLE))
def test_what_a_pass_is(name):
    given, wanted = TABLE[name]
    assert what(**given) == wanted


REFUSED = {
    "a cache of a prompt not seen": (dict(held=30), "30 tokens of a prompt this patch has not"),
    "virtual tokens before the prompt": (
        dict(tokens=24, held=0, announced=WHOLE, call=True),
        "24 tokens for a prompt of 20.*adapter",
    ),
    "virtual tokens in the cache": (
        dict(tokens=20, held=4, announced=WHOLE, call=True),
        "24 tokens for a prompt of 20.*adapter",
    ),
    "a dropped cache in generate": (
        dict(held=0, progress=DONE, call=True),
        "cache is empty, but 30 tokens have gone through it.*gradient checkpointing",
    ),
    "a dropped cache by hand": (dict(held=0, progress=DONE), "announce"),
    "evicted keys in generate": (
        dict(held=25, progress=DONE, call=True),
        "25 keys where 30 tokens have gone.*evicted",
    ),
    "evicted below the prompt": (
        dict(held=15, progress=DONE, cut=True),
        "15 keys where 30 tokens have gone.*prompt has 20",
    ),
    "keys put in": (dict(held=33, progress=DONE, cut=True), "33 keys where 30"),
    "evicted amid the prompt": (dict(tokens=8, held=6, progress=UNDER_WAY), "6 keys where 12"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_told_is_an_error(name):
    given, told = REFUSED[name]
    with pytest.raises(SteeringError, match=told):
        what(**given)


def test_the_error_is_of_both_kinds():
    """Of a model in use, and of what was given to it: who caught either goes on doing so."""
    assert issubclass(SteeringError, RuntimeError) and issubclass(SteeringError, ValueError)
