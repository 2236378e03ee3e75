"""Tokens a second of vLLM with steered requests, over the same engine's without: in turns.

    make test-engine    # once, for the environment
    PYTHONPATH=tests/helpers .venv-engine/bin/python -m benchmarks.engine OUT.json

Eight requests at once on the small model, on one thread of a CPU. A round asks the same questions
unsteered and in each way of steering, in an order that turns; a ratio is of two times of one round.
Times are of the process: other programs on the machine do not count.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import engine_cases

REQUESTS, TOKENS, ROUNDS = 8, 64, 12
WAYS = ("base", "static", "paper", "dynamic")


def main(output: Path) -> None:
    """Measure, print, and write what was measured."""
    engine_cases.set_small()
    from vllm import SamplingParams

    llm = engine_cases.start(Path(tempfile.mkdtemp()), max_logprobs=20)
    prompts = [engine_cases.prompt_of(one) for one in engine_cases.samples(REQUESTS)]

    def seconds(way: str) -> float:
        asked = engine_cases.KINDS[way]
        extra = None if asked is None else {"vrga": asked}
        params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, extra_args=extra)
        before = time.process_time()
        llm.generate(prompts, params, use_tqdm=False)
        return time.process_time() - before

    for way in WAYS:
        seconds(way)  # what is compiled or read at first
    ratios: dict[str, list[float]] = {way: [] for way in WAYS[1:]}
    for number in range(ROUNDS):
        turn = number % len(WAYS)
        took = {way: seconds(way) for way in WAYS[turn:] + WAYS[:turn]}
        for way in ratios:
            ratios[way].append(took["base"] / took[way])
    found = {
        way: {"median": statistics.median(all_of), "low": min(all_of), "high": max(all_of)}
        for way, all_of in ratios.items()
    }
    for way, told in found.items():
        print(f"{way}: {told['median']:.3f} ({told['low']:.3f} to {told['high']:.3f})")
    settings = {"requests": REQUESTS, "tokens": TOKENS, "rounds": ROUNDS}
    output.write_text(json.dumps({"settings": settings, "speed": found}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
