"""Sums over the keys of one row and head, in vLLM's pages on a CPU, compiled by vLLM's own numba.

Numbers are float32; those of a head stand in rows of `scratch`: its scores, SHARE (e to the scores
less the largest), and RESULT (of the size of a head). The keys of a page lie number by number,
[d, page], its values behind them, [page, d]; pages are of 32 keys or a multiple of it, and head
sizes multiples of 16, so that sixteen numbers at once never cross an edge. Arrays are read at
numbers counted through all dimensions: a slice costs more than what is done with it here.

Args that many take:
    cache: pages, [pages, H_kv, 2 * page * d]; table, place: pages of a request, table[place].
    head: of the keys; end: how many keys are seen.
    scratch: [ROWS, most keys]; number: the row of a head's scores.
    kinds: of keys, some of which are `told` of: those of the prompt. What is told of a request
        begins at an offset, and goes on to the next multiple of 16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import boolean, float32, int32, int64, void
from numba.types import Tuple

from vrga.engine.lanes import (
    FAST,
    LANES,
    WIDTH,
    all_of,
    floor,
    larger,
    largest,
    load,
    power_of_two,
    smaller,
    store,
    total,
    where_above_zero,
)

LOG2_E = np.float32(math.log2(math.e))
LEAST = np.float32(-126)  # the least power of two that is a normal number
LOWEST = np.float32(-1e30)  # of no key: a score far below all, and no infinity
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
TWO = [np.float32(math.log(2) ** k / math.factorial(k)) for k in range(8)]  # of 2^f, |f| <= 1/2
T0, T1, T2, T3, T4, T5, T6, T7 = TWO

TOGETHER = 4  # heads whose scores are made in one reading of the keys, rows of scratch each
SHARE, RESULT, ROWS = TOGETHER, TOGETHER + 1, TOGETHER + 2
STRIDED, PAGES, TABLE, LINES = float32[:, :, :], float32[:, :, ::1], int32[:, :], float32[:, ::1]


def compiled(*signature: Any, inlined: bool = True) -> Callable[[Callable], Any]:
    """Compile a function as it is defined, and keep it on disk where that is possible.

    Args:
        inlined: into what calls it: handing arrays over takes longer than the sums of few keys.
    """
    more: dict[str, Any] = {
        "fastmath": set(FAST),
        "nogil": True,
        "error_model": "numpy",
        "forceinline": inlined,
    }

    def compile_it(function: Callable) -> Any:
        try:
            return numba.njit(*signature, **more, cache=True)(function)
        except RuntimeError:  # no folder may be written
            return numba.njit(*signature, **more)(function)

    return compile_it


@compiled(LANES(LANES))
def _exponential(x):
    """e^x to a unit in the last place, for x <= 0."""
    twos = larger(x * all_of(LOG2_E), all_of(LEAST))
    whole = floor(twos + all_of(HALF))
    f = twos - whole
    found = all_of(T7)
    for factor in (T6, T5, T4, T3, T2, T1, T0):
        found = found * f + all_of(factor)
    return found * power_of_two(whole)


@compiled(int64(int64))
def _lanes(count):
    """The next multiple of a register's numbers."""
    return (count + WIDTH - 1) // WIDTH * WIDTH


@compiled(
    void(STRIDED, int64, int64[::1], int64, PAGES, TABLE, int64, int64, int64, float32, LINES)
)
def four_scores(query, row, todo, first, cache, table, place, head, end, scale, scratch):
    """scale * q . k of four heads, into the first rows of `scratch`; `head` of the keys."""
    size, most = query.shape[2], scratch.shape[1]
    page = cache.shape[2] // (2 * size)
    a, b, c, d = todo[first], todo[first + 1], todo[first + 2], todo[first + 3]
    factor = all_of(scale)
    for number in range((end + page - 1) // page):
        block = (table[place, number] * cache.shape[1] + head) * cache.shape[2]
        for j in range(0, min(page, end - number * page), WIDTH):
            one = two = three = four = all_of(ZERO)
            for i in range(size):
                keys = load(cache, block + i * page + j)
                one += keys * all_of(query[row, a, i])
                two += keys * all_of(query[row, b, i])
                three += keys * all_of(query[row, c, i])
                four += keys * all_of(query[row, d, i])
            at = number * page + j
            store(scratch, at, one * factor)
            store(scratch, most + at, two * factor)
            store(scratch, 2 * most + at, three * factor)
            store(scratch, 3 * most + at, four * factor)


@compiled(void(STRIDED, int64, int64, PAGES, TABLE, int64, int64, int64, float32, LINES))
def scores(query, row, own, cache, table, place, head, end, scale, scratch):
    """As `four_scores` of one head `own`, into the first row."""
    size = query.shape[2]
    page = cache.shape[2] // (2 * size)
    for number in range((end + page - 1) // page):
        block = (table[place, number] * cache.shape[1] + head) * cache.shape[2]
        for j in range(0, min(page, end - number * page), WIDTH):
            one = two = three = four = all_of(ZERO)
            for i in range(0, size, 4):  # in four sums, none of which waits for another
                at = block + i * page + j
                one += load(cache, at) * all_of(query[row, own, i])
                two += load(cache, at + page) * all_of(query[row, own, i + 1])
                three += load(cache, at + 2 * page) * all_of(query[row, own, i + 2])
                four += load(cache, at + 3 * page) * all_of(query[row, own, i + 3])
            store(scratch, number * page + j, ((one + two) + (three + four)) * all_of(scale))


@compiled(float32(LINES, int64, int64))
def top_score(scratch, number, end):
    """The largest of a head's scores; what lies behind them becomes scores of no key."""
    first = number * scratch.shape[1]
    for j in range(end, _lanes(end)):
        scratch[number, j] = LOWEST
    found = load(scratch, first)
    for j in range(WIDTH, end, WIDTH):
        found = larger(found, load(scratch, first + j))
    return largest(found)


@compiled(Tuple((float32, float32, float32))(LINES, int64, float32, LINES, int64, int64, int64))
def exponentials(scratch, number, top, kinds, offset, told, end):
    """exp(scores - top) into SHARE, where no score is above `top`.

    Returns:
        Their sum, that on the image, and there that of them times (scores - top). `told` keys may
        be on the image, which is told from `offset` in `kinds`.
    """
    first, share = number * scratch.shape[1], SHARE * scratch.shape[1]
    highest, whole = all_of(top), all_of(ZERO)
    mass, logs = whole, whole
    for j in range(0, told, WIDTH):
        less = load(scratch, first + j) - highest
        found = _exponential(less)
        store(scratch, share + j, found)
        whole += found
        on_image = found * load(kinds, offset + j)
        mass += on_image
        logs += on_image * less
    for j in range(_lanes(told), end, WIDTH):
        found = _exponential(load(scratch, first + j) - highest)
        store(scratch, share + j, found)
        whole += found
    return total(whole), total(mass), total(logs)


@compiled(boolean(LINES, int64, LINES, int64, int64, int64))
def weigh_out(scratch, number, kinds, weights, told, end):
    """As `exponentials`, of the keys that weigh something, whose largest score counts.

    Returns:
        Whether there is any.
    """
    first = number * scratch.shape[1]
    found = all_of(LOWEST)
    for j in range(0, told, WIDTH):
        scores = load(scratch, first + j)
        found = larger(found, where_above_zero(load(kinds, weights + j), scores, all_of(LOWEST)))
    for j in range(_lanes(told), end, WIDTH):
        found = larger(found, load(scratch, first + j))
    top = largest(found)
    if top > LOWEST:
        for j in range(0, end, WIDTH):  # what weighs nothing must not overflow
            store(scratch, first + j, smaller(load(scratch, first + j), all_of(top)))
        exponentials(scratch, number, top, kinds, 0, 0, end)
    return top > LOWEST


@compiled(float32(LINES, LINES, int64, int64, int64))
def weigh(scratch, kinds, weights, told, end):
    """Weigh what is in SHARE; returns its sum then."""
    share = SHARE * scratch.shape[1]
    whole = all_of(ZERO)
    for j in range(0, told, WIDTH):
        found = load(scratch, share + j) * load(kinds, weights + j)
        store(scratch, share + j, found)
        whole += found
    for j in range(_lanes(told), end, WIDTH):
        whole += load(scratch, share + j)
    return total(whole)


@compiled(void(PAGES, TABLE, int64, int64, int64, int64, float32, LINES))
def mean(cache, table, place, head, size, end, whole, scratch):
    """sum(share v) / whole, into RESULT."""
    page = cache.shape[2] // (2 * size)
    for i in range(0, size, WIDTH):
        one = two = all_of(ZERO)
        for number in range((end + page - 1) // page):
            begin = number * page
            at = (table[place, number] * cache.shape[1] + head) * cache.shape[2] + size * page + i
            count = min(page, end - begin)
            for j in range(0, count - 1, 2):
                one += load(cache, at + j * size) * all_of(scratch[SHARE, begin + j])
                two += load(cache, at + (j + 1) * size) * all_of(scratch[SHARE, begin + j + 1])
            if count % 2:
                last = count - 1
                one += load(cache, at + last * size) * all_of(scratch[SHARE, begin + last])
        store(scratch, RESULT * scratch.shape[1] + i, (one + two) * all_of(ONE / whole))


@compiled(
    float32(
        PAGES, TABLE, int64, int64, int64, int64[::1], int64, int64, LINES, int64, int64,
        float32, LINES,
    )
)  # fmt: skip
def add(cache, table, place, head, size, chosen, first, last, kinds, side, offset, whole,
         scratch):  # fmt: skip
    """What chosen keys weigh more than 1 is added to the mean of the values in RESULT.

    Args:
        side: row of their weights, from `offset` on; whole: sum of SHARE, before.

    Returns:
        The sum of SHARE, which becomes weighted.
    """
    page, result = cache.shape[2] // (2 * size), RESULT * scratch.shape[1]
    for i in range(0, size, WIDTH):
        store(scratch, result + i, load(scratch, result + i) * all_of(whole))
    number, end = -1, 0  # page of a key, and where it ends
    for n in range(first, last):
        j = chosen[n]
        while j >= end:
            number, end = number + 1, end + page
        block = (table[place, number] * cache.shape[1] + head) * cache.shape[2]
        at = block + (2 * page + j - end) * size
        extra = scratch[SHARE, j] * (kinds[side, offset + j] - ONE)
        scratch[SHARE, j] += extra
        whole += extra
        for i in range(0, size, WIDTH):
            found = load(scratch, result + i) + load(cache, at + i) * all_of(extra)
            store(scratch, result + i, found)
    for i in range(0, size, WIDTH):
        store(scratch, result + i, load(scratch, result + i) * all_of(ONE / whole))
    return whole


@compiled(float32(LINES, LINES, int64, int64))
def on_region(scratch, kinds, region, told):
    """The sum of SHARE on the region."""
    share = SHARE * scratch.shape[1]
    found = all_of(ZERO)
    for j in range(0, told, WIDTH):
        found += load(scratch, share + j) * load(kinds, region + j)
    return total(found)
