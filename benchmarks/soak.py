"""Minutes of mixed requests to vLLM with VRGA: every answer as alone, and memory that stays.

    PYTHONPATH=tests/helpers .venv-engine/bin/python -m benchmarks.soak --minutes 10
    PYTHONPATH=tests/helpers .venv-engine/bin/python -m benchmarks.soak --minutes 10 --kinds base

Requests of every kind, unsteered ones among them, come in a drawn order, sixteen at once; one in
eight is aborted on the way. Each answer must have the tokens, and each steered one the region, that
the same request had alone at the start. With `--kinds base` nothing is steered: what grows then is
not ours.

The engine is in this process. After every hundred steps three things are read: its resident memory;
what of it programs have asked malloc for and not given back, which freed memory that is kept for
later does not count in; and Python's blocks. Objects of vrga's classes are counted in the middle
and at the end, where nothing but the sixteen requests in flight may be alive.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
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


class _Malloc(ctypes.Structure):
    """`struct mallinfo2` of glibc; `mapped` and `used` are bytes that are in use."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "free_chunks", "fast_chunks", "maps", "mapped", "most", "fast", "used", "free",
        "top",
    )]  # fmt: skip


def memory() -> dict[str, float]:
    """Megabytes that this process holds, and has in use of malloc; thousands of Python's blocks."""
    import psutil

    read = ctypes.CDLL("libc.so.6").mallinfo2
    read.restype = _Malloc
    malloc = read()
    return {
        "resident": psutil.Process().memory_info().rss / 2**20,
        "in use": (malloc.mapped + malloc.used) / 2**20,
        "blocks": sys.getallocatedblocks() / 1000,
    }


def alive() -> dict[str, int]:
    """How many objects of vrga's own classes there are, by class."""
    gc.collect()
    kinds = (type(one) for one in gc.get_objects())
    found = Counter(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
    return {name: count for name, count in sorted(found.items()) if name.startswith("vrga.")}


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
        kinds: of requests.
    """

    def __init__(self, llm, seed: int, kinds: Sequence[str] = KINDS):
        self._core, self._draw = llm.llm_engine, random.Random(seed)
        samples = engine_cases.samples(QUESTIONS)
        self._asked = {}
        for i, sample in enumerate(samples):
            for j, kind in enumerate(kinds):
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
    parser.add_argument("--kinds", default=",".join(KINDS), help="of requests")
    asked = parser.parse_args()
    kinds = asked.kinds.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"--kinds has {', '.join(unknown)}; there are {', '.join(KINDS)}")
    engine_cases.set_small()
    with tempfile.TemporaryDirectory() as folder:
        llm = engine_cases.start(Path(folder), max_logprobs=1, enable_prefix_caching=True,
                                 max_num_seqs=AT_ONCE, num_gpu_blocks_override=64)  # fmt: skip
        soak = Soak(llm, asked.seed, kinds)
        begin = time.monotonic()
        told: list[dict[str, float]] = []
        objects: list[dict[str, int]] = []
        while (minutes := (time.monotonic() - begin) / 60) < asked.minutes:
            for _ in range(EVERY):
                soak.step()
            if not objects and minutes > asked.minutes / 2:
                objects.append(alive())
            told.append({"minutes": minutes, "answers": soak.answered, **memory()})
            print("  ".join(f"{name} {value:.1f}" for name, value in told[-1].items()), flush=True)
        objects.append(alive())
    middle = told[len(told) // 2]
    print(f"{asked.minutes:g} minutes: {soak.answered} answers, {soak.aborted} requests aborted, "
          f"{soak.wrong} not as alone")  # fmt: skip
    for name in ("resident", "in use", "blocks"):
        print(f"{name}: {told[0][name]:.1f} after the first {EVERY} steps, {middle[name]:.1f} in "
              f"the middle, {told[-1][name]:.1f} at the end")  # fmt: skip
    for name in sorted(set().union(*objects)):
        print(f"{name}: {', '.join(str(one.get(name, 0)) for one in objects)}")
    return int(bool(soak.wrong))


if __name__ == "__main__":
    sys.exit(main())
