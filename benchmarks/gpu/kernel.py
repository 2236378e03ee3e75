"""One decode step of attention at one shape: our kernel and its baselines, side by side.

All contenders take turns within every round, on caches that together exceed the L2, so that a
ratio is of times that lie beside each other. On a GPU each is captured in a CUDA graph as well:
graph times are the device's, burst times include the host.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.contenders import CONTENDERS, Problem, flex_calls, make_problem
from benchmarks.timing import ratio, seconds, summary

COLD = 256 << 20  # bytes that caches in rotation span at least: several times any L2
OWN = ("ours", "ours, static gate", "ours, flags off")
STATIC, OFF = OWN[1:]
ON_HOST = ("per-head loop",)  # reads on the host, which no graph can hold
BUSY = 2e-3  # seconds of work that a burst or a graph holds at least


@dataclass
class Contender:
    """Calls of one contender, one for each problem in rotation, and what they took."""

    name: str
    calls: list[Callable[[], object]]
    graph: object = None
    replays: int = 1
    count: int = 1
    burst: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    graphs: list[float] = field(default_factory=list)

    def prepare(self, gpu: bool) -> None:
        """Warm up, decide how many calls make a burst, and capture them."""
        for call in self.calls:
            call()
        once = seconds(self.calls[0])
        self.count = max(len(self.calls), min(50, int(BUSY / once) + 1)) if gpu else 1
        if gpu and self.name not in ON_HOST:
            self.graph = captured(self.calls)
            self.replays = max(1, int(BUSY / (once * len(self.calls))))
            self.graph.replay()

    def round(self) -> None:
        """Time a burst, and a few replays of the graph."""

        def issue() -> None:
            start = time.perf_counter()
            for i in range(self.count):
                self.calls[i % len(self.calls)]()
            self.host.append((time.perf_counter() - start) / self.count)

        self.burst.append(seconds(issue) / self.count)
        if self.graph is not None:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(self.replays):
                self.graph.replay()
            end.record()
            end.synchronize()
            each = start.elapsed_time(end) / 1e3 / (self.replays * len(self.calls))
            self.graphs.append(each)

    @property
    def times(self) -> list[float]:
        """Seconds of a call in each round: the device's, where there is a graph."""
        return self.graphs or self.burst


def captured(calls: list[Callable[[], object]]):
    """A CUDA graph of these calls."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def rotation(first: Problem, make: Callable[[int], Problem]) -> list[Problem]:
    """Problems of one shape whose caches together exceed the L2; on a CPU one."""
    count = min(-(-COLD // first.kv_bytes), 64) if first.q.is_cuda else 1
    return [first, *(make(seed) for seed in range(1, count))]


def calls_of(name: str, problems: list[Problem]) -> list[Callable[[], object]]:
    """A contender's call for each problem; FlexAttention is compiled once for all."""
    if name == "flex attention":
        return flex_calls(problems)
    return [CONTENDERS[name](problem) for problem in problems]


@torch.inference_mode()
def shape(
    *, heads: int, kv_heads: int, batch: int, keys: int, contenders: list[str],
    size: int = 128, region: float = 0.05, opened: float = 0.5, rounds: int = 20,
) -> dict:  # fmt: skip
    """Times of contenders on one shape, in turns.

    Args:
        region: share of the keys in T; opened: share of the heads whose gate is open.

    Returns:
        kv_bytes: of one problem's keys and values. contenders: by name, seconds of a call (on the
        device where there is a graph), of a call in a burst, host seconds, bytes per second, and
        the ratio to the first contender, round by round; or why it cannot run.
    """
    gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    gc.collect()  # graphs of the case before, and their memory
    if gpu:
        torch.cuda.empty_cache()

    def make(seed: int) -> Problem:
        return make_problem(batch, keys, heads, kv_heads, size, dtype, device, region=region,
                            opened=opened, seed=seed)  # fmt: skip

    problems = rotation(make(0), make)
    ready, found = [], {}
    for name in contenders:
        one = Contender(name, [])
        try:
            one.calls = calls_of(name, problems)
            one.prepare(gpu)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            # Ours must run; and where the context is lost, nothing after it can.
            if name in OWN or "CUDA error" in str(error):
                raise
            found[name] = {"unsupported": (str(error).strip().splitlines() or [repr(error)])[0]}
            continue
        ready.append(one)
    for i in range(rounds):
        for one in ready if i % 2 else reversed(ready):
            one.round()
    for one in ready:
        found[one.name] = {
            "seconds": summary(one.times),
            "burst_seconds": summary(one.burst),
            "host_seconds": summary(one.host),
            "bytes_per_second": problems[0].kv_bytes / summary(one.times)["median"],
            "ratio": ratio(one.times, ready[0].times),
        }
    told = {"kv_bytes": problems[0].kv_bytes, "contenders": found}
    times = {one.name: one.times for one in ready}
    if {STATIC, OFF} <= set(times):
        told["static_over_off"] = ratio(times[STATIC], times[OFF])
    return told


@torch.inference_mode()
def bandwidth(*, size: int = 1 << 32, rounds: int = 20) -> dict:
    """Copy and read bandwidth of the device in bytes per second; of a copy both ways count.

    Args:
        size: bytes of the source.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    ways = {"copy": (2 * size, lambda: target.copy_(source)), "read": (size, source.sum)}
    found = {}
    for name, (moved, call) in ways.items():
        call()
        found[name] = summary([moved / seconds(call) for _ in range(rounds)])
    return {"bytes_per_second": found}
