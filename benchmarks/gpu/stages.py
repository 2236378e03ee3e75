"""What is measured on a GPU, in order of worth, and how long it should take.

Estimates are seconds on an H100, not measured yet; the runner holds itself to the clock, and what
does not fit is left for the next call. What is compared in time has the GPU alone; exactness and
the check-up share it with each other.
"""

from __future__ import annotations

from benchmarks.gpu.case import KERNELS, PLUGIN, Case, Stage
from benchmarks.gpu.targets import PINNED

LANES = 6  # workers side by side where no time is measured
MODELS = {"7b": (28, 4), "3b": (16, 2)}  # query and KV heads
# (model, batch, keys) of the targets: batch 1 with up to 8k keys, and caches of 134 MB and more.
HEADLINE = (
    ("7b", 1, 4096), ("7b", 16, 4096), ("7b", 1, 8192), ("7b", 64, 8192), ("3b", 1, 4096),
    ("7b", 1, 32768), ("7b", 1, 131072), ("3b", 32, 4096), ("7b", 1, 1024), ("7b", 32, 4096),
    ("3b", 64, 8192),
)  # fmt: skip
FLEX = (("7b", 1, 4096), ("7b", 16, 4096), ("7b", 1, 131072))
OURS = ("ours", "ours, static gate", "ours, flags off")
CONTENDERS = (*OURS, "sdpa", *PINNED, "sdpa + bias")
SLOW = ("ours in torch", "two-pass torch", "per-head loop")
KEYS = (1037, 500, 2049, 129, 4099)  # each dtype meets each, and each more than one split
GRID_BATCHES, GRID_KEYS = (1, 4, 16, 64), (1024, 4096, 16384, 32768, 131072)
LIMIT = 8 << 30  # bytes of keys and values of one problem


def gpu_stages() -> list[Stage]:
    """Everything, the most telling first."""
    return [
        Stage("exactness and check-up", (doctor("cuda"), *exactness()), LANES, setup=10),
        Stage("kernel, headline shapes", (bandwidth(), *kernels()), setup=8),
        Stage("7B, not compiled", (*model("7b"), *profiles()), setup=15),
        Stage("7B, compiled", (static("7b", 32, ("unpatched", "dynamic")),), setup=15),
        Stage("3B, not compiled", model("3b"), setup=15),
        Stage("3B, compiled", (static("3b", 32, ("unpatched", "dynamic")),), setup=15),
        Stage("7B, recording", (recording("7b"),), setup=15),
        Stage("kernel, FlexAttention", flex(), setup=8),
        Stage("kernel, counters", counters(), setup=8),
        Stage("tests of the kernels", (tests(),), setup=8),
        Stage("kernel, the rest", grid(), setup=8),
        *(Stage(f"{name.upper()}, the rest", rest(name), setup=15) for name in MODELS),
    ]


def doctor(device: str) -> Case:
    """The check-up; on a GPU it compiles."""
    return Case(
        "doctor/tiny", "doctor", "benchmarks.gpu.checks:doctor", {"device": device}, 60, 240,
        worker="doctor",
    )  # fmt: skip


def exactness() -> list[Case]:
    """Every variant that is shipped once, then layouts, lengths and ways."""
    from benchmarks.variants import TYPES, paged_variants, variants

    cases = []

    def decode(name: str, **arguments: object) -> None:
        cases.append(Case(
            f"exact/decode {name}", "exactness", "benchmarks.gpu.exactness:decode", arguments,
            2.5, 60, "exact", KERNELS,
        ))  # fmt: skip

    for number, one in enumerate((*variants(), *paged_variants())):
        keys = max(KEYS[number % len(KEYS)], one.rows + 6 * one.extent)
        decode(
            f"{one} S{keys}", heads=one.heads, kv_heads=one.kv_heads, size=one.size,
            dtype=TYPES[one.dtype], rows=one.rows, groups=one.groups, single=one.single,
            extent=one.extent, gate=one.gate, stats=one.stats, page=one.page, keys=keys,
            seed=number,
        )  # fmt: skip
    seven = dict(heads=28, kv_heads=4, size=128, dtype="bf16", stats=True)
    decode("strided cache", **seven, layout="strided")
    decode("addresses past 2^31", **seven, layout="far", keys=4099)
    decode("131072 keys", **seven, keys=131072, batch=1, extent=True)
    decode("256 splits", **seven, splits=256, keys=40000)
    decode("more splits than tiles", **seven, splits=40, keys=63)
    decode("19 query rows", **seven, rows=19, extent=True)
    decode("64 samples", **seven, batch=64, keys=600)
    decode("flags shorter than the cache", **seven, flagged=700)
    decode("one key", **seven, keys=1)
    decode("CUDA graph", **seven, way="graph")
    decode("CUDA graph, static gate", **seven, way="graph", gate=True, extent=True)
    decode("CUDA graph, pages", **seven, way="graph", page=16, batch=8)
    decode("131072 keys in pages", **seven, page=16, keys=131072)
    decode("torch.compile, 2 query rows", **seven, way="compiled", rows=2, extent=True)
    decode("torch.compile", **seven, way="compiled")
    sizes = (("7b", 128, "bf16"), ("3b", 128, "fp16"), ("7b", 80, "fp32"), ("3b", 64, "bf16"),
             ("7b", 256, "bf16"), ("3b", 16, "bf16"), ("7b", 96, "fp16"))  # fmt: skip
    for number, (name, size, dtype) in enumerate(sizes):
        heads, kv_heads = MODELS[name]
        arguments = dict(heads=heads, kv_heads=kv_heads, size=size, dtype=dtype)
        arguments |= dict(keys=(1037, 4099, 63)[number % 3], offset=0 if number % 2 else 40)
        cases.append(Case(
            f"exact/probe {heads}/{kv_heads} d{size} {dtype}", "exactness",
            "benchmarks.gpu.exactness:probe", arguments, 2.5, 60, "exact", KERNELS,
        ))  # fmt: skip
    return cases


def bandwidth() -> Case:
    """What the shares of bandwidth are shares of."""
    return Case("kernel/bandwidth", "bandwidth", "benchmarks.gpu.kernel:bandwidth", {}, 2, 60,
                sources=())  # fmt: skip


def kernel(
    name: str, batch: int, keys: int, contenders: tuple[str, ...], estimate: float,
    tag: str = "", **steering: float,
) -> Case:  # fmt: skip
    """One shape of a model, with contenders in turns; the first is what ratios are to."""
    heads, kv_heads = MODELS[name]
    arguments = dict(heads=heads, kv_heads=kv_heads, batch=batch, keys=keys,
                     contenders=list(contenders), **steering)  # fmt: skip
    return Case(
        f"kernel/{name} B{batch} S{keys}{tag}", "kernel", "benchmarks.gpu.kernel:shape", arguments,
        estimate, 120, "kernel", KERNELS,
    )  # fmt: skip


def kernels() -> list[Case]:
    """The shapes of the targets, against all that may be the fastest."""
    return [kernel(*one, CONTENDERS, 5) for one in HEADLINE]


def flex() -> tuple[Case, ...]:
    """FlexAttention, which is compiled for each shape."""
    return tuple(kernel(*one, ("ours", "flex attention"), 20, " flex") for one in FLEX)


def steering_grid() -> list[Case]:
    """Every share of T and of open gates, on a batch-1 and a batch-16 shape."""
    return [
        kernel(name, batch, 4096, OURS, 3, f" T{region:.0%} open{opened:.0%}", region=region,
               opened=opened)
        for name, batch in (("7b", 1), ("7b", 16))
        for region in (0.0, 0.05, 0.2)
        for opened in (0.0, 0.5, 1.0)
    ]  # fmt: skip


def grid() -> tuple[Case, ...]:
    """All head counts, batches and lengths that the headline leaves out; and what users write."""
    cases = steering_grid()
    for name, (_, kv_heads) in MODELS.items():
        for batch in GRID_BATCHES:
            for keys in GRID_KEYS:
                if 4 * batch * kv_heads * keys * 128 > LIMIT or (name, batch, keys) in HEADLINE:
                    continue
                cases.append(kernel(name, batch, keys, CONTENDERS, 6))
    for batch, keys in ((1, 4096), (4, 4096)):
        cases.append(kernel("7b", batch, keys, ("ours", *SLOW), 20, " slow"))
    return tuple(cases)


def generation(call: str, name: str, side: int, estimate: float, batch: int = 1, **more) -> Case:
    """A case of `benchmarks.gpu.generation` on a model of this name."""
    arguments = dict(shape=name, side=side, batch=batch, **more)
    return Case(
        f"{call}/{name} {side}x{side} B{batch}", call, f"benchmarks.gpu.generation:{call}",
        arguments, estimate, max(60, 4 * estimate), name, PLUGIN,
    )  # fmt: skip


def model(name: str) -> tuple[Case, ...]:
    """What one loading of a model can tell at once."""
    return (
        generation("eager", name, 32, 15),
        generation("prefill", name, 32, 4),
        generation("memory", name, 32, 4),
        generation("prefill", name, 64, 8),
        generation("memory", name, 64, 5),
    )


def static(name: str, side: int, arms: tuple[str, ...], batch: int = 1) -> Case:
    """Compiled with a static cache; compiling is most of it."""
    estimate = 40 * len(arms)
    found = generation("static", name, side, estimate, batch, arms=list(arms))
    return Case(found.id, "static", found.call, found.arguments, estimate, 300, f"{name} compiled")


def recording(name: str) -> Case:
    """Six generations in turns."""
    arguments = dict(shape=name, side=32, windows=2)
    return Case(f"recording/{name} 32x32", "recording", "benchmarks.gpu.generation:recording",
                arguments, 35, 150, name)  # fmt: skip


def profiles() -> tuple[Case, ...]:
    """One decode step of the 7B shape in each arm, under torch.profiler."""
    return tuple(
        Case(f"profile/7b 32x32 {arm}", "profile", "benchmarks.gpu.profile:step",
             dict(shape="7b", side=32, arm=arm), 8, 90, "7b")
        for arm in ("unpatched", "dynamic", "static")
    )  # fmt: skip


def counters() -> tuple[Case, ...]:
    """Nsight Compute at the first two headline shapes."""
    return tuple(
        Case(f"counters/{name} B{batch} S{keys}", "counters", "benchmarks.gpu.profile:counters",
             dict(zip(("heads", "kv_heads"), MODELS[name], strict=True), batch=batch, keys=keys),
             25, 90, "counters", KERNELS)
        for name, batch, keys in HEADLINE[:2]
    )  # fmt: skip


def tests() -> Case:
    """The repository's own tests of the kernels, which draw their cases."""
    names = ["test_kernel.py", "test_pages.py", "test_probe.py"]
    return Case("tests/kernels", "tests", "benchmarks.gpu.checks:tests", {"names": names}, 150, 400,
                "tests", KERNELS)  # fmt: skip


def rest(name: str) -> tuple[Case, ...]:
    """Other images, batches, the static gate compiled."""
    cases = [generation("eager", name, side, 25, batch) for side, batch in
             ((16, 1), (64, 1), (16, 8), (32, 8))]  # fmt: skip
    cases += [generation("prefill", name, 32, 10, 8), generation("memory", name, 32, 8, 8)]
    gate = static(name, 64, ("unpatched", "dynamic", "static"))
    return (*cases, gate, static(name, 32, ("unpatched", "dynamic"), 8))


def proof_stages() -> list[Stage]:
    """The same at tiny shapes on a CPU: that the program works, and nothing about speed."""
    tiny = dict(heads=4, kv_heads=2, size=32, dtype="fp32", keys=40, batch=1)
    drawn = ("ours in torch", "sdpa", "sdpa + bias")

    def proof(name: str, call: str, arguments: dict) -> Case:
        group = name.split(" ")[0]
        return Case(f"proof/{name}", group, f"benchmarks.gpu.{call}", arguments, 2, 120, "proof")

    arms = ["unpatched", "dynamic"]
    model = dict(shape="tiny", side=4)
    cases = (
        proof("exactness decode", "exactness:decode", tiny | dict(stats=True, extent=True)),
        proof("exactness probe", "exactness:probe", tiny),
        proof("bandwidth", "kernel:bandwidth", dict(size=1 << 20, rounds=2)),
        proof("kernel", "kernel:shape", dict(heads=4, kv_heads=2, batch=1, keys=64, size=32,
                                             contenders=list(drawn), rounds=2)),
        proof("eager", "generation:eager", model | dict(tokens=3)),
        proof("static", "generation:static", model | dict(arms=arms, tokens=7, rounds=1)),
        proof("prefill", "generation:prefill", model | dict(rounds=2)),
        proof("memory", "generation:memory", model | dict(tokens=2)),
        proof("profile", "profile:step", model | dict(arm="dynamic", steps=1)),
        proof("recording", "generation:recording", model | dict(windows=1)),
        proof("doctor", "checks:doctor", dict(device="cpu")),
    )  # fmt: skip
    return [Stage("proof", cases, setup=3)]
