"""What steering costs in vLLM on paper: bytes, FLOPs and the time that they take at least.

    python -m benchmarks.engine_costs [--model 7b --parallel 4 --tokens 4096 --requests 8]

Nothing is measured here. A GPU is two numbers, bytes a second of its memory and of its links; keys,
values and weights have two bytes, scores four. All is of one GPU of those that share the heads.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from benchmarks.shapes import SHAPES

MEMORY, LINK, FLOPS = 3.0e12, 300e9, 400e12  # bytes, bytes, and half-precision FLOPs a second
HALF, SINGLE = 2, 4  # bytes of a number


@dataclass(frozen=True)
class Cost:
    """What one thing takes on one GPU.

    Args:
        name: of it; often: how often it comes.
        read: bytes of its own memory read and written; sent: bytes received over the links.
        flops: floating-point operations.
    """

    name: str
    often: str
    read: float
    sent: float
    flops: float

    @property
    def seconds(self) -> float:
        """The least it takes: its memory or its arithmetic, whichever is slower, then its links."""
        return max(self.read / MEMORY, self.flops / FLOPS) + self.sent / LINK


def costs(model: str, parallel: int, tokens: int, requests: int) -> list[Cost]:
    """What a prompt and a step of some requests take, each of `tokens` keys.

    Args:
        parallel: GPUs that share the heads.
    """
    shape = SHAPES[model]
    layers, heads = shape.layers, shape.heads / parallel
    stored = max(1, shape.kv_heads / parallel)  # a KV head is not cut
    keys = layers * stored * tokens * shape.size * HALF
    scores = layers * heads * tokens * SINGLE
    products = 2 * layers * heads * tokens * shape.size  # of a query row with the keys
    all_scores = layers * shape.heads * tokens * SINGLE
    layer = shape.hidden * (2 * shape.hidden + 2 * shape.kv_heads * shape.size)
    layer += 3 * shape.hidden * shape.intermediate
    weights = (layers * layer + shape.hidden * shape.vocabulary) / parallel
    return [
        Cost("the question's row looks at all keys", "once a request", keys + 2 * scores, 0,
             products + 4 * scores),
        Cost("its rows are gathered over the GPUs", "once a request", scores + all_scores,
             all_scores - scores, 0),
        Cost("pages copied, then attended to", "each step", requests * (6 * keys + 6 * scores), 0,
             requests * (2 * products + 10 * scores)),
        Cost("pages read where they lie", "each step", requests * 2 * keys, 0,
             requests * (2 * products + 10 * scores)),
        Cost("a step unsteered, its attention among it", "each step",
             weights * HALF + requests * 2 * keys, 0, requests * (2 * weights + 2 * products)),
    ]  # fmt: skip


def table(model: str = "7b", parallel: int = 4, tokens: int = 4096, requests: int = 8) -> str:
    """The costs as a table in Markdown."""
    lines = [
        f"{model.upper()}, {parallel} GPUs that share the heads, {tokens} keys, {requests} requests"
        f" a step, {MEMORY / 1e12:g} TB/s, links {LINK / 1e9:g} GB/s:",
        "",
        "| | comes | MB moved | MB received | GFLOP | at least |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in costs(model, parallel, tokens, requests):
        lines.append(
            f"| {one.name} | {one.often} | {one.read / 1e6:.1f} | {one.sent / 1e6:.1f} | "
            f"{one.flops / 1e9:.2f} | {one.seconds * 1e6:.0f} µs |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="7b")
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--requests", type=int, default=8)
    asked = parser.parse_args()
    print(table(asked.model, asked.parallel, asked.tokens, asked.requests))


if __name__ == "__main__":
    main()
