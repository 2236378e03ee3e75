"""Steered attention of single rows over vLLM's pages on a CPU, compiled by vLLM's own numba.

What `decode_attention_reference` means, a row and a head at a time, in one call for all requests of
a layer, and without a copy of what lies in the pages:

    e_j   = exp(s_j - max s),  l = sum e,  mass = sum_I e / l,  H_mass = -sum_I (e / l) log(e / l)
    gate  = known, or mass keys / n > max(focus, entropy H_mass)
    out   = sum(w e v) / sum(w e)        where some weight w of the gate's side is not 1

Heads whose weights are all 1 keep what the engine computed.
"""

from __future__ import annotations

import math

import numpy as np
from numba import boolean, float32, int64, void

from vrga.engine.page_sums import (
    LINES,
    PAGES,
    RESULT,
    SHARE,
    STRIDED,
    TABLE,
    TOGETHER,
    add,
    compiled,
    exponentials,
    four_scores,
    mean,
    on_region,
    scores,
    top_score,
    weigh,
    weigh_out,
)

# numba keeps compiled code on disk until this file changes, and looks at no other. A change of what
# is compiled into it must therefore change it, too: sha256 of lanes.py and page_sums.py, whose new
# value tests/engine/test_compiled_files.py tells.
COMPILED_OF = "cdba35f6cc1471bb"

# Columns of a row, and of a request; rows of the tables of keys and of heads.
ROW, PLACE, END, REQUEST = range(4)
PROMPT, OFFSET, FIRST, LAST, KNOWN, OPENED_ONE, CLOSED_ONE, WHOLE, WEIGHTLESS = range(9)
FOCUS, ENTROPY, PER_IMAGE = range(3)
IMAGE, REGION, OPENED, CLOSED = range(4)
GATE, VISUAL = range(2)


@compiled(
    float32(
        STRIDED, PAGES, TABLE, int64[:, ::1], int64, int64[:, ::1], LINES, LINES, int64[::1],
        boolean[:, :, ::1], int64, int64, LINES,
    )
)  # fmt: skip
def _steer_head(output, cache, table, rows, n, requests, limits, kinds, chosen, heads, head, number,
                scratch):  # fmt: skip
    """Steer one head of row n, whose scores are in row `number` of scratch.

    Returns:
        Attention on the region after steering; 0 where the head is not a visual one.
    """
    row, place, end, request = rows[n, ROW], rows[n, PLACE], rows[n, END], rows[n, REQUEST]
    told, offset = min(requests[request, PROMPT], end), requests[request, OFFSET]
    width = kinds.shape[1]
    size, keys = output.shape[2], head // (output.shape[1] // cache.shape[1])
    top = top_score(scratch, number, end)
    whole, mass, logs = exponentials(scratch, number, top, kinds, IMAGE * width + offset, told, end)
    is_open = heads[GATE, request, head]
    if not requests[request, KNOWN]:
        entropy = (mass * np.float32(math.log(whole)) - logs) / whole
        focus = mass / whole * np.float32(end) * limits[request, PER_IMAGE]
        is_open = focus > max(limits[request, FOCUS], limits[request, ENTROPY] * entropy)
    side = OPENED if is_open else CLOSED
    steers = not requests[request, OPENED_ONE if is_open else CLOSED_ONE]
    weights = side * width + offset
    if steers and requests[request, WEIGHTLESS]:
        steers = weigh_out(scratch, number, kinds, weights, told, end)
    if steers:
        if requests[request, WHOLE]:
            whole = weigh(scratch, kinds, weights, told, end)
            mean(cache, table, place, keys, size, end, whole, scratch)
        else:
            for i in range(size):
                scratch[RESULT, i] = output[row, head, i]
            whole = add(cache, table, place, keys, size, chosen, requests[request, FIRST],
                        requests[request, LAST], kinds, side, offset, whole, scratch)  # fmt: skip
        for i in range(size):
            output[row, head, i] = scratch[RESULT, i]
    if not heads[VISUAL, request, head]:
        return np.float32(0)
    return on_region(scratch, kinds, REGION * width + offset, told) / whole


@compiled(
    void(
        STRIDED, STRIDED, PAGES, TABLE, int64[:, ::1], int64[:, ::1], LINES, LINES, int64[::1],
        boolean[:, :, ::1], float32, LINES, float32[::1],
    ),
    inlined=False,
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
        kinds: [4, sum of prompts], 1 on the IMAGE, 1 on the REGION, weights; each request's to the
            next multiple of 16: not on the image, and of weight 1.
        chosen: keys whose weight under an open gate is not 1.
        heads: [2, R, H], heads whose GATE is known to be open, and VISUAL heads.
        scratch: [ROWS, most keys, in whole pages].
        shares: [N], attention on the region after steering is added, over visual heads.
    """
    group = query.shape[1] // cache.shape[1]
    todo = np.empty(group, np.int64)
    for n in range(rows.shape[0]):
        row, place, end, request = rows[n, ROW], rows[n, PLACE], rows[n, END], rows[n, REQUEST]
        every = not (requests[request, KNOWN] and requests[request, CLOSED_ONE])
        for keys in range(cache.shape[1]):
            count = 0
            for head in range(keys * group, (keys + 1) * group):
                if every or heads[GATE, request, head]:
                    todo[count] = head
                    count += 1
            done = 0
            while done < count:
                many = TOGETHER if count - done >= TOGETHER else 1
                if many == 1:
                    scores(query, row, todo[done], cache, table, place, keys, end, scale, scratch)
                else:
                    four_scores(
                        query, row, todo, done, cache, table, place, keys, end, scale, scratch
                    )
                for number in range(many):
                    shares[n] += _steer_head(
                        output, cache, table, rows, n, requests, limits, kinds, chosen, heads,
                        todo[done + number], number, scratch,
                    )  # fmt: skip
                done += many


@compiled(
    void(float32[:, :, :], PAGES, TABLE, int64, int64, int64, float32, LINES, LINES),
    inlined=False,
)
def probe_row(query, cache, table, row, place, end, scale, scratch, found):
    """Attention of a query's row [T, H, d] over the first `end` keys, into `found` [H, S]."""
    group = query.shape[1] // cache.shape[1]
    for head in range(query.shape[1]):
        scores(query, row, head, cache, table, place, head // group, end, scale, scratch)
        top = top_score(scratch, 0, end)
        whole, _, _ = exponentials(scratch, 0, top, scratch, 0, 0, end)
        for j in range(end):
            found[head, j] = scratch[SHARE, j] / whole
