"""The method once more, as the paper words it: loops in float64, for comparison only."""

import numpy as np
import torch


def region(rows, grids, keys, *, seen=None, std=0.6, border=0.2, least=10, grow=1):
    """T of one row. rows: [L, H, S] attention; grids: [(positions, h, w)]; keys: visible keys,
    a number or, where heads look from several rows, [L][H].

    seen: the keys that each layer sees, [L, S], where they differ.
    """
    layers, heads, _ = rows.shape
    image = [p for index, _, _ in grids for p in index]
    focus, entropy = np.zeros((layers, heads)), np.zeros((layers, heads))
    for i in range(layers):
        for h in range(heads):
            a = rows[i, h]
            visible = image if seen is None else [p for p in image if seen[i][p]]
            count = (
                sum(seen[i]) if seen is not None else keys if isinstance(keys, int) else keys[i][h]
            )
            on = np.array([a[p] for p in visible])
            if not visible:
                continue  # nothing of the image: R and H_img are 0
            focus[i, h] = on.mean() / (a.sum() / count)
            share = on / on.sum()
            entropy[i, h] = -sum(x * np.log(x) for x in share if x > 0)
    efr = entropy / np.maximum(focus, 1e-12)
    low, high = np.percentile(efr, 5), np.percentile(focus, 95)
    visual = [(i, h) for i in range(layers) for h in range(heads)
              if efr[i, h] <= low and focus[i, h] >= high]  # fmt: skip
    if not visual:
        visual = [(i, h) for i in range(layers) for h in range(heads) if focus[i, h] >= high]
    first = max(1, int(0.1 * layers))
    background = [(i, h) for i in range(first) for h in range(heads) if focus[i, h] < 0.01]

    def normalised(chosen):
        mean = np.mean([[rows[i, h][p] for p in image] for i, h in chosen], axis=0)
        return mean / mean.sum()

    relevance = normalised(visual)
    if background:
        relevance = np.maximum(relevance - normalised(background), 0)
        relevance = relevance / max(relevance.sum(), 1e-12)

    kept, cells, offset = [], [], 0
    for number, (_, h, w) in enumerate(grids):
        order = [(0, 0), (0, 1), (1, 0), (1, 1)] + [(0, c) for c in range(2, w)]
        order = [(r, c) for r, c in order + [(r, 0) for r in range(2, h)] if r < h and c < w]
        sink = set(order[: int(border * h * w)])
        for r in range(h):
            for c in range(w):
                cells.append((number, r, c))
                if (r, c) not in sink:
                    kept.append(offset + r * w + c)
        offset += h * w
    mean = max(np.mean([relevance[j] for j in kept]), 1e-12)
    ratio = {k: relevance[k] / mean for k in kept}
    values = np.array([ratio[k] for k in kept])
    threshold = values.mean() + std * (values.std(ddof=1) if len(kept) > 1 else 0)
    chosen = [k for k in kept if ratio[k] > threshold]
    if len(chosen) < least:
        chosen = sorted(kept, key=lambda k: -ratio[k])[:least]
    grown = set()
    for k in chosen:
        n, r, c = cells[k]
        for j in kept:
            m, y, x = cells[j]
            if m == n and abs(y - r) <= grow and abs(x - c) <= grow:
                grown.add(j)
    return (
        sorted(image[k] for k in chosen),
        sorted(image[k] for k in grown),
        sorted(visual),
        relevance,
    )


def whole_question(rows, grids, places, visible, **more):
    """T of a question whose words stand at `places`: each head at the word of its highest R.

    rows: [L, H, S, S] attention, a float64 array; visible: bool [S]. The words see all images.
    """
    layers, heads = rows.shape[:2]
    image = [p for index, _, _ in grids for p in index]
    own, keys = np.zeros((layers, heads, rows.shape[3])), [[0] * heads for _ in range(layers)]
    for i in range(layers):
        for h in range(heads):
            best = -1.0
            for place in places:
                count = int(visible[: place + 1].sum())
                focus = rows[i, h, place][image].mean() * count
                if focus > best:
                    best, own[i, h], keys[i][h] = focus, rows[i, h, place], count
    return region(own, grids, keys, **more)


def steered(q, k, v, image, focus_tokens, *, scale, gain=1.5, focus=0.6, ratio=0.2, gate=None):
    """One decode step of one row: q [H, d], k and v [Hkv, S, d] -> [H, d], and the open heads."""
    heads, group = len(q), len(q) // len(k)
    out, opened = [], []
    for h in range(heads):
        s = (k[h // group] @ q[h]) * scale
        a = torch.softmax(s.double(), 0)
        on = a[image]
        r = on.mean() / a.mean()
        mass_entropy = -(on * on.log()).sum()
        is_open = (
            bool(gate[h]) if gate is not None else bool(r > focus and r > ratio * mass_entropy)
        )
        if is_open:
            a = a.clone()
            a[focus_tokens] *= gain
            a = a / a.sum()
            opened.append(h)
        out.append(a @ v[h // group].double())
    return torch.stack(out), opened
