"""Minutes of mixed requests to vLLM with VRGA: every answer as alone, and memory that stays.

    PYTHONPATH=tests/helpers .venv-engine/bin/python -m benchmarks.soak --minutes 10

Requests of every kind, unsteered ones among them, come in a drawn order, sixteen at once; one in
eight is aborted on the way. Each answer must have the tokens, and each steered one the region, that
the same request had alone at the start. The engine is in this process, whose resident memory is
read after every hundred steps.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import engine_cases

AT_ONCE, ABORTED, QUESTIONS, EVERY = 16, 1 / 8, 8, 100
OWN = {
    "released": {"preset": "released"},
    "mask": {"preset": "released_mask"},
    "back": {"preset": "published", "when": "back"},
    "given": {"preset": "published", "gain": 3, "given": [[[0.2, 0.2, 0.6, 0.6]]]},
}
KINDS = (*engine_cases.KINDS, *OWN)


def resident() -> float:
    """Megabytes of memory that this process holds."""
    import psutil

    return psutil.Process().memory_info().rss / 2**20


def told(output) -> tuple:
    """What must be the same of a request each time it is answered."""
    looked = (output.kv_transfer_params or {}).get("vrga") or {}
    places = [looked.get(name) for name in ("steered", "boxes", "heads", "query")]
    return list(output.outputs[0].token_ids), places


class Soak:
    """Requests in flight, and what they must answer.

    Args:
        llm: the engine.
        seed: of the order.
    """

    def __init__(self, llm, seed: int):
        self._core, self._draw = llm.llm_engine, random.Random(seed)
        samples = engine_cases.samples(QUESTIONS)
        self._asked = {}
        for i, sample in enumerate(samples):
            for j, kind in enumerate(KINDS):
                prompt = engine_cases.prompt_of(sample, "back" if kind == "back" else "cot")
                params = engine_cases.asked(OWN.get(kind, kind), 12 + (5 * i + j) % 20)
                params.logprobs = None
                self._asked[i, kind] = prompt, params
        self._alone = {}
        for key, (prompt, params) in self._asked.items():
            (output,) = llm.generate([prompt], [params], use_tqdm=False)
            self._alone[key] = told(output)
        self._flying: dict[str, tuple] = {}
        self.sent = self.answered = self.aborted = self.wrong = 0

    def step(self) -> None:
        """Fill up, run one step, abort some, and compare what has ended."""
        while len(self._flying) < AT_ONCE:
            key = self._draw.choice(list(self._asked))
            name, (prompt, params) = f"s{self.sent}", self._asked[key]
            self._core.add_request(name, prompt, params.clone())
            self._flying[name] = key
            self.sent += 1
            if self._draw.random() < ABORTED:
                for _ in range(self._draw.randrange(6)):
                    self._take(self._core.step())
                if name in self._flying:
                    self._core.abort_request([name])
                    del self._flying[name]
                    self.aborted += 1
        self._take(self._core.step())

    def _take(self, outputs) -> None:
        for output in outputs:
            if not output.finished or output.request_id not in self._flying:
                continue
            key = self._flying.pop(output.request_id)
            self.answered += 1
            if told(output) != self._alone[key]:
                self.wrong += 1
                print(f"{key} is not as alone: {told(output)} and {self._alone[key]}", flush=True)


def main() -> int:
    """0, or 1 where an answer was another one than alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    engine_cases.set_small()
    with tempfile.TemporaryDirectory() as folder:
        llm = engine_cases.start(Path(folder), max_logprobs=1, enable_prefix_caching=True,
                                 max_num_seqs=AT_ONCE, num_gpu_blocks_override=64)  # fmt: skip
        soak = Soak(llm, asked.seed)
        end, memory = time.monotonic() + 60 * asked.minutes, [resident()]
        while time.monotonic() < end:
            for _ in range(EVERY):
                soak.step()
            memory.append(resident())
    middle = memory[len(memory) // 2 :]
    print(
        f"{asked.minutes:g} minutes: {soak.answered} answers, {soak.aborted} requests aborted, "
        f"{soak.wrong} not as alone; resident memory {memory[1]:.0f} MB after the first "
        f"{EVERY} steps, {middle[0]:.0f} MB in the middle, {memory[-1]:.0f} MB at the end"
    )
    return int(bool(soak.wrong))


if __name__ == "__main__":
    sys.exit(main())
