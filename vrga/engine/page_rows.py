"""Steered attention of single rows over vLLM's pages on a CPU, compiled by vLLM's own numba.

What `decode_attention_reference` means, a row and a head at a time, in one call for all requests of
a layer, and without a copy of what lies in the pages:

    e_j   = exp(s_j - max s),  l = sum e,  mass = sum_I e / l,  H_mass = -sum_I (e / l) log(e / l)
    gate  = known, or mass keys / n > max(focus, entropy H_mass)
    out   = sum(w e v) / sum(w e)        where some weight w of the gate's side is not 1

Heads whose weights are all 1 keep what the engine computed. The keys of a page lie number by
number, [d, page], its values behind them, [page, d].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import boolean, float32, int32, int64, void

FAST = {"reassoc", "contract", "nsz", "arcp", "nnan"}  # sums in any order, so that they vectorise
LOG2_E = np.float32(math.log2(math.e))
LEAST = np.float32(-126)  # the least power of two that is a normal number
TWO = [np.float32(math.log(2) ** k / math.factorial(k)) for k in range(8)]  # of 2^f, |f| <= 1/2
T0, T1, T2, T3, T4, T5, T6, T7 = TWO

# Columns of a row, and of a request; rows of the table of keys, and of that of heads.
ROW, PLACE, END, REQUEST = range(4)
PROMPT, OFFSET, FIRST, LAST, KNOWN, OPENED_ONE, CLOSED_ONE, WHOLE, WEIGHTLESS = range(9)
FOCUS, ENTROPY, PER_IMAGE = range(3)
IMAGE, REGION, OPENED, CLOSED = range(4)
GATE, VISUAL = range(2)


def compiled(*signature: Any) -> Callable[[Callable], Any]:
    """Compile a function as it is defined, and keep it on disk where that is possible."""
    more: dict[str, Any] = {"fastmath": FAST, "nogil": True, "error_model": "numpy"}

    def compile_it(function: Callable) -> Any:
        try:
            return numba.njit(*signature, **more, cache=True)(function)
        except RuntimeError:  # no folder may be written
            return numba.njit(*signature, **more)(function)

    return compile_it


_strided = float32[:, :, :]
_pages = float32[:, :, ::1]
_table = int32[:, :]
_line = float32[::1]


@compiled(void(float32[:], _pages, int32[:], int64, int64, float32, _line))
def _scores(query, cache, pages, head, end, scale, scores):
    """scale * q . k of the keys up to `end`, and some behind it, which mean nothing."""
    size = query.shape[0]
    page = cache.shape[2] // (2 * size)
    for number in range((end + page - 1) // page):
        block = cache[pages[number], head]
        own = scores[number * page : (number + 1) * page]
        own[:] = 0
        for i in range(0, size, 4):  # head sizes are multiples of 16
            a, b, c, d = query[i], query[i + 1], query[i + 2], query[i + 3]
            keys_a = block[i * page : (i + 1) * page]
            keys_b = block[(i + 1) * page : (i + 2) * page]
            keys_c = block[(i + 2) * page : (i + 3) * page]
            keys_d = block[(i + 3) * page : (i + 4) * page]
            for j in range(page):
                own[j] += a * keys_a[j] + b * keys_b[j] + c * keys_c[j] + d * keys_d[j]
        for j in range(page):
            own[j] *= scale


@compiled(void(_line, int64, float32, _line, int32[::1]))
def _exponentials(scores, end, largest, share, power):
    """share = exp(scores - largest), to a unit in the last place; no score is above `largest`."""
    raised = power.view(np.float32)
    for j in range(end):
        twos = max((scores[j] - largest) * LOG2_E, LEAST)
        whole = math.floor(twos + np.float32(0.5))
        f = np.float32(twos - whole)
        power[j] = (np.int32(whole) + np.int32(127)) << np.int32(23)
        share[j] = T0 + f * (T1 + f * (T2 + f * (T3 + f * (T4 + f * (T5 + f * (T6 + f * T7))))))
    for j in range(end):
        share[j] *= raised[j]


@compiled(void(_pages, int32[:], int64, int64, _line, _line))
def _mean(cache, pages, head, end, share, result):
    """sum(share v) over the keys up to `end`, into `result` [d]."""
    size = result.shape[0]
    page = cache.shape[2] // (2 * size)
    result[:] = 0
    for number in range((end + page - 1) // page):
        values = cache[pages[number], head, size * page :]
        own = share[number * page : min((number + 1) * page, end)]
        fours = own.shape[0] // 4 * 4
        for j in range(0, fours, 4):
            a, b, c, d = own[j], own[j + 1], own[j + 2], own[j + 3]
            values_a = values[j * size : (j + 1) * size]
            values_b = values[(j + 1) * size : (j + 2) * size]
            values_c = values[(j + 2) * size : (j + 3) * size]
            values_d = values[(j + 3) * size : (j + 4) * size]
            for i in range(size):
                result[i] += a * values_a[i] + b * values_b[i] + c * values_c[i] + d * values_d[i]
        for j in range(fours, own.shape[0]):
            factor = own[j]
            value = values[j * size : (j + 1) * size]
            for i in range(size):
                result[i] += factor * value[i]


@compiled(float32(_pages, int32[:], int64, int64[::1], _line, _line, float32, float32[:]))
def _add(cache, pages, head, chosen, weights, share, total, result):
    """What chosen keys weigh more than 1 is added to a mean of the values; returns the sum of it.

    share becomes weighted there.
    """
    size = result.shape[0]
    page = cache.shape[2] // (2 * size)
    more = np.float32(0)
    for i in range(size):
        result[i] *= total
    for j in chosen:
        extra = share[j] * (weights[j] - np.float32(1))
        share[j] += extra
        more += extra
        start = (page + j % page) * size
        value = cache[pages[j // page], head, start : start + size]
        for i in range(size):
            result[i] += extra * value[i]
    for i in range(size):
        result[i] /= total + more
    return more


@compiled(float32(_line, int64))
def _largest(scores, end):
    found = scores[0]
    for j in range(1, end):
        found = max(found, scores[j])
    return found


@compiled(float32(_line, _line, int64))
def _product(one, other, end):
    found = np.float32(0)
    for j in range(end):
        found += one[j] * other[j]
    return found


@compiled(float32(_line, int64))
def _sum(one, end):
    found = np.float32(0)
    for j in range(end):
        found += one[j]
    return found


@compiled(boolean(_line, _line, _line, int64, int64, float32, float32[::1]))
def _is_open(scores, share, image, told, end, largest, limits):
    """The dynamic gate; `told` keys may be on the image."""
    total = _sum(share, end)
    mass = _product(share, image, told) / total
    logs = np.float32(0)
    for j in range(told):
        logs += share[j] * (scores[j] - largest) * image[j]
    entropy = mass * np.float32(math.log(total)) - logs / total
    return mass * end * limits[PER_IMAGE] > max(limits[FOCUS], limits[ENTROPY] * entropy)


@compiled(boolean(_line, _line, _line, int64, int64, _line, int32[::1]))
def _weigh_out(scores, weights, share, told, end, spare, power):
    """share of the keys that weigh something, whose largest score counts; False: there is none."""
    largest, some = np.float32(0), end > told
    if some:
        largest = _largest(scores[told:], end - told)
    for j in range(told):
        if weights[j] > 0 and (not some or scores[j] > largest):
            largest, some = scores[j], True
    if some:
        for j in range(end):  # what weighs nothing must not overflow
            spare[j] = min(scores[j], largest)
        _exponentials(spare, end, largest, share, power)
    return some


@compiled(
    void(
        _strided, _strided, _pages, _table, int64[:, ::1], int64[:, ::1], float32[:, ::1],
        float32[:, ::1], int64[::1], boolean[:, :, ::1], float32, float32[:, ::1], _line,
    )
)  # fmt: skip
def steer_rows(query, output, cache, table, rows, requests, limits, kinds, chosen, heads, scale,
               scratch, shares):  # fmt: skip
    """Put steered attention in the place of the engine's, for the rows of a layer.

    Args:
        query, output: [T, H, d]; `output` holds what the engine computed.
        cache: [pages, H_kv, 2 * page * d]; table: pages of each request.
        rows: [N, 4], columns ROW (of query), PLACE (in the table), END (keys that it sees) and
            REQUEST.
        requests: [R, 9], columns PROMPT (its tokens), OFFSET (its first column of `kinds`), FIRST
            and LAST (its part of `chosen`), and whether the gate is KNOWN, the weights of an open
            and of a shut gate are all 1, the WHOLE sum over the values is made, some weigh nothing.
        limits: [R, 3], thresholds of R and of H_mass, and 1 / image keys.
        kinds: [4, sum of prompts], 1 on the IMAGE, 1 on the REGION, weights.
        chosen: keys whose weight under an open gate is not 1.
        heads: [2, R, H], heads whose GATE is known to be open, and VISUAL heads.
        scratch: [4, most keys, in whole pages].
        shares: [N], attention on the region after steering is added, over visual heads.
    """
    group = query.shape[1] // cache.shape[1]
    scores, share, spare = scratch[0], scratch[1], scratch[2]
    power = scratch[3].view(np.int32)
    for n in range(rows.shape[0]):
        row, place, end, request = rows[n, ROW], rows[n, PLACE], rows[n, END], rows[n, REQUEST]
        of, pages = requests[request], table[place]
        told = min(of[PROMPT], end)
        first, last = of[OFFSET], of[OFFSET] + told
        for head in range(query.shape[1]):
            is_open = heads[GATE, request, head]
            if of[KNOWN] and not is_open and of[CLOSED_ONE]:
                continue
            _scores(query[row, head], cache, pages, head // group, end, scale, scores)
            largest = _largest(scores, end)
            _exponentials(scores, end, largest, share, power)
            if not of[KNOWN]:
                is_open = _is_open(
                    scores, share, kinds[IMAGE, first:last], told, end, largest, limits[request]
                )
            steers = not (of[OPENED_ONE] if is_open else of[CLOSED_ONE])
            weights = kinds[OPENED if is_open else CLOSED, first:last]
            if steers and of[WEIGHTLESS]:
                steers = _weigh_out(scores, weights, share, told, end, spare, power)
            total = _sum(share, end)
            if steers:
                result, before = output[row, head], total
                if of[WHOLE]:
                    for j in range(told):
                        share[j] *= weights[j]
                    total = _sum(share, end)
                    _mean(cache, pages, head // group, end, share, spare[: result.shape[0]])
                    for i in range(result.shape[0]):
                        result[i] = spare[i] / total
                else:
                    few = chosen[of[FIRST] : of[LAST]]
                    total += _add(cache, pages, head // group, few, weights, share, before, result)
            if heads[VISUAL, request, head]:
                shares[n] += _product(share, kinds[REGION, first:last], told) / total


@compiled(void(float32[:, :], _pages, int32[:], int64, float32, float32[:, ::1], float32[:, ::1]))
def probe_row(query, cache, pages, end, scale, scratch, found):
    """Attention of one query row [H, d] over the first `end` keys, into `found` [H, S]."""
    group = query.shape[0] // cache.shape[1]
    scores, share = scratch[0], scratch[1]
    power = scratch[3].view(np.int32)
    for head in range(query.shape[0]):
        _scores(query[head], cache, pages, head // group, end, scale, scores)
        _exponentials(scores, end, _largest(scores, end), share, power)
        total = _sum(share, end)
        for j in range(end):
            found[head, j] = share[j] / total
